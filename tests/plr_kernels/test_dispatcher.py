"""Which calls of a fused operator go past the dispatcher, and that those which must not do not."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import plr_kernels  # noqa: F401, registers the operators
from plr_kernels.dispatch import dispatcher
from plr_kernels.dispatch.dispatcher import autograd_records, can_bypass_dispatcher


def idle_within(transform, *inputs):
    """What `can_bypass_dispatcher` says inside a transformed function: of its argument, of a tensor from outside."""
    outside, answers = torch.randn(3), []

    def look(tensor):
        answers.append((can_bypass_dispatcher(tensor), can_bypass_dispatcher(outside)))
        return tensor.sum()

    transform(look)(*inputs)
    return answers[0]


def test_plain_tensors():
    matrix = torch.randn(4, 6)
    assert can_bypass_dispatcher(matrix, matrix.half(), matrix.T[::2], matrix[:0], matrix[:1].expand(3, 6))
    with torch.inference_mode():
        assert can_bypass_dispatcher(matrix, torch.randn(3))
    assert can_bypass_dispatcher(torch.nn.Parameter(matrix))
    with torch.autocast("cpu"):
        assert can_bypass_dispatcher(matrix)


def test_gradients():
    plain, leaf = torch.randn(3), torch.nn.Parameter(torch.randn(3))
    assert autograd_records(plain, leaf)
    assert autograd_records(leaf * 2)
    assert not autograd_records(plain, leaf.detach())
    with torch.no_grad():
        assert not autograd_records(plain, leaf)


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, dtype=torch.cfloat).conj().imag,
        torch.randn(3, device="meta"),
        torch.eye(3).to_sparse(),
        torch.randn(3).as_subclass(Subclass),
    ],
    ids=["negated", "meta", "sparse", "subclass"],
)
def test_other_tensors(tensor):
    assert not can_bypass_dispatcher(tensor)
    assert not can_bypass_dispatcher(torch.randn(3), tensor)


@pytest.mark.parametrize(
    "mode",
    [
        torch._subclasses.FakeTensorMode,
        lambda: FlopCounterMode(display=False),
        TorchFunctionMode,
        torch.profiler.profile,
    ],
    ids=["fake", "flops", "function", "profiler"],
)
def test_modes(mode):
    tensor = torch.randn(3)
    with mode():
        assert not can_bypass_dispatcher(tensor)
    assert can_bypass_dispatcher(tensor)


@pytest.mark.parametrize(
    "transform",
    [
        torch.func.vmap,
        torch.func.grad,
        torch.func.functionalize,
        make_fx,
        lambda look: lambda tensor: torch.jit.trace(look, (tensor,), check_trace=False),
    ],
    ids=["vmap", "grad", "functionalize", "make_fx", "trace"],
)
def test_transforms_and_tracers(transform):
    assert idle_within(transform, torch.randn(2, 3)) == (False, False)


def test_compiled():
    compiled = torch.compile(lambda tensor: tensor + can_bypass_dispatcher(tensor), fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch._C, "_dispatch_keys"),
        (torch._C, "_dispatch_tls_local_include_set"),
        (torch._C, "_len_torch_function_stack"),
        (torch._C, "DispatchKey"),
        (torch._C.DispatchKey, "ADInplaceOrView"),
        (torch._C.DispatchKeySet, "raw_repr"),
        (torch.autograd, "_profiler_enabled"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_never_idle_where_pytorch_does_not_tell(monkeypatch, owner, name):
    specification = importlib.util.spec_from_file_location("dispatcher_without", dispatcher.__file__)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.can_bypass_dispatcher(torch.randn(3))
    monkeypatch.delattr(owner, name)
    specification.loader.exec_module(module)
    assert not module.can_bypass_dispatcher(torch.randn(3))
    assert module.autograd_records(torch.nn.Parameter(torch.randn(3)))
