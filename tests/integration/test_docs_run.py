"""The documents' commands and Python do what they say, and the tutorial's cells run."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import golden_answers
from support import ROOT, RunningServer, engine_of, picture, running
from support_docs import Reader, blocks, write_scans
from vessa_client import ClassDefinition, VessaClient
from vessa_server.model.vessa import Vessa

RECIPES = re.split(r"(?=^## )", (ROOT / "docs" / "recipes.md").read_text(), flags=re.MULTILINE)
NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Vessa) -> Iterator[RunningServer]:
    """A server whose default bank has a heart, too."""
    with running(engine_of(tmp_path_factory.mktemp("server"), model=model)) as started:
        with VessaClient(started.grpc) as client:
            image, labels = picture(7)
            client.add_template(image, np.minimum(labels, 1), [ClassDefinition(name="myocardium")])
        yield started


@pytest.mark.parametrize("name", ["README.md", "quickstart.md", "client.md", "serving.md"])
def test_blocks_run_or_say_why_not(server: RunningServer, tmp_path: Path, name: str) -> None:
    document = ROOT / name if name == "README.md" else ROOT / "docs" / name
    write_scans(tmp_path, classes=2)
    assert Reader(tmp_path, server).follow(document.read_text()) > 0
    made = {"README.md": "outputs/heart.png", "quickstart.md": "outputs/segmented"}
    assert (tmp_path / made.get(name, ".")).exists()


@pytest.mark.parametrize("recipe", RECIPES[1:], ids=lambda text: text.partition("\n")[0][3:])
def test_recipes_run(server: RunningServer, tmp_path: Path, recipe: str) -> None:
    first = next(line for block in blocks(recipe) for line in block.lines if " -c " in line)
    write_scans(tmp_path, classes=first.count(" -c "))
    assert Reader(tmp_path, server).follow(recipe) >= 4
    assert list(tmp_path.rglob("*_pseudo.*"))


def test_the_tutorial_runs_with_the_shipped_weights(tmp_path: Path) -> None:
    assert NOTEBOOK.stat().st_size < 300_000
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    script = tmp_path / "tutorial.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells))
    with running(golden_answers.engine(tmp_path / "bank")) as started:
        done = subprocess.run(
            [sys.executable, "-W", "error", script],
            cwd=NOTEBOOK.parent,
            env=os.environ | {"VESSA_SERVER": started.grpc, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        assert not started.engine.banks.get("tutorial").snapshot().templates
    assert "16 templates" in done.stdout
    first, before, after = (
        ast.literal_eval(scores) for scores in re.findall(r"\{.+\}", done.stdout)
    )
    assert first["left ventricle"] > 0.7
    assert after["right ventricle"] > before["right ventricle"]
    assert list(tmp_path.glob("vessa-tutorial-*/patient028_frame01_pseudo.nii.gz"))
