"""What of PyTorch is between an operator and its kernel: tracers, modes, transforms, and when there is nothing.

A fused operator may be called past the dispatcher where there is nothing. A call through it runs some hundred lines of
Python: where the operator reads more memory than the caches hold, they are out of the caches at the next call, and it
takes longer than many an operator; a GPU may wait for it. It is needed where something else wants to see the call, and
only there.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, is_grad_enabled
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.compiler import is_compiling
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.nn import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

try:
    from torch._C import (
        DispatchKey,
        DispatchKeySet,
        _dispatch_keys,
        _dispatch_tls_local_include_set,
        _len_torch_function_stack,
    )
    from torch.autograd import _profiler_enabled

    _OUTSIDE_INFERENCE_MODE = DispatchKeySet(DispatchKey.BackendSelect).add(DispatchKey.ADInplaceOrView)
    _CPU_INFERENCE_TENSOR = DispatchKeySet(DispatchKey.CPU).add(DispatchKey.AutocastCPU)
    _CPU_TENSOR = _CPU_INFERENCE_TENSOR.add(DispatchKey.ADInplaceOrView).add(DispatchKey.AutogradCPU)
    _CUDA_INFERENCE_TENSOR = DispatchKeySet(DispatchKey.CUDA).add(DispatchKey.AutocastCUDA)
    _CUDA_TENSOR = _CUDA_INFERENCE_TENSOR.add(DispatchKey.ADInplaceOrView).add(DispatchKey.AutogradCUDA)

    # As numbers: what the dispatcher adds to every call while no mode, transform or trace is on, and what tensors in
    # plain memory bring along. Negated views, sparse tensors, tensors on other devices and those that a transform wraps
    # bring others.
    _NO_MODES: Final = (_OUTSIDE_INFERENCE_MODE.raw_repr(), DispatchKeySet(DispatchKey.BackendSelect).raw_repr())
    _PLAIN: Final = tuple(
        keys.raw_repr() for keys in (_CPU_TENSOR, _CPU_INFERENCE_TENSOR, _CUDA_TENSOR, _CUDA_INFERENCE_TENSOR)
    )
    _STATE_IS_KNOWN = True
except (ImportError, AttributeError):
    # None of this is public: where a version of PyTorch lacks it, every call goes through the dispatcher.
    _STATE_IS_KNOWN = False


def can_bypass_dispatcher(*tensors: Tensor) -> bool:
    """Whether the dispatcher would do nothing but record for autograd and call the operator's kernel.

    False while torch.compile or any other tracer, a dispatch or function mode (FakeTensorMode, FlopCounterMode), a
    transform of torch.func or a profiler is on, and for tensors of a subclass or not in plain memory of a CPU or GPU,
    and where this version of PyTorch does not tell.
    """
    if (
        not _STATE_IS_KNOWN
        or is_compiling()
        or _dispatch_tls_local_include_set().raw_repr() not in _NO_MODES
        or _len_torch_function_stack() > 0
        or _profiler_enabled()
    ):
        return False
    for tensor in tensors:
        if type(tensor) is not Tensor and type(tensor) is not Parameter:
            return False
        if _dispatch_keys(tensor).raw_repr() not in _PLAIN:
            return False
    return True


def autograd_records(*tensors: Tensor) -> bool:
    """Whether what is computed from these tensors has a backward pass."""
    if is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


def transform_is_on() -> bool:
    """Whether a transform of torch.func (grad, vjp, jacrev, vmap, jvp) is being computed."""
    return torch._C._are_functorch_transforms_active()


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside what transforms of torch.func wrap around it, with the dimensions that vmap hides."""
    if is_compiling():
        return tensor
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def value_is_readable(tensor: Tensor) -> bool:
    """Whether an entry of the tensor may be read: it lies on the CPU and has a value, and no graph is traced."""
    if is_compiling() or tensor.device.type != "cpu" or isinstance(tensor, FakeTensor):
        return False
    return not any(
        isinstance(mode, (FakeTensorMode, ProxyTorchDispatchMode)) for mode in _get_current_dispatch_mode_stack()
    )
