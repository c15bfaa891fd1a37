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
import types
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
    owners = _owners()
    loaded: set[str] = set()
    files: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        # Some modules of torch name a file that there is not.
        if isinstance(module, types.ModuleType) and isinstance(file, str) and os.path.isabs(file):
            real = os.path.realpath(file)
            files[name] = real
            loaded.update(owners.get(real, ()))
    code = [str(folder) + os.sep for folder in CODE]
    ours = [Path(f) for f in files.values() if f.startswith(tuple(code)) and f.endswith(".py")]
    named: set[str] = set()
    for imported in {name for file in ours for name in _imports(file)}:
        named.update(owners.get(files.get(imported, ""), ()))
    return {"loaded": sorted(loaded), "named": sorted(named)}


def _owners() -> dict[str, list[str]]:
    """Which package each installed file is of."""
    owners: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        for file in distribution.files or []:
            if file.suffix in {".py", ".so"}:
                path = os.path.realpath(str(distribution.locate_file(file)))
                owners.setdefault(path, []).append(name)
    return owners


def _imports(file: Path) -> set[str]:
    """Modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


if __name__ == "__main__":
    main()
