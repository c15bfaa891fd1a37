"""Which packages a job imports: found by running one, not by guessing.

``python -m gpu_queue.probe FOLDER`` trains a small model for one update in ``FOLDER`` and prints,
as JSON, the packages whose modules are loaded then, and those that the project's own files name.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import io
import json
import os
import sys
from pathlib import Path

from packaging.utils import canonicalize_name

from gpu_queue.paths import CODE


def main() -> None:
    """Run, look, print."""
    with contextlib.redirect_stdout(io.StringIO()):
        _train(Path(sys.argv[1]))
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
