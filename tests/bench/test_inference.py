"""The table of answers beside plain PyTorch, at a tiny size."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from bench import inference

SMALL = ["--items", "60", "--dims", "16", "--users", "1", "--seconds", "0"]
EXPORTS = ["sasrec, AOTInductor", "sasrec, ONNX Runtime"]
PACKAGES = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]


def measured(out: Path, *options: str) -> list[dict]:
    inference.main([*SMALL, "--out", str(out), *options])
    return json.loads(out.read_text())["ratios_to_plain"]


def test_a_row_for_each_shape_and_a_column_for_each_system(tmp_path):
    rows = measured(tmp_path / "found.json", "--users", "1", "3")
    shapes = [(row["users"], row["lengths"]) for row in rows]
    assert shapes == [(1, [50, 50]), (1, [3, 50]), (3, [50, 50]), (3, [3, 50])]
    for row in rows:
        for system in (*inference.SYSTEMS, inference.READ):
            low, median, high = row[system]
            assert 0 < low <= median <= high
    header = (tmp_path / "found.md").read_text().splitlines()[4]
    columns = "V | d | users | items each | plain, ms a call | sasrec | plr as printed | plr | table, read once"
    assert header == f"| {columns} |"


def test_what_answers_otherwise_is_not_timed(tmp_path, monkeypatch):
    def wrong(self, item_ids, lengths):
        return (self.table[item_ids[:, 0]] @ self.table.T).topk(inference.K)

    monkeypatch.setattr(inference.PlainSASRec, "forward", wrong)
    with pytest.raises(AssertionError):
        measured(tmp_path / "found.json")
    assert not (tmp_path / "found.json").exists()


@pytest.mark.skipif(bool(PACKAGES), reason=f"not installed: {', '.join(PACKAGES)}")
@pytest.mark.skipif(not (which("g++") or which("clang++")), reason="no C++ compiler here")
def test_exported_programs_answer_beside_the_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "EXPORTED", ("sasrec",))  # compiling takes a minute
    row = measured(tmp_path / "found.json", "--exports")[0]
    assert set(EXPORTS) <= set(row)
    assert (tmp_path / "found.md").read_text().splitlines()[4].endswith("| " + " | ".join(EXPORTS) + " |")
