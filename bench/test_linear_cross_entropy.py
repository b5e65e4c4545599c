"""linear_cross_entropy on the CPU against PyTorch's ways to write it; docs/benchmarks.md says how."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bench.limits import products
from bench.peers import compare, compiled, training_step
from bench.records import OURS
from plr_kernels import linear_cross_entropy

# Rows that PyTorch's chunked operator takes at a time: the best of 64, 128, 256, 512, 1024 and its own choice.
CHUNK = 256


@pytest.mark.parametrize(
    ("rows", "vocabulary", "dim", "rounds"),
    # Beauty at d = 64 with a small and a large batch, CDs & Vinyl at the paper's d = 256.
    [
        pytest.param(300, 12_101, 64, 20, id="R300 V12101 D64"),
        pytest.param(1024, 12_101, 64, 15, id="R1024 V12101 D64"),
        pytest.param(1024, 87_969, 256, 5, id="R1024 V87969 D256", marks=pytest.mark.large),
        pytest.param(8, 300, 16, 2, id="R8 V300 D16", marks=pytest.mark.tiny),
    ],
)
def test_training_step(benchmark, rows, vocabulary, dim, rounds):
    torch.manual_seed(0)
    leaves = torch.randn(rows, dim) / 2, torch.randn(vocabulary, dim) / 4
    targets = torch.randint(vocabulary, (rows,))

    def plain(states, items):
        return functional.cross_entropy(states @ items.T, targets)

    implementations = {
        OURS: training_step(lambda *both: linear_cross_entropy(*both, targets), *leaves, backend="cpp", divided=False),
        "eager cross_entropy(h @ E.T)": training_step(plain, *leaves),
        "the same under torch.compile": training_step(compiled(plain), *leaves),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # since PyTorch 2.13
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
        implementations[f"torch linear_cross_entropy, chunks of {CHUNK}"] = training_step(
            lambda *both: functional.linear_cross_entropy(*both, targets, options=options), *leaves, divided=False
        )
    compare(benchmark, implementations, rounds, limit=products(rows, vocabulary, dim, both=3))
