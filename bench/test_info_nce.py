"""info_nce on the CPU against its formula in eager PyTorch and under torch.compile; docs/benchmarks.md says how."""

from __future__ import annotations

import pytest
import torch

from bench.limits import products
from bench.peers import compare, compiled, training_step
from bench.records import OURS
from plr_kernels import info_nce
from plr_kernels.info_nce.reference import info_nce as formula


@pytest.mark.parametrize(
    ("groups", "batch", "dim", "rounds"),
    # A small batch at d = 64, the paper's batch at d = 64 and at its d = 256.
    [
        pytest.param(4, 256, 64, 30, id="G4 B256 D64"),
        pytest.param(4, 2048, 64, 7, id="G4 B2048 D64"),
        pytest.param(4, 2048, 256, 7, id="G4 B2048 D256", marks=pytest.mark.large),
        pytest.param(2, 8, 16, 2, id="G2 B8 D16", marks=pytest.mark.tiny),
    ],
)
def test_training_step(benchmark, groups, batch, dim, rounds):
    torch.manual_seed(0)
    leaves = torch.randn(groups, batch, dim), torch.randn(groups, batch, dim)

    def plain(view1, view2):
        return formula(view1, view2, None, 0.1)

    implementations = {
        OURS: training_step(lambda *views: info_nce(*views, temperature=0.1), *leaves, backend="cpp"),
        "eager formula": training_step(plain, *leaves),
        "formula under torch.compile": training_step(compiled(plain), *leaves),
    }
    compare(benchmark, implementations, rounds, limit=products(batch, batch, dim, groups=groups))
