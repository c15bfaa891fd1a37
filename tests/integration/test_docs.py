"""Commands, links, settings, messages and tables of the documents are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import serving_tables
import ssl_tables
from support import ROOT
from support_docs import applications, blocks, messages

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_commands_and_their_options_exist(document: Path) -> None:
    known = applications()
    for block in blocks(document.read_text()):
        for line in block.lines if not block.language else []:
            words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
            if not words or words[0] not in known or len(words) < 2 or "|" in line:
                continue
            command = words[1:3] if words[1] in ("templates", "bank", "export") else words[1:2]
            shown = CliRunner().invoke(
                known[words[0]], [*command, "--help"], env={"COLUMNS": "200"}
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


def test_the_site_shows_every_page_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    shown = re.findall(r"[\w/.-]+\.md", navigation)
    assert len(shown) == len(set(shown))
    pages = {path.name for path in DOCUMENTS[1:]}
    assert {name for name in shown if "/" not in name} == pages | {"index.md"}


def test_messages_of_the_troubleshooting_page_exist() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^### (`+) ?(.+?) ?\1$", text, re.MULTILINE)
    assert len(quoted) == text.count("\n### ") > 20
    said = messages(ROOT / "proto" / "src" / "vessa_client", ROOT / "services")
    for _, message in quoted:
        # What differs may be at the end of a quotation in one place and of a message in another.
        assert any(message.strip("… ") in text for text in said), message


def test_tables_are_those_of_the_results_files() -> None:
    for document in ssl_tables.DOCUMENTS:
        text = document.read_text()
        assert "<!-- table " in text
        assert ssl_tables.filled(text) == text, "run python benchmarks/ssl_tables.py"
    text = serving_tables.DOCUMENT.read_text()
    assert "<!-- table " in text
    assert serving_tables.filled(text) == text, "run python benchmarks/serving_tables.py"
