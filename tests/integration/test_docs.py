"""Code blocks of the documents run; commands and links in them exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import serving_tables
import ssl_tables
from support import ROOT, RunningServer

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    """Code blocks of a language; fences are taken in pairs, whatever their language."""
    pairs = re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return [text for named, text in pairs if named == language]


@pytest.mark.parametrize("name", ["README.md", "docs/client.md"])
def test_python_blocks_run(server: RunningServer, name: str) -> None:
    found = blocks(ROOT / name, "python")
    assert found
    for block in found:
        assert "localhost:50051" in block
        exec(compile(block.replace("localhost:50051", server.grpc), name, "exec"), {})


def _applications() -> dict[str, typer.Typer]:
    from ssl_trainer.cli import app as trainer
    from vessa_client.cli import app as client
    from vessa_server.cli import app as server

    return {"vessa": client, "vessa-server": server, "ssl-trainer": trainer}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_commands_and_their_options_exist(document: Path) -> None:
    applications = _applications()
    for block in blocks(document, ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
            if not words or words[0] not in applications or len(words) < 2 or "|" in line:
                continue
            command = words[1:3] if words[1] in ("templates", "export") else words[1:2]
            shown = CliRunner().invoke(
                applications[words[0]], [*command, "--help"], env={"COLUMNS": "200"}
            )
            assert shown.exit_code == 0, line
            for option in (w for w in words if w.startswith("-") and w != "-"):
                assert option in shown.output, f"{line}: {option}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert target.startswith("http") or (document.parent / target).exists(), target


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_all_settings_are_documented() -> None:
    from vessa_server.api.settings import ServerSettings

    text = (ROOT / "docs" / "serving.md").read_text()
    for name, field in ServerSettings.model_fields.items():
        assert f"| `VESSA_{name.upper()}` |" in text
        assert str(field.description) in text


def test_tables_are_those_of_the_results_files() -> None:
    for document in ssl_tables.DOCUMENTS:
        text = document.read_text()
        assert "<!-- table " in text
        assert ssl_tables.filled(text) == text, "run python benchmarks/ssl_tables.py"
    text = serving_tables.DOCUMENT.read_text()
    assert "<!-- table " in text
    assert serving_tables.filled(text) == text, "run python benchmarks/serving_tables.py"
