"""Every Triton kernel, compiled ahead of time for A100, H100 and B200 at the sizes of the paper, and its binary read.

No GPU is needed: the compiler and the assembler come with Triton.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from plr_kernels.dispatch.backend import TRITON_INTERPRETED, backend_module
from tests.plr_kernels.gpu.ahead_of_time import LARGEST_GRID, SHARED_MEMORY, compile_launch, recorded_launches

pytestmark = pytest.mark.skipif(TRITON_INTERPRETED, reason="under TRITON_INTERPRET=1 nothing is compiled")

# What these kernels do per row is small: no product of matrices.
WITHOUT_PRODUCTS = {
    "_anchors_kernel",
    "_certificate_kernel",
    "_loss_kernel",
    "_merge_kernel",
    "_mixture_kernel",
    "_named_items_kernel",
    "_norms_kernel",
    "_own_scores_kernel",
    "_own_states_gradient_kernel",
    "_results_kernel",
    "_statistics_kernel",
    "_totals_kernel",
    "_view_gradient_kernel",
}


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def stream_attention(streams=4, dim=128, prefix=50, dtype=torch.bfloat16, batch=2048, per_query=False):
    kernels = backend_module("stream_attention", "triton")
    query, shared, suffix = (
        meta(batch, 2, *sizes, dim, dtype=dtype) for sizes in ((streams,), (prefix,), (streams, 3))
    )
    lengths = meta(batch, *([streams] if per_query else []), dtype=torch.int64)
    seed = meta(dtype=torch.int64)
    inputs = (query, shared, shared, suffix, suffix)
    output, lse = kernels.forward(inputs, lengths, 0.1, 0.3, seed)
    kernels.backward(output, inputs, lengths, seed, lse, 0.1, 0.3, [True] * 5)


def pairwise_kl(group=4, dim=256, dtype=torch.bfloat16, batch=2048, vocabulary=88001):
    kernels = backend_module("pairwise_kl", "triton")
    states, items = meta(batch, group, dim, dtype=dtype), meta(vocabulary, dim, dtype=dtype)
    loss, *saved = kernels.forward(states, items, 1.0)
    kernels.backward(loss, states, items, *saved, 1.0, False, True, True)


def linear_cross_entropy(dim=256, dtype=torch.bfloat16, rows=2048, vocabulary=88001):
    kernels = backend_module("linear_cross_entropy", "triton")
    states, items = meta(rows, dim, dtype=dtype), meta(vocabulary, dim, dtype=dtype)
    targets = meta(rows, dtype=torch.int64)
    losses, statistics = kernels.forward(states, items, targets, 1.0, -100)
    kernels.backward(losses, states, items, targets, statistics, 1.0, -100, True, True)


def candidate_cross_entropy(
    dim=256, dtype=torch.bfloat16, rows=2048, vocabulary=88001, count=256, kind="softmax", own=False
):
    kernels = backend_module("candidate_cross_entropy", "triton")
    states, items = meta(rows, dim, dtype=dtype), meta(vocabulary, dim, dtype=dtype)
    targets, candidates = meta(rows, dtype=torch.int64), meta(*([rows] if own else []), count, dtype=torch.int64)
    inputs = (states, items, targets, candidates, meta(*candidates.shape, dtype=torch.float32))
    losses, *kept = kernels.forward(*inputs, kind, 1.0, 1.0, -100)
    kernels.backward(losses, *inputs, *kept, kind, 1.0, 1.0, -100, True, True)


def info_nce(dim=256, dtype=torch.bfloat16, groups=4, batch=2048, labels=0):
    kernels = backend_module("info_nce", "triton")
    view = meta(groups, batch, dim, dtype=dtype)
    shared = meta(groups, batch, labels, dtype=torch.int64) if labels else None
    loss, statistics = kernels.forward(view, view, shared, 1.0)
    kernels.backward(loss, view, view, shared, statistics, 1.0, True, False)


def top_items(k=20, dim=256, dtype=torch.bfloat16, rows=2048, vocabulary=88001):
    kernels = backend_module("top_items", "triton")
    states, items = meta(rows, dim, dtype=dtype), meta(vocabulary, dim, dtype=dtype)
    kernels.forward(states, items, k, meta(rows, 50, dtype=torch.int64))


def target_rank(dim=256, dtype=torch.bfloat16, rows=2048, vocabulary=88001):
    kernels = backend_module("target_rank", "triton")
    states, items = meta(rows, dim, dtype=dtype), meta(vocabulary, dim, dtype=dtype)
    kernels.forward(states, items, meta(rows, dtype=torch.int64), meta(rows, 50, dtype=torch.int64))


def mixture(dim, dtype, rows, vocabulary):
    return meta(rows, 4, dim, dtype=dtype), meta(rows, 4, dtype=dtype), meta(vocabulary, dim, dtype=dtype)


def target_mixture_rank(dim=256, dtype=torch.bfloat16, rows=2048, vocabulary=88001):
    kernels = backend_module("target_mixture_rank", "triton")
    targets, exclude = meta(rows, dtype=torch.int64), meta(rows, 50, dtype=torch.int64)
    kernels.forward(*mixture(dim, dtype, rows, vocabulary), targets, 1.0, exclude)


def top_mixture_items(k=20, dim=256, dtype=torch.bfloat16, rows=2048, vocabulary=88001):
    kernels = backend_module("top_mixture_items", "triton")
    kernels.forward(*mixture(dim, dtype, rows, vocabulary), k, 1.0, meta(rows, 50, dtype=torch.int64))


RANKING = (top_items, target_rank, target_mixture_rank, top_mixture_items)
CASES = [
    *(
        (run, capability)
        for run in (stream_attention, pairwise_kl, linear_cross_entropy, candidate_cross_entropy)
        for capability in (80, 90, 100)
    ),
    *((run, 90) for run in (info_nce, *RANKING)),
    (functools.partial(stream_attention, dim=64, prefix=200, streams=8), 90),
    *((functools.partial(stream_attention, streams=100, per_query=True), capability) for capability in (80, 90, 100)),
    (functools.partial(stream_attention, streams=10, per_query=True), 90),
    *((functools.partial(pairwise_kl, group=25), capability) for capability in (80, 90, 100)),
    (functools.partial(pairwise_kl, group=9), 90),
    (functools.partial(info_nce, labels=2), 90),
    *((functools.partial(candidate_cross_entropy, kind="bce", dim=64), capability) for capability in (80, 90)),
    (functools.partial(candidate_cross_entropy, own=True), 90),
    (functools.partial(candidate_cross_entropy, kind="bce", own=True), 90),
    *((functools.partial(run, k=100), 90) for run in (top_items, top_mixture_items)),
]


def describe(value):
    function = getattr(value, "func", value)
    options = getattr(value, "keywords", {})
    return "-".join([getattr(function, "__name__", f"sm_{value}"), *(f"{k}={v}" for k, v in options.items())])


def check(run, capability, matrix_instructions=True):
    with recorded_launches(capability) as launches:
        run()
    assert launches
    for launch in launches:
        binary = compile_launch(launch, capability)
        assert binary.registers <= 255, binary
        assert binary.stack == 0, binary
        assert binary.shared <= SHARED_MEMORY[capability], binary
        assert not binary.narrow_strides, binary
        assert not (matrix_instructions and binary.fuses_multiply_adds), binary
        has_products = matrix_instructions and binary.name not in WITHOUT_PRODUCTS
        assert binary.has_matrix_instructions == has_products, binary


@pytest.mark.parametrize(("run", "capability"), CASES, ids=describe)
def test_binary(run, capability):
    check(run, capability)


@pytest.mark.parametrize(
    ("run", "precision"),
    [
        (stream_attention, "highest"),
        (functools.partial(stream_attention, dim=256), "highest"),
        (functools.partial(stream_attention, dim=64, streams=100, per_query=True), "highest"),
        (pairwise_kl, "highest"),
        (pairwise_kl, "high"),
        (functools.partial(pairwise_kl, group=25), "highest"),
        (functools.partial(pairwise_kl, dim=64), "highest"),
        (info_nce, "highest"),
        (candidate_cross_entropy, "highest"),
        (candidate_cross_entropy, "high"),
        *((run, "highest") for run in RANKING),
    ],
    ids=lambda value: value if isinstance(value, str) else describe(value),
)
def test_float32_binary(run, precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        check(functools.partial(run, dtype=torch.float32), 90, matrix_instructions=precision != "highest")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "run",
    [
        functools.partial(stream_attention, batch=10**8),
        functools.partial(stream_attention, streams=10**6, prefix=10**6),
        functools.partial(pairwise_kl, batch=10**8),
        functools.partial(pairwise_kl, batch=1, vocabulary=10**9),
        functools.partial(linear_cross_entropy, rows=10**9),
        functools.partial(linear_cross_entropy, rows=1, vocabulary=10**9),
        functools.partial(candidate_cross_entropy, rows=10**6, count=10**6),
        functools.partial(candidate_cross_entropy, rows=10**6, own=True),
        *(
            functools.partial(candidate_cross_entropy, rows=1, count=65535 * 32, own=own, dtype=torch.float32)
            for own in (False, True)
        ),
        functools.partial(candidate_cross_entropy, rows=1, count=65535 * 64),
        functools.partial(info_nce, groups=10**8, batch=3),
        functools.partial(info_nce, groups=1, batch=10**6),
        functools.partial(top_items, rows=10**9),
        functools.partial(top_items, rows=1, vocabulary=10**9),
        functools.partial(target_rank, rows=10**9),
        functools.partial(target_rank, rows=1, vocabulary=10**9),
        functools.partial(target_mixture_rank, rows=10**8),
        functools.partial(top_mixture_items, rows=10**8),
        functools.partial(top_mixture_items, rows=1, vocabulary=10**9),
    ],
    ids=describe,
)
def test_grids_are_those_that_a_gpu_takes(run):
    with recorded_launches(90) as launches:
        run()
    for launch in launches:
        assert all(1 <= count <= largest for count, largest in zip(launch.grid, LARGEST_GRID, strict=False)), (
            launch.grid
        )
        # Triton 3.6 multiplies them in 32 bits, and launches nothing, in silence, where that is not above 0.
        assert math.prod(launch.grid) < 2**31, launch.grid


def test_more_programs_than_triton_launches_are_refused():
    with recorded_launches(90) as launches:
        candidate_cross_entropy(rows=10**6, count=1072, own=True)
        assert all(math.prod(launch.grid) < 2**31 for launch in launches)
        with pytest.raises(ValueError, match=r"at most 1073741823 entries .* with D=256, found 1075000000"):
            candidate_cross_entropy(rows=10**6, count=1074, own=True)


@pytest.mark.parametrize(
    ("run", "most"),
    [
        (functools.partial(candidate_cross_entropy, dtype=torch.float32), 65535 * 32),
        (candidate_cross_entropy, 65535 * 64),
        (functools.partial(candidate_cross_entropy, own=True), 65535 * 32),
    ],
    ids=describe,
)
def test_more_candidates_than_a_grid_has_blocks_are_refused(run, most):
    with recorded_launches(90), pytest.raises(ValueError, match=rf"at most K={most} on .*, found K={most + 1}"):
        run(rows=1, count=most + 1)


# Sizes of CASES, whose binaries Triton then has in its cache.
@pytest.mark.parametrize(
    ("run", "message"),
    [
        (stream_attention, "prefix_lengths must be in [0, P]"),
        (functools.partial(stream_attention, streams=10, per_query=True), "prefix_lengths must be in [0, P]"),
        (linear_cross_entropy, "targets must be in [0, V) or ignore_index"),
        (candidate_cross_entropy, "candidates must be in [0, V), or -1 as padding"),
        (functools.partial(candidate_cross_entropy, own=True), "candidates must be in [0, V), or -1 as padding"),
        (candidate_cross_entropy, "targets must be in [0, V) or ignore_index"),
        (target_rank, "targets must be in [0, V)"),
        (target_rank, "exclude must be in [0, V), or -1 as padding"),
        (top_items, "exclude must be in [0, V), or -1 as padding"),
    ],
    ids=describe,
)
def test_what_is_read_as_an_index_is_checked_by_a_kernel(run, message):
    """On a GPU nothing else looks at these values: Python would have to wait for the device."""
    with recorded_launches(90) as launches:
        run()
    assert message in [assertion for launch in launches for assertion in compile_launch(launch, 90).assertions]


class EnqueuedOperations(TorchDispatchMode):
    """PyTorch's operations that a GPU would be given: all but those that only make or describe tensors."""

    FREE = frozenset(
        {"alias", "detach", "empty", "empty_like", "new_empty", "select", "slice", "squeeze", "unsqueeze", "view"}
    )

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function.overloadpacket.__name__
        if name not in self.FREE:
            self.names.append(name)
        return function(*arguments, **(named or {}))


# What is left to PyTorch: the sum of a loss and its factor, the sum of the parts of each gradient that is split (here
# that of the states), sorting, and numbers to begin with.
@pytest.mark.parametrize(
    ("run", "operations"),
    [
        (stream_attention, []),
        (pairwise_kl, ["sum", "mul", "sum", "copy_"]),
        (linear_cross_entropy, ["sum", "copy_"]),
        # An item's entries become neighbours by sorting; the gradients of items that nothing names are 0.
        (candidate_cross_entropy, ["ne", "scalar_tensor", "where", "cat", "sort", "sum", "zero_"]),
        (info_nce, ["sum", "div"]),
        (top_items, ["sort"]),
        (target_rank, ["sort"]),
        (target_mixture_rank, ["sort"]),
        (top_mixture_items, ["sort", "bitwise_and", "sort", "sort", "new_zeros"]),
    ],
)
def test_little_is_left_to_operations_of_pytorch(run, operations):
    """Each takes some microseconds of a GPU, as much as a small kernel does: no chain of them beside the kernels."""
    with recorded_launches(90), EnqueuedOperations() as enqueued:
        run()
    assert enqueued.names == operations
