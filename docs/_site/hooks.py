"""For the site: pages of ``api/`` list every public name of a room, and links into ``reports/`` find their files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """What the pages link to under ``reports/`` is part of the site."""
    pages = [file for file in files.documentation_pages() if file.abs_src_path]
    linked = {name for page in pages for name in re.findall(r"\]\(\.\./(reports/[^)#]+)", page.content_string)}
    wanted = sorted(linked | {"reports/example/page.png"})
    for name in wanted:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """``{{ room lidc_xai.explain }}`` becomes every name of that room's stub; ``../reports/`` becomes ``reports/``."""
    if page.file.src_uri.startswith("reports/"):
        return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", markdown)
    markdown = markdown.replace("](../reports/", "](reports/")
    return re.sub(r"\{\{ room ([\w.]+) \}\}", lambda found: _names(found[1]), markdown)


def _names(room: str) -> str:
    stub = ROOT.joinpath(*room.split("."), "__init__.pyi")
    parts = []
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            parts += [f"::: {room}.{node.module}.{one.name}" for one in node.names]
    return "\n\n".join(parts)
