"""The table of ranking by integers, at a tiny size."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from bench import integers
from plr_kernels import extension


@pytest.mark.skipif(extension._cpp.instruction_set("avx2") is None, reason="this CPU has no integers for ranking")
def test_a_case_says_what_was_measured(tmp_path, capsys):
    out = tmp_path / "integers.json"
    shape = ["--items", "4100", "--dims", "64", "--rows", "1", "3", "--k", "3"]
    integers.main(["--sets", "avx2", *shape, "--seconds", "0", "--record", "--out", str(out)])
    one, three = json.loads(out.read_text())["instruction_sets"]["avx2"]
    assert (one["taken"], three["taken"]) == (True, False)
    assert 3 <= one["rescored_a_row"] <= 30
    assert "| avx2 | 4,100 | 64 | 3 | 1 |" in out.with_suffix(".md").read_text()
    assert "| avx2 | 4,100 | 64 | 3 | 1 |" in capsys.readouterr().out
