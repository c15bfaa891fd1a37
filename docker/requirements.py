"""Prints what packages of this repository depend on, but for each other and for the heavy layer.

    python docker/requirements.py proto services/ssl_trainer[h5]

So an image installs dependencies before the code, which changes more often, and PyTorch once.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

HERE = {"torch", "torchvision", "sam2", "vessa-client", "vessa-common"}


def dependencies(package: str) -> list[str]:
    """Of a folder, with those of ``[EXTRA]`` where one is named."""
    folder, _, extra = package.removesuffix("]").partition("[")
    project = tomllib.loads(Path(folder, "pyproject.toml").read_text())["project"]
    wanted: list[str] = project["dependencies"]
    return wanted + (project["optional-dependencies"][extra] if extra else [])


def main() -> None:
    """Print a requirements file, each once."""
    wanted = dict.fromkeys(line for package in sys.argv[1:] for line in dependencies(package))
    for line in wanted:
        if re.split(r"[^\w-]", line, maxsplit=1)[0] not in HERE:
            print(line)


if __name__ == "__main__":
    main()
