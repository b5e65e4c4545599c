"""A hook of MkDocs: the pages and records outside docs/ that the documentation names, and tutorials as pages.

The pages are written to be read in the repository, so their links are paths in it. On the site README.md is the
first page, what is in docs/ lies beside it, and everything else keeps its path.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ALSO = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "bench/README.md", "bench/results/*")
_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/, and a page for each notebook."""
    for pattern in ALSO:
        for path in sorted(ROOT.glob(pattern)):
            name = _place(path.relative_to(ROOT).as_posix())
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for notebook in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        name = f"tutorials/{notebook.stem}.md"
        files.append(File.generated(config, name, content=_page(notebook)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links, which are paths in the repository, to their places on the site."""
    own = page.file.src_uri
    source = next((path for path in _sources() if _place(path) == own), f"docs/{own}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        place = _place(target)
        return f"{match[1]}{posixpath.relpath(place, posixpath.dirname(own) or '.')}{match[3]}"

    return _LINK.sub(moved, markdown)


def _sources() -> list[str]:
    """The paths in the repository of the pages outside docs/."""
    return [path.relative_to(ROOT).as_posix() for pattern in ALSO for path in ROOT.glob(pattern)]


def _place(path: str) -> str:
    """Return where on the site a file of the repository is."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/tutorials/") and path.endswith(".ipynb"):
        path = os.path.splitext(path)[0] + ".md"
    return path.removeprefix("docs/")


def _page(notebook: Path) -> str:
    """Return a notebook's cells as Markdown."""
    content: dict[str, Any] = json.loads(notebook.read_text(encoding="utf-8"))
    parts = []
    for cell in content["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.append(f"This page is the notebook `docs/tutorials/{notebook.name}`; its cells are run with the tests.")
    return "\n\n".join(parts) + "\n"
