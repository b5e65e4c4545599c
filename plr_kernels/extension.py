"""What every operator's C++ path needs: the compiled extension, and tensors as it takes them.

Imported only where the extension is there.
"""

from __future__ import annotations

import os
from typing import Final

import torch
from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.errors import SettingError

INSTRUCTION_SET_VARIABLE: Final = "PLR_KERNELS_INSTRUCTION_SET"
# "auto" is the first of the others that the CPU has, but never the last.
INSTRUCTION_SETS: Final = ("auto", "avx512_amx", "avx512_bf16", "avx512", "avx2", "generic", "avx512_amx_parts")
# What is kept of a row's softmax with a target for the backward pass: TargetStatistics in csrc/target_softmax.h.
TARGET_STATISTICS: Final = ("maximum", "inverse_sum", "prob_of_rest")
# Address, data type, rows, columns, distance between rows.
Matrix = tuple[int, str, int, int, int]

_instruction_set: str = os.environ.get(INSTRUCTION_SET_VARIABLE, "auto")
if _cpp.instruction_set(_instruction_set) is None:
    _accepted = ", ".join(name for name in INSTRUCTION_SETS if _cpp.instruction_set(name) is not None)
    raise SettingError(
        f"{INSTRUCTION_SET_VARIABLE}: the instruction set must be one of {_accepted} on this CPU; "
        f"found {_instruction_set!r}"
    )


def _keep_from_lost_threads() -> None:
    """In a forked child: one thread for PyTorch where it would wait for ever for those that operators ran on.

    The operators themselves start new ones (csrc/threads.cpp).
    """
    if _cpp.lost_openmp_threads():
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_from_lost_threads)

_TYPE_NAMES: Final = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def type_name(dtype: torch.dtype) -> str:
    """A data type as the extension calls it."""
    return _TYPE_NAMES[dtype]


def instruction_set() -> str:
    """The name of the instruction set that the kernels are run with: the widest of this CPU, or the one asked for."""
    return _cpp.instruction_set(_instruction_set)


def resources() -> tuple[str, int]:
    """The first arguments of every function of the extension: instruction set, number of threads."""
    return _instruction_set, torch.get_num_threads()


def rounds_float32() -> bool:
    """Whether float32 numbers may be rounded to bfloat16 before they are multiplied: the argument after `resources`.

    As torch's own products on CPUs: by the setting at this moment, which `torch.set_float32_matmul_precision("medium")`
    and, since PyTorch 2.9, `torch.backends.mkldnn.matmul.fp32_precision = "bf16"` change.
    """
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    if setting is not None:
        return setting.fp32_precision == "bf16"
    return torch.get_float32_matmul_precision() == "medium"


def row_contiguous(tensor: Tensor) -> Tensor:
    """The tensor as a matrix [..., D] -> [rows, D] whose rows are contiguous; copied only where they are not."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def as_matrix(rows: Tensor) -> Matrix:
    """A matrix from `row_contiguous` for the extension. The caller keeps the tensor alive."""
    return rows.data_ptr(), type_name(rows.dtype), rows.shape[0], rows.shape[1], rows.stride(0)


def as_exclude(exclude: Tensor | None) -> tuple[int, int]:
    """Contiguous excluded ids [R, X] for the extension: address and X. The caller keeps the tensor alive."""
    return (0, 0) if exclude is None else (exclude.data_ptr(), exclude.shape[1])


def as_where(where: Tensor | None) -> int:
    """A contiguous mask of the items, bool [V], for the extension: its address. The caller keeps the tensor alive."""
    return 0 if where is None else where.data_ptr()


def as_gradient(gradient: Tensor, dim: int, wanted: bool) -> Matrix | None:
    """A tensor from `new_gradients`, with rows of `dim` numbers, for the extension; None where it is not wanted."""
    return as_matrix(gradient.view(-1, dim)) if wanted else None
