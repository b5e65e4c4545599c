"""top_mixture_items on the CPU against PyTorch's way to write it; docs/benchmarks.md says how."""

from __future__ import annotations

import pytest
import torch

from bench.limits import products, reads
from bench.peers import compare, compiled
from bench.records import OURS
from plr_kernels import top_items, top_mixture_items, use_backend

K = 20


@pytest.mark.parametrize(
    ("rows", "streams", "vocabulary", "dim", "rounds"),
    [
        # One user and a batch: on Beauty at d = 64, on CDs & Vinyl at the paper's d = 256.
        pytest.param(1, 4, 12_101, 64, 100, id=f"R1 M4 V12101 D64 k{K}"),
        pytest.param(256, 4, 12_101, 64, 15, id=f"R256 M4 V12101 D64 k{K}"),
        pytest.param(1, 4, 87_969, 256, 30, id=f"R1 M4 V87969 D256 k{K}", marks=pytest.mark.large),
        pytest.param(256, 2, 87_969, 256, 7, id=f"R256 M2 V87969 D256 k{K}", marks=pytest.mark.large),
        pytest.param(1, 2, 300, 16, 2, id=f"R1 M2 V300 D16 k{K}", marks=pytest.mark.tiny),
    ],
)
def test_ranking(benchmark, rows, streams, vocabulary, dim, rounds):
    """Logits of standard deviation 4, as trained models have them. Beside them `top_items` with one of the streams."""
    torch.manual_seed(0)
    states, items = 4 * torch.randn(rows, streams, dim) / dim**0.5, torch.randn(vocabulary, dim)
    log_weights = torch.log_softmax(torch.randn(rows, streams), dim=1)

    def ours():
        with use_backend("cpp"):
            return [top_mixture_items(states, log_weights, items, K)[0]]

    def one_stream():
        with use_backend("cpp"):
            return [top_items(states[:, 0], items, K)[0]]

    def plain(states, log_weights, items):
        log_p = torch.log_softmax(states @ items.T, dim=2) + log_weights[:, :, None]
        return torch.logsumexp(log_p, dim=1).topk(K).values

    fused = compiled(plain)
    single = "top_items, one stream"
    implementations = {
        OURS: ours,
        "eager logsumexp(log_softmax(z @ E.T)).topk(k)": lambda: [plain(states, log_weights, items)],
        "the same under torch.compile": lambda: [fused(states, log_weights, items)],
        single: one_stream,
    }
    limit = reads(forward=items.nbytes) if rows == 1 else products(rows * streams, vocabulary, dim, backward=0)
    compare(benchmark, implementations, rounds, limit, unchecked=frozenset((single,)))
