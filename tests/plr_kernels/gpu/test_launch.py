"""Triton's own way from a launcher's arguments to a launch: what it makes constants of, and how often it compiles.

No GPU is needed: a driver of our own takes the place of CUDA's. Kernels are specialised, compiled and handed to it
with their grids; it runs nothing.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget

from plr_kernels.dispatch.backend import TRITON_INTERPRETED, backend_module
from tests.plr_kernels.gpu.ahead_of_time import SHARED_MEMORY

pytestmark = [
    pytest.mark.skipif(TRITON_INTERPRETED, reason="under TRITON_INTERPRET=1 nothing is compiled"),
    pytest.mark.skipif(
        not hasattr(triton.runtime.driver, "_active"), reason="this Triton (3.3) asks other things of a driver"
    ),
]

CAPABILITY = 90
# What CUDA takes in each direction.
LARGEST_GRID = (2**31 - 1, 65535, 65535)


class Driver:
    """What Triton asks of a driver when it launches. `loaded` has the kernels' names, `grids` every launch's grid."""

    def __init__(self):
        self.loaded, self.grids = [], []
        self.utils = SimpleNamespace(
            load_binary=self._load,
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": SHARED_MEMORY[CAPABILITY]},
        )

    def _load(self, name, binary, shared, device):
        self.loaded.append(name)
        return "module", "function", 0, 0, 1024

    def launcher_cls(self, source, metadata):
        return lambda x, y, z, *arguments: self.grids.append((x, y, z))

    def get_current_device(self):
        return 1000  # not a device that there is: Triton keeps compiled kernels by device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)


@pytest.fixture
def driver(monkeypatch):
    found = Driver()
    monkeypatch.setattr(triton.runtime.driver, "_active", found)
    return found


def zeros(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype)


def stream_attention(batch, vocabulary):
    kernels = backend_module("stream_attention", "triton")
    prefix, suffix = 3 + vocabulary % 50, vocabulary % 3
    query, shared, stream = (zeros(batch, 2, *sizes, 64) for sizes in ((4,), (prefix,), (4, suffix)))
    inputs, lengths = (query, shared, shared, stream, stream), zeros(batch, dtype=torch.int64)
    output, lse = kernels.forward(inputs, lengths, 0.1, 0.0, None)
    kernels.backward(output, inputs, lengths, None, lse, 0.1, 0.0, [True] * 5)


def pairwise_kl(batch, vocabulary):
    kernels = backend_module("pairwise_kl", "triton")
    states, items = zeros(batch, 3, 64), zeros(vocabulary, 64)
    loss, *saved = kernels.forward(states, items, 1.0)
    kernels.backward(loss, states, items, *saved, 1.0, False, True, True)


def linear_cross_entropy(batch, vocabulary):
    kernels = backend_module("linear_cross_entropy", "triton")
    states, items, targets = zeros(batch, 64), zeros(vocabulary, 64), zeros(batch, dtype=torch.int64)
    losses, statistics = kernels.forward(states, items, targets, 1.0, -100)
    kernels.backward(losses, states, items, targets, statistics, 1.0, -100, True, True)


def candidate_cross_entropy(batch, vocabulary):
    kernels = backend_module("candidate_cross_entropy", "triton")
    states, items, targets = zeros(batch, 64), zeros(vocabulary, 64), zeros(batch, dtype=torch.int64)
    for shape in ((vocabulary // 16 + 1,), (batch, vocabulary // 16 + 1)):
        inputs = (states, items, targets, zeros(*shape, dtype=torch.int64), zeros(*shape, dtype=torch.float32))
        losses, *kept = kernels.forward(*inputs, "softmax", 1.0, 1.0, -100)
        kernels.backward(losses, *inputs, *kept, "softmax", 1.0, 1.0, -100, True, True)


def info_nce(batch, vocabulary):
    kernels = backend_module("info_nce", "triton")
    view1, view2 = zeros(2, 1 + vocabulary % 3, batch, 64)
    loss, statistics = kernels.forward(view1, view2, None, 1.0)
    kernels.backward(loss, view1, view2, None, statistics, 1.0, True, True)


def top_items(batch, vocabulary):
    exclude = zeros(batch, 1 + vocabulary % 40, dtype=torch.int64)
    backend_module("top_items", "triton").forward(zeros(batch, 64), zeros(vocabulary, 64), 5, exclude)


def target_rank(batch, vocabulary):
    targets, exclude = zeros(batch, dtype=torch.int64), zeros(batch, 1 + vocabulary % 40, dtype=torch.int64)
    backend_module("target_rank", "triton").forward(zeros(batch, 64), zeros(vocabulary, 64), targets, exclude)


def forward_only(batch, vocabulary):
    kernels = backend_module("forward_only", "triton")
    table, states, vector = zeros(vocabulary, 64), zeros(batch, 64), zeros(64)
    kernels.sum_norm(table, states[:1], vector, vector, 1e-12, zeros(batch, dtype=torch.int64), 1, None)
    kernels.sum_norm(states, states, vector, vector, 1e-12, None, 1, vector)
    kernels.sum_norm(states, zeros(1 + vocabulary % 3, 64), vector, vector, 1e-12, None, 1 + vocabulary % 3, None)
    kernels.bias_gelu(states, vector)


def mixture(batch, vocabulary):
    streams = 2 + vocabulary % 3
    return zeros(batch, streams, 64), zeros(batch, streams), zeros(vocabulary, 64)


def target_mixture_rank(batch, vocabulary):
    targets, exclude = zeros(batch, dtype=torch.int64), zeros(batch, 1 + vocabulary % 40, dtype=torch.int64)
    kernels = backend_module("target_mixture_rank", "triton")
    kernels.forward(*mixture(batch, vocabulary), targets, 1.0, exclude)


def top_mixture_items(batch, vocabulary):
    exclude = zeros(batch, 1 + vocabulary % 40, dtype=torch.int64)
    backend_module("top_mixture_items", "triton").forward(*mixture(batch, vocabulary), 5, 1.0, exclude)


RANKING = (top_items, target_rank, target_mixture_rank, top_mixture_items)


# Batches and vocabularies with what Triton makes constants of, given the choice: 1, and multiples of 16. The loops over
# them are cut into as many parts, which decides the type of some gradients.
SHAPES = ((64, 4096), (48, 4099), (33, 4800), (17, 4112))


@pytest.mark.parametrize(
    "run",
    [stream_attention, pairwise_kl, linear_cross_entropy, candidate_cross_entropy, info_nce, forward_only, *RANKING],
)
def test_other_sizes_take_the_same_binaries(run, driver):
    run(*SHAPES[0])
    compiled, launched = len(driver.loaded), len(driver.grids)
    assert 0 < compiled <= launched
    for shape in SHAPES[1:]:
        run(*shape)
    assert driver.loaded[compiled:] == []
    assert len(driver.grids) == len(SHAPES) * launched
    run(1, 16)  # other parts: the gradients go to float32 parts or straight to their places, each compiled once
    for batch, vocabulary in ((1, 1), (2, 17)):
        before = len(driver.loaded)
        run(batch, vocabulary)
        assert driver.loaded[before:] == []
    assert all(1 <= size <= most for grid in driver.grids for size, most in zip(grid, LARGEST_GRID, strict=True))
