"""linear_cross_entropy on the CPU against PyTorch's ways to write it; bench/peers.py says how."""

import pytest
import torch
from torch.nn import functional

from bench.peers import OURS, compare, compiled, training_step
from plr_kernels import linear_cross_entropy

# R, V, D and rounds: Beauty at d = 64 with a small and a large batch, CDs & Vinyl at the paper's d = 256.
SHAPES = [(300, 12_101, 64, 20), (1024, 12_101, 64, 10), (1024, 87_969, 256, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_step(benchmark, shape):
    rows, vocabulary, dim, rounds = shape
    torch.manual_seed(0)
    leaves = torch.randn(rows, dim) / 2, torch.randn(vocabulary, dim) / 4
    targets = torch.randint(vocabulary, (rows,))

    def plain(states, items):
        return functional.cross_entropy(states @ items.T, targets)

    rivals = {
        OURS: training_step(lambda *both: linear_cross_entropy(*both, targets), *leaves, backend="cpp"),
        "eager cross_entropy(h @ E.T)": training_step(plain, *leaves),
        "the same under torch.compile": training_step(compiled(plain), *leaves),
    }
    # In PyTorch 2.13; at the largest shape one step takes it most of a minute.
    if hasattr(functional, "linear_cross_entropy") and vocabulary < 50_000:
        options = torch.nn.LinearCrossEntropyOptions()
        rivals["torch linear_cross_entropy, chunked"] = training_step(
            lambda *both: functional.linear_cross_entropy(*both, targets, options=options), *leaves
        )
    compare(benchmark, rivals, rounds)
