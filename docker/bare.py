"""Copies an interpreter, a virtual environment of it and the libraries that they load.

    python docker/bare.py /bare /opt/vessa

For an image from scratch: no shell, no package manager, compiled modules without their sources.
"""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

# Of no use where nothing is installed, compiled, tested or drawn.
LEFT = (
    "*.a", "*.pyi", "__pycache__", "config-*", "distutils", "ensurepip", "f2py", "idlelib",
    "include", "lib2to3", "pydoc_data", "test", "test_files", "tests", "tkinter", "turtledemo",
    # A format that nobody sends.
    "_avif*", "libavif*",
)  # fmt: skip
NEEDED = ("/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/ssl/certs/ca-certificates.crt")
USER = "vessa:x:1000:1000::/tmp:/sbin/nologin\n"


def libraries(folders: list[Path]) -> set[Path]:
    """What programs and modules in folders load, by the loader itself, but for their own."""
    files = [file for folder in folders for file in folder.rglob("*.so*")]
    said = subprocess.run(
        ["ldd", str(Path(sys.executable).resolve()), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,  # it ends with 1 for a file that is not dynamic
    ).stdout
    words = {Path(word) for word in said.split() if word.startswith("/") and word[-1] != ":"}
    return {file for file in words if not any(file.is_relative_to(f) for f in folders)}


def main() -> None:
    """Copy all."""
    target, environment = Path(sys.argv[1]), Path(sys.argv[2])
    stdlib = Path(sysconfig.get_path("stdlib"))
    for folder, others in ((stdlib, ("dist-packages", "site-packages")), (environment, ())):
        left = shutil.ignore_patterns(*LEFT, *others)
        shutil.copytree(folder, target / folder.relative_to("/"), symlinks=True, ignore=left)
    compileall.compile_dir(target, quiet=1, legacy=True, stripdir=target, workers=0)
    for source in target.rglob("*.py"):
        if source.with_suffix(".pyc").exists():
            source.unlink()
    interpreter = Path(sys.executable).resolve()
    loaded = libraries([stdlib, environment])
    for file in filter(Path.exists, {interpreter, *loaded, *map(Path, NEEDED)}):
        place = target / file.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place)
    link = target / environment.relative_to("/") / "bin" / "python"
    link.unlink()
    link.symlink_to(interpreter)
    (target / "etc" / "passwd").write_text(USER)
    for name in ("tmp", "work"):
        (target / name).mkdir()
    (target / "tmp").chmod(0o1777)


if __name__ == "__main__":
    main()
