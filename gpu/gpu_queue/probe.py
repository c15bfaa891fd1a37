"""Which packages a job imports: found by running one, not by guessing.

``python -m gpu_queue.probe JOB FOLDER`` trains a small model for one update in ``FOLDER``, or
serves one some requests, or both, and prints, as JSON, the packages whose modules are loaded then,
and those that the project's own files name.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import sys
from pathlib import Path

from packaging.utils import canonicalize_name

from gpu_jobs.jobs import JOBS
from gpu_queue.paths import CODE, ROOT

# What the job of serving runs in processes of its own, and itself.
SERVING = (
    "gpu_jobs.__main__",
    "gpu_jobs.serve_smoke",
    "integration.test_devices",
    "integration.test_runtimes",
    "vessa_server.cli",
)
# A small data set in the tree, and whom of it is labelled.
SAMPLE, LABELLED = ROOT / "examples" / "acdc-sample", "patient099"


def main() -> None:
    """Run, look, print."""
    job, out = JOBS[sys.argv[1]], Path(sys.argv[2])
    with contextlib.redirect_stdout(io.StringIO()):
        if job.task:
            _stage2(out)
        else:
            (_train if job.slices else _serve)(out)
    print(json.dumps(packages()))


def _train(out: Path) -> None:
    """All that a job imports, with every kind of task, picture and log."""
    from PIL import Image

    import gpu_jobs.__main__
    import gpu_jobs.leg
    import gpu_jobs.smoke  # noqa: F401
    from vessa_server.model import checkpoint
    from vessa_server.model.presets import preset
    from vessa_server.training import config as configuration
    from vessa_server.training.run import train

    small = {"steps": 1, "groups": 1, "text_share": 1.0, "synthetic_share": 1.0}
    settings = configuration.load(
        "nano", small | {"minutes": 0, "log_every": 1, "image_every": 1, "canvas": 64}
    )
    train(settings, None, out)
    checkpoint.load(preset("nano"), out)
    Image.preinit()


def _serve(out: Path) -> None:
    """All that the job of serving imports: a real server, a text, a volume, and the tests."""
    import golden_answers

    _answer(out)
    next(golden_answers.requests())
    for module in SERVING:
        importlib.import_module(module)


def _answer(out: Path) -> None:
    from support import engine_of, picture, running
    from vessa_client import SegmentationRequest, VessaClient, VolumeRequest

    with running(engine_of(out)) as server, VessaClient(server.grpc) as client:
        image, labels = picture(0)
        client.segment(SegmentationRequest(image=image, student_mask=labels))
        client.segment(SegmentationRequest(image=image, text="bright", explain=True))
        list(client.segment_volume(VolumeRequest(slices=(image, image))))


def _stage2(out: Path) -> None:
    """All that runs of the comparison import: server, training, and scores."""
    import ssl_scores
    from gpu_jobs import stage2, stage2_train
    from ssl_tasks import Task, merged
    from ssl_trainer.config import parse
    from ssl_trainer.training.trainer import Trainer

    _answer(out / "served")
    task = Task.load("acdc")
    small = merged(stage2.SMALL_TRAIN, {"regions": False, "steps": 1, "validate_every": 1})
    data = {"root": str(SAMPLE), "classes": [c.name for c in task.classes], "labelled": [LABELLED]}
    config = parse(merged(small, {"data": data}))
    Trainer(config, out / "run").run()
    ssl_scores.score(out / "run", "val")
    for module in ("gpu_jobs.__main__", stage2_train.__name__, "vessa_server.cli"):
        importlib.import_module(module)


def packages() -> dict[str, list[str]]:
    """``loaded``: packages with loaded modules; ``named``: those that our loaded files import."""
    modules = {n: str(getattr(m, "__file__", "")) for n, m in list(sys.modules.items())}
    code = tuple(f"{folder}{os.sep}" for folder in CODE)
    ours = [Path(f) for f in modules.values() if f.startswith(code) and f.endswith(".py")]
    named = {name for file in ours for name in _imports(file)} & set(modules)
    return {"loaded": _owners(set(modules)), "named": _owners(named)}


def _owners(modules: set[str]) -> list[str]:
    """The packages that modules are of."""
    owners = importlib.metadata.packages_distributions()
    tops = {name.partition(".")[0] for name in modules}
    return sorted({str(canonicalize_name(o)) for top in tops for o in owners.get(top, ())})


def _imports(file: Path) -> set[str]:
    """Modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


if __name__ == "__main__":
    main()
