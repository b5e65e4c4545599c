"""mixture_cross_entropy on the CPU against PyTorch's way to write it; docs/benchmarks.md says how."""

from __future__ import annotations

import pytest
import torch

from bench.limits import products
from bench.peers import compare, compiled, training_step
from bench.records import OURS
from plr_kernels import mixture_cross_entropy


@pytest.mark.parametrize(
    ("rows", "streams", "vocabulary", "dim", "rounds"),
    [
        # Two and four streams on Beauty at d = 64, two on CDs & Vinyl at the paper's d = 256.
        pytest.param(256, 2, 12_101, 64, 15, id="R256 M2 V12101 D64"),
        pytest.param(256, 4, 12_101, 64, 10, id="R256 M4 V12101 D64"),
        pytest.param(256, 2, 87_969, 256, 5, id="R256 M2 V87969 D256", marks=pytest.mark.large),
        pytest.param(8, 2, 300, 16, 2, id="R8 M2 V300 D16", marks=pytest.mark.tiny),
    ],
)
def test_training_step(benchmark, rows, streams, vocabulary, dim, rounds):
    torch.manual_seed(0)
    leaves = (
        torch.randn(rows, streams, dim) / 2,
        torch.log_softmax(torch.randn(rows, streams), dim=1),
        torch.randn(vocabulary, dim) / 4,
    )
    targets = torch.randint(vocabulary, (rows,))

    def plain(states, log_weights, items):
        logits = states @ items.T  # [R, M, V]
        own = logits.gather(2, targets[:, None, None].expand(-1, states.shape[1], 1)).squeeze(2)
        return -torch.logsumexp(log_weights + own - torch.logsumexp(logits, dim=2), dim=1).mean()

    implementations = {
        OURS: training_step(
            lambda *all_three: mixture_cross_entropy(*all_three, targets), *leaves, backend="cpp", divided=False
        ),
        "eager logsumexp(z @ E.T)": training_step(plain, *leaves),
        "the same under torch.compile": training_step(compiled(plain), *leaves),
    }
    compare(benchmark, implementations, rounds, limit=products(rows * streams, vocabulary, dim, both=3))
