"""top_items on the CPU against PyTorch's way to write it; bench/peers.py says how."""

import pytest
import torch

from bench.peers import OURS, compare, compiled
from plr_kernels import top_items, use_backend

# R, V, D and rounds: one user, a few and a batch, on Beauty at d = 64 and on CDs & Vinyl at the paper's d = 256.
SHAPES = [
    *((rows, 12_101, 64, rounds) for rows, rounds in ((1, 200), (32, 100), (256, 30))),
    *((rows, 87_969, 256, rounds) for rows, rounds in ((1, 30), (32, 15), (256, 5))),
]
K = 20


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ranking(benchmark, shape):
    rows, vocabulary, dim, rounds = shape
    torch.manual_seed(0)
    states, items = torch.randn(rows, dim), torch.randn(vocabulary, dim)

    def ours():
        with use_backend("cpp"):
            return [top_items(states, items, K)[0]]

    def plain(states, items):
        return (states @ items.T).topk(K).values

    fused = compiled(plain)
    best, room = plain(states, items), torch.empty(rows, vocabulary)

    def product():
        torch.mm(states, items.T, out=room)
        return [best]

    rivals = {
        OURS: ours,
        "eager (h @ E.T).topk(k)": lambda: [plain(states, items)],
        "the same under torch.compile": lambda: [fused(states, items)],
        "h @ E.T alone, into memory at hand": product,
    }
    compare(benchmark, rivals, rounds)
