"""candidate_cross_entropy on the CPU against PyTorch's way to write it; docs/benchmarks.md says how."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bench.peers import compare, compiled, training_step
from bench.records import OURS
from plr_kernels import candidate_cross_entropy


@pytest.mark.parametrize(
    ("rows", "count", "vocabulary", "dim", "per_row", "rounds"),
    [
        # Candidates of all rows, as training samples them, and of each row its own, as re-ranking has them.
        pytest.param(1024, 256, 12_101, 64, False, 20, id="R1024 K256 V12101 D64"),
        pytest.param(1024, 256, 12_101, 64, True, 10, id="R1024 K256 V12101 D64 own"),
        pytest.param(1024, 4096, 87_969, 256, False, 5, id="R1024 K4096 V87969 D256", marks=pytest.mark.large),
        pytest.param(8, 16, 300, 16, False, 2, id="R8 K16 V300 D16", marks=pytest.mark.tiny),
    ],
)
def test_training_step(benchmark, rows, count, vocabulary, dim, per_row, rounds):
    torch.manual_seed(0)
    leaves = torch.randn(rows, dim) / 2, torch.randn(vocabulary, dim) / 4
    targets = torch.randint(vocabulary, (rows,))
    candidates = torch.randint(vocabulary, (rows, count) if per_row else (count,))
    hits = candidates == targets[:, None]

    def plain(states, items):
        own = (states * functional.embedding(targets, items)).sum(dim=1, keepdim=True)
        listed = functional.embedding(candidates, items)
        scores = (listed @ states[:, :, None]).squeeze(2) if per_row else states @ listed.T
        logits = torch.cat([own, scores.masked_fill(hits, float("-inf"))], dim=1)
        return functional.cross_entropy(logits, torch.zeros_like(targets))

    implementations = {
        OURS: training_step(
            lambda *both: candidate_cross_entropy(*both, targets, candidates), *leaves, backend="cpp"
        ),
        "eager cross_entropy over looked-up items": training_step(plain, *leaves),
        "the same under torch.compile": training_step(compiled(plain), *leaves),
    }
    compare(benchmark, implementations, rounds)
