"""The kernels of a forward pass without gradients: compiled ahead of time, their binaries read; and interpreted."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from plr_kernels.dispatch.backend import TRITON_INTERPRETED, backend_module
from tests.plr_kernels.gpu.ahead_of_time import LARGEST_GRID, SHARED_MEMORY, compile_launch, recorded_launches
from tests.plr_kernels.gpu.test_compiled import EnqueuedOperations, meta

pytestmark = pytest.mark.skipif(TRITON_INTERPRETED, reason="under TRITON_INTERPRET=1 nothing is compiled")


def embedding(dim=256, dtype=torch.bfloat16, rows=512, length=50):
    table, position = meta(88001, dim, dtype=dtype), meta(length, dim, dtype=dtype)
    vector, ids = meta(dim, dtype=dtype), meta(rows * length, dtype=torch.int64)
    backend_module("forward_only", "triton").sum_norm(table, position, vector, vector, 1e-12, ids, 1, None)


def residual(dim=256, dtype=torch.bfloat16, rows=25600):
    states, vector = meta(rows, dim, dtype=dtype), meta(dim, dtype=dtype)
    backend_module("forward_only", "triton").sum_norm(states, states, vector, vector, 1e-12, None, 1, vector)


def gelu(dim=256, dtype=torch.bfloat16, rows=25600):
    backend_module("forward_only", "triton").bias_gelu(meta(rows, dim, dtype=dtype), meta(dim, dtype=dtype))


def attention(dim=256, dtype=torch.bfloat16, rows=512, length=50):
    """Of causal histories, whose queries, keys and values lie side by side."""
    heads = meta(rows * length, 3 * dim, dtype=dtype).view(rows, length, 3, 2, dim // 2).permute(2, 0, 3, 1, 4)
    own = meta(rows, 2, length, 0, dim // 2, dtype=dtype)
    seen = meta(length, dtype=torch.int32).expand(rows, -1)
    joined = meta(rows, length, 2, dim // 2, dtype=dtype).transpose(1, 2)
    kernels = backend_module("stream_attention", "triton")
    kernels.forward((*heads.unbind(), own, own), seen, 0.1, 0.0, None, joined)


RUNS = [
    functools.partial(run, dim=dim, dtype=dtype)
    for run in (embedding, residual, gelu, attention)
    for dim in (256, 64 if run is attention else 50)
    for dtype in (torch.bfloat16, torch.float32)
]
RUNS += [functools.partial(run, dim=2048) for run in (embedding, residual)]


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join([run.func.__name__, *map(str, run.keywords.values())]))
def test_binary(run, capability):
    with recorded_launches(capability) as launches, EnqueuedOperations() as enqueued:
        run()
    assert set(enqueued.names) <= {"expand", "permute", "transpose", "unbind", "view"}  # which describe tensors
    (launch,) = launches
    binary = compile_launch(launch, capability)
    assert binary.registers <= 255, binary
    assert binary.stack == 0, binary
    assert binary.shared <= SHARED_MEMORY[capability], binary
    assert not binary.narrow_strides, binary
    has_products = run.func is attention and run.keywords.get("dtype") != torch.float32
    assert binary.has_matrix_instructions == has_products, binary
    # The error function of CUDA's library is made of fused multiply-adds; a sum less its mean must not be.
    assert run.func is gelu or run.func is attention or not binary.fuses_multiply_adds, binary
    # Nor may the mean be off: of a row of equal numbers that would be all that is left.
    assert run.func not in (embedding, residual) or not binary.approximates_quotients, binary


def test_under_the_interpreter():
    """In a process of its own, and not in that of test_interpreted.py, which takes longest of all."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    file = Path(__file__).parents[1] / "operators" / "test_forward_only.py"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file), "-k", "triton-cpu"]
    result = subprocess.run(command, cwd=file.parents[3], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


@pytest.mark.parametrize(
    "run",
    [functools.partial(run, rows=rows) for run, rows in ((embedding, 10**7), (residual, 10**9), (gelu, 10**9))],
    ids=lambda run: run.func.__name__,
)
def test_grids_are_those_that_a_gpu_takes(run):
    with recorded_launches(90) as launches:
        run()
    assert all(1 <= size <= most for size, most in zip(launches[0].grid, LARGEST_GRID, strict=False))
