"""pairwise_kl on the CPU against its formula in eager PyTorch and under torch.compile; docs/benchmarks.md says how."""

from __future__ import annotations

import pytest
import torch

from bench.limits import products
from bench.peers import compare, compiled, training_step
from bench.records import OURS
from plr_kernels import pairwise_kl
from plr_kernels.pairwise_kl.reference import pairwise_kl as formula


def shapes(suffix=""):
    """B, N, V, D and rounds: Beauty at d = 64, CDs & Vinyl at the paper's d = 256."""
    return pytest.mark.parametrize(
        ("batch", "group", "vocabulary", "dim", "rounds"),
        [
            pytest.param(256, 4, 12_101, 64, 15, id=f"B256 N4 V12101 D64{suffix}"),
            pytest.param(256, 4, 87_969, 256, 5, id=f"B256 N4 V87969 D256{suffix}", marks=pytest.mark.large),
            pytest.param(4, 2, 300, 16, 2, id=f"B4 N2 V300 D16{suffix}", marks=pytest.mark.tiny),
        ],
    )


def plain(states, items):
    return formula(states, items, 1.0, False)


def inputs(batch, group, vocabulary, dim):
    torch.manual_seed(0)
    return torch.randn(batch, group, dim) / 2, torch.randn(vocabulary, dim) / 4


@shapes()
def test_training_step(benchmark, batch, group, vocabulary, dim, rounds):
    leaves = inputs(batch, group, vocabulary, dim)
    implementations = {
        OURS: training_step(pairwise_kl, *leaves, backend="cpp", divided=False),
        "eager formula": training_step(plain, *leaves),
        "formula under torch.compile": training_step(compiled(plain), *leaves),
    }
    compare(benchmark, implementations, rounds, limit=products(batch * group, vocabulary, dim, both=3))


@shapes(" bfloat16")
def test_bfloat16(benchmark, batch, group, vocabulary, dim, rounds):
    """Ours sums in float32, as the formula in float32 does on the same numbers; in bfloat16 the formula is far off."""
    leaves = [leaf.bfloat16() for leaf in inputs(batch, group, vocabulary, dim)]
    implementations = {
        OURS: training_step(pairwise_kl, *leaves, backend="cpp", divided=False),
        "eager formula in float32": training_step(plain, *(leaf.float() for leaf in leaves)),
        "eager formula in bfloat16": training_step(plain, *leaves),
    }
    limit = products(batch * group, vocabulary, dim, dtype=torch.bfloat16, both=3)
    compare(benchmark, implementations, rounds, limit, unchecked=frozenset({"eager formula in bfloat16"}))
