"""What the site shows beside docs/: README.md as its home page, and what pages link to.

Pages are read on a forge, too, where links lead anywhere in the repository. Here a file outside of
docs/ is taken along below ``repository/``: Markdown as a page, source text as a page with one block
of code, anything else as it is.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
HOME = "README.md"
OUTSIDE = "repository"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)(?=[)#])")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# Suffixes of source text, and what highlights it.
LANGUAGES = {".proto": "protobuf", ".yaml": "yaml", ".toml": "toml", ".py": "python"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, the changelog, and what is linked, from page to page."""
    waiting = [HOME, "CHANGELOG.md", *(f"docs/{uri}" for uri in files.src_uris)]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if files.get_file_from_path(_place(path)) is None:
            files.append(_taken_along(path, config))
        if path.endswith(".md"):
            links = LINK.findall(FENCED.sub("", (ROOT / path).read_text()))
            targets = [_target(path, link) for link in links]
            waiting += [target for target in targets if (ROOT / target).is_file()]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where their targets are on the site."""
    uri = page.file.src_uri
    if page.file.generated_by and not page.file.abs_src_path:
        return markdown  # source text
    source = next(path for path in (HOME, _origin(uri)) if _place(path) == uri)
    here = posixpath.dirname(uri)

    def moved(link: re.Match[str]) -> str:
        return posixpath.relpath(_place(_target(source, link[0])), here)

    blocks = FENCED.findall(markdown)
    texts = [LINK.sub(moved, text) for text in FENCED.split(markdown)]
    return "".join(f"{text}{block}" for text, block in zip(texts, [*blocks, ""], strict=True))


def _target(path: str, link: str) -> str:
    """What a link of a file leads to; both are paths in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _place(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path == HOME:
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    stem, suffix = posixpath.splitext(path)
    return f"{OUTSIDE}/{stem}.md" if suffix in LANGUAGES else f"{OUTSIDE}/{path}"


def _origin(uri: str) -> str:
    """The file of the repository that is a page other than the home page."""
    inside = uri.startswith(f"{OUTSIDE}/")
    return uri.removeprefix(f"{OUTSIDE}/") if inside else f"docs/{uri}"


def _taken_along(path: str, config: MkDocsConfig) -> File:
    """A file from outside of docs/."""
    language = LANGUAGES.get(posixpath.splitext(path)[1])
    if language is None:
        return File.generated(config, _place(path), abs_src_path=str(ROOT / path))
    text = f"# {posixpath.basename(path)}\n\n```{language}\n{(ROOT / path).read_text()}```\n"
    return File.generated(config, _place(path), content=text)
