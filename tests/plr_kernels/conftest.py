"""Settings for every kernel test: fresh memory is full of NaN, and hypothesis draws the same examples in every run."""

from __future__ import annotations

import os

# Asked for by cuBLAS under deterministic algorithms; read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from hypothesis import HealthCheck, settings

from plr_kernels.dispatch.backend import TRITON_INTERPRETED

if TRITON_INTERPRETED:
    from tests.plr_kernels.gpu import interpreter_overhead
    from tests.plr_kernels.gpu.interpreted_arithmetic import compute_as_gpus

    compute_as_gpus()
    interpreter_overhead.leave_out()

settings.register_profile(
    "kernels", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("kernels")


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fill what torch.empty returns with NaN (or the largest integer): an implementation must write all it returns."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _fresh_compilations():
    yield
    torch._dynamo.reset()
