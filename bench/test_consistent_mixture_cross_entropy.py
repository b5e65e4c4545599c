"""consistent_mixture_cross_entropy on the CPU against the two operators it is made of, and PyTorch's way to write it.

docs/benchmarks.md says how.
"""

from __future__ import annotations

import pytest
import torch

from bench.limits import products
from bench.peers import compare, compiled, training_step
from bench.records import OURS
from plr_kernels import consistent_mixture_cross_entropy, mixture_cross_entropy, pairwise_kl
from plr_kernels.consistent_mixture_cross_entropy.reference import consistent_mixture_cross_entropy as formula


@pytest.mark.parametrize(
    ("histories", "streams", "vocabulary", "dim", "rounds"),
    [
        # One and two streams on Beauty at d = 64, two on CDs & Vinyl at the paper's d = 256.
        pytest.param(256, 1, 12_101, 64, 15, id="N256 M1 V12101 D64"),
        pytest.param(256, 2, 12_101, 64, 15, id="N256 M2 V12101 D64"),
        pytest.param(256, 2, 87_969, 256, 5, id="N256 M2 V87969 D256", marks=pytest.mark.large),
        pytest.param(8, 2, 300, 16, 2, id="N8 M2 V300 D16", marks=pytest.mark.tiny),
    ],
)
def test_training_step(benchmark, histories, streams, vocabulary, dim, rounds):
    torch.manual_seed(0)
    leaves = (
        torch.randn(histories, 2, streams, dim) / 2,
        torch.log_softmax(torch.randn(histories, 2, streams), dim=2),
        torch.randn(vocabulary, dim) / 4,
    )
    targets, drawn = torch.randint(vocabulary, (histories,)), torch.randint(streams, (histories,))
    numbers, of_views = torch.arange(histories), targets.repeat_interleave(2)

    def one_by_one(states, log_weights, items):
        cross_entropy = mixture_cross_entropy(states.flatten(0, 1), log_weights.flatten(0, 1), items, of_views)
        return cross_entropy + pairwise_kl(states[numbers, :, drawn], items)

    def plain(states, log_weights, items):
        return formula(states, log_weights, items, targets, drawn, 1.0, 1.0, -100)[0]

    implementations = {
        OURS: training_step(
            lambda *all_three: consistent_mixture_cross_entropy(*all_three, targets, drawn, weight=1.0)[0],
            *leaves,
            backend="cpp",
            divided=False,
        ),
        "mixture_cross_entropy and pairwise_kl": training_step(one_by_one, *leaves, backend="cpp", divided=False),
        "eager formula": training_step(plain, *leaves),
        "formula under torch.compile": training_step(compiled(plain), *leaves),
    }
    compare(benchmark, implementations, rounds, limit=products(histories * 2 * streams, vocabulary, dim, both=3))
