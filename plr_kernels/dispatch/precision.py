"""Dtypes on the way in: autocast, and float32 for what is computed from half-precision inputs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from plr_kernels.dispatch.checks import check_floating, check_tensor


def floating_inputs(**tensors: Tensor) -> tuple[Tensor, ...]:
    """The floating inputs of an operator, cast as autocast asks for and checked to agree in dtype and device.

    Like PyTorch's own operators, float64 stays float64 under autocast.
    """
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    device_type = next(iter(tensors.values())).device.type
    if _autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        tensors = {
            name: tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
            for name, tensor in tensors.items()
        }
    check_floating(**tensors)
    return tuple(tensors.values())


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast leaves alone what an implementation computes in float32."""
    device_type = tensor.device.type
    return torch.autocast(device_type, enabled=False) if _autocast_enabled(device_type) else nullcontext()


def upcast(tensor: Tensor) -> Tensor:
    """The tensor in the dtype that sums are held in: float32 for half precision, else its own."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _autocast_enabled(device_type: str) -> bool:
    # Asked first of the device types that everyone has: the other question runs through more of PyTorch's Python.
    known = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)
