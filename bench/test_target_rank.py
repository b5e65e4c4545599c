"""target_rank and target_mixture_rank on the CPU against PyTorch's ways to write them; docs/benchmarks.md says how."""

from __future__ import annotations

import pytest
import torch

from bench.limits import products, reads
from bench.peers import compare, compiled
from bench.records import OURS
from plr_kernels import target_mixture_rank, target_rank, use_backend


@pytest.mark.parametrize(
    ("rows", "vocabulary", "dim", "rounds"),
    [
        # One user and a batch of an evaluation: on Beauty at d = 64, on CDs & Vinyl at the paper's d = 256.
        pytest.param(1, 12_101, 64, 200, id="R1 V12101 D64"),
        pytest.param(256, 12_101, 64, 30, id="R256 V12101 D64"),
        pytest.param(1, 87_969, 256, 50, id="R1 V87969 D256", marks=pytest.mark.large),
        pytest.param(256, 87_969, 256, 15, id="R256 V87969 D256", marks=pytest.mark.large),
        pytest.param(3, 300, 16, 2, id="R3 V300 D16", marks=pytest.mark.tiny),
    ],
)
def test_counting(benchmark, rows, vocabulary, dim, rounds):
    torch.manual_seed(0)
    states, items, targets = integers(rows, dim), integers(vocabulary, dim), torch.randint(vocabulary, (rows,))

    def ours():
        with use_backend("cpp"):
            return list(target_rank(states, items, targets))

    def plain(states, items):
        scores = states @ items.T
        own = scores.gather(1, targets[:, None])
        return (scores > own).sum(dim=1), (scores == own).sum(dim=1) - 1

    fused = compiled(plain)
    implementations = {
        OURS: ours,
        "eager, h @ E.T compared": lambda: list(plain(states, items)),
        "the same under torch.compile": lambda: list(fused(states, items)),
    }
    limit = reads(forward=items.nbytes) if rows == 1 else products(rows, vocabulary, dim, backward=0)
    compare(benchmark, implementations, rounds, limit)


@pytest.mark.parametrize(
    ("rows", "streams", "vocabulary", "dim", "rounds"),
    [
        pytest.param(1, 4, 12_101, 64, 100, id="R1 M4 V12101 D64"),
        pytest.param(256, 4, 12_101, 64, 15, id="R256 M4 V12101 D64"),
        pytest.param(1, 4, 87_969, 256, 30, id="R1 M4 V87969 D256", marks=pytest.mark.large),
        pytest.param(256, 2, 87_969, 256, 7, id="R256 M2 V87969 D256", marks=pytest.mark.large),
        pytest.param(3, 2, 300, 16, 2, id="R3 M2 V300 D16", marks=pytest.mark.tiny),
    ],
)
def test_counting_under_mixtures(benchmark, rows, streams, vocabulary, dim, rounds):
    """Two sweeps of the items, or two passes over the scores."""
    torch.manual_seed(0)
    states, items = torch.randn(rows, streams, dim) / 2, torch.randn(vocabulary, dim) / 4
    log_weights = torch.log_softmax(torch.randn(rows, streams), dim=1)
    targets = torch.randint(vocabulary, (rows,))

    def ours():
        with use_backend("cpp"):
            return [target_mixture_rank(states, log_weights, items, targets)[0]]

    def plain(states, log_weights, items):
        log_p = torch.log_softmax(states @ items.T, dim=2) + log_weights[:, :, None]
        scores = torch.logsumexp(log_p, dim=1)  # [R, V]
        own = scores.gather(1, targets[:, None])
        return (scores > own).sum(dim=1), (scores == own).sum(dim=1) - 1

    fused = compiled(plain)
    eager, under_compile = "eager, logsumexp(log_softmax(z @ E.T)) compared", "the same under torch.compile"
    implementations = {
        OURS: ours,
        eager: lambda: [plain(states, log_weights, items)[0]],
        under_compile: lambda: [fused(states, log_weights, items)[0]],
    }
    limit = (
        reads(forward=2 * items.nbytes)
        if rows == 1
        else products(rows * streams, vocabulary, dim, forward=2, backward=0)
    )
    # Counts: of scores that are equal up to rounding one may be on the other side.
    compare(benchmark, implementations, rounds, limit, unchecked=frozenset((eager, under_compile)))


def integers(*shape: int) -> torch.Tensor:
    """Small integers, whose sums are exact: every implementation has the same counts."""
    return torch.randint(-3, 4, shape).float()
