"""Which implementation of an operator runs, and why.

Every operator.py holds a table {backend name: implementation}; `resolve` picks from it. What can be known
once (is the extension built, is Triton installed) is found out at import, so that `resolve` itself is plain
enough for `torch.compile` to trace and guard on.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import forward_ad

from plr_kernels.dispatch.dispatcher import transform_is_on
from plr_kernels.dispatch.errors import BackendError, SettingError

BACKENDS: Final = ("auto", "reference", "cpp", "triton")
ENVIRONMENT_VARIABLE: Final = "PLR_KERNELS_BACKEND"

Implementation = Callable[..., Any]


def _why_no_cpp() -> str | None:
    try:
        importlib.import_module("plr_kernels._cpp")
    except ImportError as error:
        return f"its compiled extension cannot be imported ({error}); build it with `pip install -e .`"
    return None


def _why_no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package `triton` is not installed"
    return None


# Triton reads this variable when it is imported; with it, kernels run on CPU tensors too, for testing.
TRITON_INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"
_MISSING: Final[dict[str, str | None]] = {"cpp": _why_no_cpp(), "triton": _why_no_triton()}
CPP_IS_BUILT: Final = _MISSING["cpp"] is None


def _missing(name: str) -> str | None:
    """What this machine lacks to run a backend on any tensor, or None."""
    if name == "triton" and not (torch.cuda.is_available() or TRITON_INTERPRETED):
        return _MISSING[name] or "no GPU is visible to torch, and TRITON_INTERPRET=1 was not set"
    return _MISSING.get(name)


def runnable_backends() -> tuple[str, ...]:
    """The names that `use_backend` accepts on this machine."""
    return tuple(name for name in BACKENDS if _missing(name) is None)


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; found {name!r}")
    missing = _missing(name)
    if missing is not None:
        accepted = ", ".join(runnable_backends())
        raise BackendError(f"backend {name!r} cannot run: {missing}. Accepted here: {accepted}")
    return name


class use_backend:
    """Choose the implementation that every operator runs, for the whole process.

    `use_backend("reference")` chooses from now on; `with use_backend("reference"):` restores the earlier
    choice at the end of the block. The environment variable PLR_KERNELS_BACKEND sets the choice a process
    starts with.

    Args:
        name: "auto" (triton for GPU tensors, cpp for CPU tensors where it was built, reference otherwise),
            "reference", "cpp" or "triton". A named backend never falls back to another one.

    Raises:
        ValueError: the name is none of the above.
        BackendError: the backend cannot run on this machine; the message says what is missing.
    """

    def __init__(self, name: str) -> None:
        global _selected
        previous, _selected = _selected, _checked(name)
        self._name = name
        self._previous = [previous]  # of each block that is not left yet, and of the first one before it is entered
        self._entered = False

    def __enter__(self) -> None:
        global _selected
        if self._entered:  # the object was kept: it chooses for this block, too
            self._previous.append(_selected)
            _selected = self._name
        self._entered = True

    def __exit__(self, *_: object) -> None:
        global _selected
        _selected = self._previous.pop()


def chosen_backend() -> str:
    """The name of the backend that every operator is asked to run."""
    return _selected


def _obstacle(name: str, implementations: Mapping[str, Implementation], tensor: Tensor) -> str | None:
    """Why backend `name` cannot take `tensor`, or None when it can."""
    if name not in implementations:
        return f"this operator has only: {', '.join(implementations)}"
    if name == "reference":
        return None
    if tensor.dtype == torch.float64:
        return "it takes float32, bfloat16 and float16 tensors; float64 is for the reference backend"
    if name == "cpp" and tensor.device.type != "cpu":
        return f"it takes CPU tensors, found one on {tensor.device}"
    if name == "triton" and tensor.device.type not in (("cuda", "cpu") if TRITON_INTERPRETED else ("cuda",)):
        return f"it takes GPU tensors, found one on {tensor.device}"
    if forward_ad._current_level >= 0:
        return "it has no forward-mode derivatives; the reference backend has"
    if transform_is_on():
        return "it cannot be transformed by torch.func (grad, vjp, jacrev, vmap, ...); the reference backend can"
    return _MISSING[name]


def resolve(operator: str, implementations: Mapping[str, Implementation], tensor: Tensor) -> Implementation:
    """The implementation of `operator` that the chosen backend runs on tensors like `tensor`."""
    if _selected == "auto":
        fused = "cpp" if tensor.device.type == "cpu" else "triton"
        return implementations["reference" if _obstacle(fused, implementations, tensor) else fused]
    obstacle = _obstacle(_selected, implementations, tensor)
    if obstacle is not None:
        raise BackendError(
            f"backend {_selected!r} cannot run {operator}: {obstacle}. "
            f'use_backend("auto"), or {ENVIRONMENT_VARIABLE}=auto, takes the one that can'
        )
    return implementations[_selected]


def checks_values(
    implementation: Implementation, implementations: Mapping[str, Implementation], tensor: Tensor
) -> bool:
    """Whether the chosen implementation finds wrong indices itself: kernels on a GPU assert what they read."""
    return implementation is implementations.get("triton") and tensor.device.type == "cuda"


# Where each fused backend of an operator lives, beside the operator's definition.
_MODULES: Final = {"cpp": "cpu", "triton": "triton_kernels"}


@functools.cache
def backend_module(operator: str, name: str) -> Any:
    """The module with the functions `forward` and `backward` of an operator on a fused backend."""
    return importlib.import_module(f"plr_kernels.{operator}.{_MODULES[name]}")


def _from_environment() -> str:
    """The backend that the environment variable names."""
    try:
        return _checked(os.environ.get(ENVIRONMENT_VARIABLE, "auto"))
    except (ValueError, BackendError) as error:
        raise SettingError(f"{ENVIRONMENT_VARIABLE}: {error}") from None


_selected: str = _from_environment()
if CPP_IS_BUILT:
    importlib.import_module("plr_kernels.extension")  # which reads a variable of its own

if _selected == "auto" and _MISSING["cpp"] is not None and not torch.cuda.is_available():
    # Said here because pip hides what an installation printed; once a process.
    warnings.warn(
        f"plr_kernels computes with plain PyTorch formulas, which is slower: the C++ backend is missing, "
        f"{_MISSING['cpp']} where there is g++ or clang++. {ENVIRONMENT_VARIABLE}=reference asks for the formulas.",
        RuntimeWarning,
        stacklevel=2,
    )
