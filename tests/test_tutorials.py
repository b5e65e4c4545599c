"""The tutorials' cells run, one after the other, as in a notebook."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # what a reader is told, of small data and the like
@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem)
def test_the_cells_of_a_tutorial_run(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = {"__name__": "__main__"}
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert any("assert " in "".join(cell["source"]) for cell in cells)
    for number, cell in enumerate(cells):
        assert cell["outputs"] == [], "outputs are not kept: clear them"
        exec(compile("".join(cell["source"]), f"{notebook.name}, code cell {number}", "exec"), names)
