"""info_nce on the CPU against its formula in eager PyTorch and under torch.compile; bench/peers.py says how."""

import pytest
import torch

from bench.peers import OURS, compare, compiled, training_step
from plr_kernels import info_nce
from plr_kernels.info_nce.reference import info_nce as formula

# G, B, D and rounds: a small batch at d = 64, the paper's batch at d = 64 and at its d = 256.
SHAPES = [(4, 256, 64, 30), (4, 2048, 64, 5), (4, 2048, 256, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_step(benchmark, shape):
    groups, batch, dim, rounds = shape
    torch.manual_seed(0)
    leaves = torch.randn(groups, batch, dim), torch.randn(groups, batch, dim)

    def plain(view1, view2):
        return formula(view1, view2, 0.1)

    rivals = {
        OURS: training_step(lambda *views: info_nce(*views, temperature=0.1), *leaves, backend="cpp"),
        "eager formula": training_step(plain, *leaves),
        "formula under torch.compile": training_step(compiled(plain), *leaves),
    }
    compare(benchmark, rivals, rounds)
