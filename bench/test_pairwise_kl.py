"""pairwise_kl on the CPU against its formula in eager PyTorch and under torch.compile; bench/peers.py says how."""

import pytest
import torch

from bench.peers import OURS, compare, compiled, training_step
from plr_kernels import pairwise_kl
from plr_kernels.pairwise_kl.reference import pairwise_kl as formula

# B, N, V, D and rounds: Beauty at d = 64, CDs & Vinyl at the paper's d = 256.
SHAPES = [(256, 4, 12_101, 64, 10), (256, 4, 87_969, 256, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_step(benchmark, shape):
    batch, group, vocabulary, dim, rounds = shape
    torch.manual_seed(0)
    leaves = torch.randn(batch, group, dim) / 2, torch.randn(vocabulary, dim) / 4

    def plain(states, items):
        return formula(states, items, 1.0, False)

    rivals = {
        OURS: training_step(pairwise_kl, *leaves, backend="cpp"),
        "eager formula": training_step(plain, *leaves),
        "formula under torch.compile": training_step(compiled(plain), *leaves),
    }
    compare(benchmark, rivals, rounds)
