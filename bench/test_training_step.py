"""A whole training step of PLR: the fused operators against their formulas; bench/training_step.py says of what."""

import sys

import pytest

from bench.peers import OURS, compare
from bench.training_step import CONFIG, ITEMS, adam_step, process_peak

BACKENDS = {OURS: "auto", "reference backend": "reference"}


@pytest.mark.large
@pytest.mark.parametrize(
    "rounds", [pytest.param(5, id=f"B{CONFIG.batch_size} V{ITEMS} M2 T2 D{CONFIG.dim} L{CONFIG.layers} n50")]
)
def test_training_step(benchmark, rounds):
    compare(benchmark, {name: adam_step(backend) for name, backend in BACKENDS.items()}, rounds)
    if sys.platform == "linux":
        benchmark.extra_info["process_peak_bytes"] = {name: process_peak(backend) for name, backend in BACKENDS.items()}
