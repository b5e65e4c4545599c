"""Every way takes the turns that are its own, and the layers are left as they were."""

import itertools

import pytest
import torch

from bench.epochs import Epochs, configurations
from bench.linear_products import SYSTEMS, WAYS, measure
from plr.data import prepare
from plr.models.layers import linear


@pytest.mark.parametrize("halved", [True, False])
def test_each_way_has_its_turns(halved, tmp_path, monkeypatch):
    if linear._onednn() is None:
        pytest.skip("this build of PyTorch has no oneDNN product")
    path = tmp_path / "data.txt"
    lines = [[f"u{user}", *(f"i{(user * 7 + step) % 24}" for step in range(5 + user % 9))] for user in range(40)]
    path.write_text("".join(" ".join(line) + "\n" for line in lines))
    every = configurations(8, 4, [], "unused", ["PLR, M 2, T 1"])
    monkeypatch.setattr(linear, "_BFLOAT16_BY_ONEDNN", halved)
    turns, turn, taken = [], Epochs.turn, (linear._ONEDNN, linear.few_counts)

    def noted(self):
        turns.append((linear._ONEDNN is not None, torch.is_autocast_enabled("cpu"), linear.few_counts is taken[1]))
        turn(self)

    monkeypatch.setattr(Epochs, "turn", noted)
    ticks = itertools.count()
    found = measure(
        {name: every[name] for name in SYSTEMS}, prepare(path), share=1.0, rounds=2, targets=16,
        clock=lambda: next(ticks),
    )  # fmt: skip
    ways = [name for name, way in WAYS.items() if halved or not way[1]]
    assert len(ways) == (5 if halved else 3)
    there = [WAYS[name] for name in ways]
    assert turns == [*there[::-1], *there, *there[::-1]] * 2
    assert (linear._ONEDNN, linear.few_counts) == taken
    for each in found.values():
        assert each["seconds"] == {way: [1, 1] for way in ways}
        assert each["ratios"] == {way: [1, 1] for way in ways[1:]}
