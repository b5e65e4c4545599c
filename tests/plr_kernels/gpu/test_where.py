"""The kernels of top_items and top_mixture_items with a mask of the items: binaries and launches, without a GPU."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("triton")

from plr_kernels.dispatch.backend import TRITON_INTERPRETED, backend_module
from tests.plr_kernels.gpu.ahead_of_time import recorded_launches
from tests.plr_kernels.gpu.test_compiled import EnqueuedOperations, check, meta, mixture

pytestmark = pytest.mark.skipif(TRITON_INTERPRETED, reason="under TRITON_INTERPRET=1 nothing is compiled")


def top_items(dtype=torch.bfloat16, rows=2048, vocabulary=88001):
    kernels = backend_module("top_items", "triton")
    states, items = meta(rows, 256, dtype=dtype), meta(vocabulary, 256, dtype=dtype)
    kernels.forward(states, items, 20, meta(rows, 50, dtype=torch.int64), meta(vocabulary, dtype=torch.bool))


def top_mixture_items(dtype=torch.bfloat16, rows=2048, vocabulary=88001):
    kernels = backend_module("top_mixture_items", "triton")
    exclude, where = meta(rows, 50, dtype=torch.int64), meta(vocabulary, dtype=torch.bool)
    kernels.forward(*mixture(256, dtype, rows, vocabulary), 20, 1.0, exclude, where)


@pytest.mark.parametrize("run", [top_items, top_mixture_items])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_binary(run, capability):
    check(run, capability)


@pytest.mark.parametrize("run", [top_items, top_mixture_items])
def test_float32_binary(run):
    check(functools.partial(run, dtype=torch.float32), 90, matrix_instructions=False)


@pytest.mark.parametrize(
    ("run", "operations"),
    [(top_items, ["sort"]), (top_mixture_items, ["sort", "bitwise_and", "sort", "sort", "new_zeros"])],
)
def test_a_mask_takes_no_operation_more(run, operations):
    with recorded_launches(90), EnqueuedOperations() as enqueued:
        run()
    assert enqueued.names == operations


def test_without_a_mask_the_binary_takes_none():
    """What is not there is a constant of the kernel: nothing of it is read, passed or held in a register."""
    kernels = backend_module("top_items", "triton")
    with recorded_launches(90) as launches:
        kernels.forward(meta(9, 64), meta(300, 64), 5, None)
    assert [launch.arguments["where"] for launch in launches if "where" in launch.arguments] == [None]
