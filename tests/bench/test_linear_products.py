"""Both products take the turns that are theirs, and the layers are left as they were."""

import itertools

import pytest

from bench.epochs import Epochs, configurations
from bench.linear_products import SYSTEMS, measure
from plr.data import prepare
from plr.models.layers import linear


def test_each_product_has_its_turns(tmp_path, monkeypatch):
    if linear._onednn() is None:
        pytest.skip("this build of PyTorch has no oneDNN product")
    path = tmp_path / "data.txt"
    lines = [[f"u{user}", *(f"i{(user * 7 + step) % 24}" for step in range(5 + user % 9))] for user in range(40)]
    path.write_text("".join(" ".join(line) + "\n" for line in lines))
    every = configurations(8, 4, [], "unused", ["PLR, M 2, T 1"])
    turns, turn, taken = [], Epochs.turn, linear._ONEDNN

    def noted(self):
        turns.append("PyTorch" if linear._ONEDNN is None else "oneDNN")
        turn(self)

    monkeypatch.setattr(Epochs, "turn", noted)
    ticks = itertools.count()
    found = measure(
        {name: every[name] for name in SYSTEMS}, prepare(path), share=1.0, rounds=2, targets=16,
        clock=lambda: next(ticks),
    )  # fmt: skip
    assert turns == ["oneDNN", "PyTorch", "PyTorch", "oneDNN", "oneDNN", "PyTorch"] * 2
    assert linear._ONEDNN is taken
    for each in found.values():
        assert each["seconds"] == {"PyTorch": [1, 1], "oneDNN": [1, 1]}
        assert each["ratio"] == 1
