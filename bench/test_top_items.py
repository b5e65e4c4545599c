"""top_items on the CPU against PyTorch's way to write it; docs/benchmarks.md says how."""

from __future__ import annotations

import pytest
import torch

from bench.limits import products, reads
from bench.peers import compare, compiled
from bench.records import OURS
from plr_kernels import top_items, use_backend

K = 20


@pytest.mark.parametrize(
    ("rows", "vocabulary", "dim", "rounds"),
    [
        # One user, a few and a batch: on Beauty at d = 64, on CDs & Vinyl at the paper's d = 256.
        *(
            pytest.param(rows, 12_101, 64, rounds, id=f"R{rows} V12101 D64 k{K}")
            for rows, rounds in ((1, 200), (32, 100), (256, 30))
        ),
        *(
            pytest.param(rows, 87_969, 256, rounds, id=f"R{rows} V87969 D256 k{K}", marks=pytest.mark.large)
            for rows, rounds in ((1, 50), (32, 30), (256, 15))
        ),
        pytest.param(1, 300, 16, 2, id=f"R1 V300 D16 k{K}", marks=pytest.mark.tiny),
    ],
)
def test_ranking(benchmark, rows, vocabulary, dim, rounds):
    torch.manual_seed(0)
    states, items = torch.randn(rows, dim), torch.randn(vocabulary, dim)

    def ours():
        with use_backend("cpp"):
            return [top_items(states, items, K)[0]]

    def plain(states, items):
        return (states @ items.T).topk(K).values

    fused = compiled(plain)
    implementations = {
        OURS: ours,
        "eager (h @ E.T).topk(k)": lambda: [plain(states, items)],
        "the same under torch.compile": lambda: [fused(states, items)],
    }
    limit = reads(forward=items.nbytes) if rows == 1 else products(rows, vocabulary, dim, backward=0)
    compare(benchmark, implementations, rounds, limit)


@pytest.mark.parametrize(
    ("rows", "vocabulary", "dim", "rounds"),
    [
        pytest.param(32, 12_101, 64, 100, id=f"R32 V12101 D64 k{K} bfloat16"),
        pytest.param(32, 87_969, 256, 30, id=f"R32 V87969 D256 k{K} bfloat16", marks=pytest.mark.large),
        pytest.param(256, 87_969, 256, 15, id=f"R256 V87969 D256 k{K} bfloat16", marks=pytest.mark.large),
        pytest.param(32, 300, 16, 2, id=f"R32 V300 D16 k{K} bfloat16", marks=pytest.mark.tiny),
    ],
)
def test_ranking_in_bfloat16(benchmark, rows, vocabulary, dim, rounds):
    """Ours returns float32 scores; those of (h @ E.T) are rounded to bfloat16."""
    torch.manual_seed(0)
    states, items = torch.randn(rows, dim).bfloat16(), torch.randn(vocabulary, dim).bfloat16()

    def ours():
        with use_backend("cpp"):
            return [top_items(states, items, K)[0]]

    implementations = {OURS: ours, "eager (h @ E.T).topk(k)": lambda: [(states @ items.T).topk(K).values]}
    compare(benchmark, implementations, rounds, products(rows, vocabulary, dim, backward=0, dtype=torch.bfloat16))
