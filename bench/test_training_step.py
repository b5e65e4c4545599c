"""A whole training step of PLR: the fused operators against their formulas; bench/training_step.py says of what."""

from __future__ import annotations

import sys

import pytest

from bench.failures import noted
from bench.peers import compare
from bench.records import OURS
from bench.training_step import CONFIG, ITEMS, TINY, adam_step, process_peak

BACKENDS = {OURS: "auto", "reference backend": "reference"}


def shape(config, items):
    sizes = f"M{config.streams} T{config.steps} D{config.dim} L{config.layers} n{config.max_length}"
    return f"B{config.batch_size} V{items} {sizes}"


@pytest.mark.parametrize(
    ("config", "items", "rounds"),
    [
        pytest.param(CONFIG, ITEMS, 5, id=shape(CONFIG, ITEMS), marks=pytest.mark.large),
        pytest.param(TINY, 30, 2, id=shape(TINY, 30), marks=pytest.mark.tiny),
    ],
)
def test_training_step(benchmark, config, items, rounds):
    compare(benchmark, {name: adam_step(backend, config, items) for name, backend in BACKENDS.items()}, rounds)
    if sys.platform == "linux" and config is CONFIG:
        with noted(benchmark.extra_info["failed"], "peak of a whole process"):
            peaks = {name: process_peak(backend) for name, backend in BACKENDS.items()}
            benchmark.extra_info["process_peak_bytes"] = peaks
