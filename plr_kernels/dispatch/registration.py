"""Registration of operators with PyTorch: what is the same for all of them.

An operator is a formula, `plr_kernels::<operator>`, whose autograd, torch.compile and vmap are PyTorch's own, and where
it has fused backends the op `plr_kernels::<operator>_forward`, with `..._backward` for gradients: their last argument
names the backend, and they call the functions `forward` and `backward` of the backend's module. Arguments are stated in
PyTorch's schema language, once; torch.ops.plr_kernels has them under the names given here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import Implementation, backend_module
from plr_kernels.dispatch.gradients import (
    may_overwrite,
    new_gradients,
    only_wanted,
    refuse_second_derivatives,
    scale_in_place,
    scaled,
)
from plr_kernels.dispatch.precision import upcast

Outputs = tuple[Tensor, ...]


def register_reference(operator: str, schema: str, formula: Implementation) -> Implementation:
    """Define `plr_kernels::<operator>` by its formula.

    Args:
        operator: the name.
        schema: arguments and results, "(Tensor states, ...) -> Tensor".
        formula: differentiable PyTorch, in the dtype it is given.

    Returns:
        The implementation "reference": the op, with half-precision tensors upcast to float32.
    """
    name = f"plr_kernels::{operator}"
    torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(name, "CompositeImplicitAutograd")(formula)
    registered = getattr(torch.ops.plr_kernels, operator)

    def run(*arguments: Any) -> Any:
        return registered(*[upcast(argument) if isinstance(argument, Tensor) else argument for argument in arguments])

    return run


def register_ranking(
    operator: str,
    arguments: str,
    formula: Implementation,
    new_results: Callable[..., Outputs],
    *,
    optional: str = "",
) -> dict[str, Implementation]:
    """Define an operator that ranks: two results, no gradients, the same arguments for every backend.

    Args:
        operator: the name.
        arguments: "Tensor states, ...".
        formula: the definition.
        new_results: from the arguments, uninitialised memory for the results of a fused backend.
        optional: "Tensor? where=None, ...": arguments that came later. They follow the backend's name, so that
            programs of before mean what they meant, and need not be given.

    Returns:
        Backend name -> implementation.
    """
    # No custom_op: what that adds, for gradients which there are none of, takes as long as ranking a small table for a
    # row.
    name = f"plr_kernels::{operator}_forward"
    later = f", {optional}" if optional else ""
    torch.library.define(
        name, f"({arguments}, str backend{later}) -> (Tensor, Tensor)", tags=torch.Tag.pt2_compliant_tag
    )
    before = len(arguments.split(", "))  # of the backend's name

    @torch.library.impl(name, "default")
    def forward(*given: Any) -> Outputs:
        return backend_module(operator, given[before]).forward(*given[:before], *given[before + 1 :])

    torch.library.register_fake(name, lambda *given: new_results(*given[:before]))
    registered = getattr(torch.ops.plr_kernels, f"{operator}_forward")

    def run_fused(backend: str) -> Implementation:
        return lambda *given: registered(*given[:before], backend, *given[before:])

    reference = register_reference(operator, f"({arguments}{later}) -> (Tensor, Tensor)", formula)
    return {"reference": reference, "cpp": run_fused("cpp"), "triton": run_fused("triton")}


def register_with_gradients(
    operator: str,
    *,
    tensors: str,
    options: str,
    backward_options: str = "",
    result: str,
    statistics: str,
    new_result: Callable[[Tensor], Tensor],
    statistics_of: int = 1,
) -> None:
    """Define the two passes of a loss on fused backends, `<operator>_forward` and `<operator>_backward`.

    The forward op takes the tensors and all options, and returns the result and the statistics that its backend keeps
    for the backward pass. The backward op takes the result's gradient, tensors, statistics, all options, and whether
    the gradients of the first two tensors are wanted; it returns these, an empty tensor for one that is not.

    Args:
        operator: the name.
        tensors: "Tensor states, Tensor items, ...": the first two have gradients.
        options: "float temperature, ..."; what both passes of a backend take after the tensors.
        backward_options: further options, which change the gradient only: a backend's `forward` does not get them.
        result: the result's name; its gradient's is <result>_gradient.
        statistics: "Tensor statistics, ...", as many as `new_statistics` of a backend's module returns.
        new_result: from the first tensor, uninitialised memory for the result.
        statistics_of: how many of the tensors, the first ones, `new_statistics` takes.
    """
    all_options = f"{options}, {backward_options}" if backward_options else options
    first, second = (tensor.split()[1] for tensor in tensors.split(", ")[:2])
    tensor_count, statistics_count = len(tensors.split(", ")), len(statistics.split(", "))
    forward_count = tensor_count + len(options.split(", "))  # of what a backend's `forward` takes

    def forward(*arguments: Any) -> Outputs:
        return backend_module(operator, arguments[-1]).forward(*arguments[:forward_count])

    def new_outputs(*arguments: Any) -> Outputs:
        kept = backend_module(operator, arguments[-1]).new_statistics(*arguments[:statistics_of])
        return new_result(arguments[0]), *((kept,) if isinstance(kept, Tensor) else kept)

    def backward(*arguments: Any) -> Outputs:
        return backend_module(operator, arguments[-1]).backward(*arguments[:-1])

    def new_backward_outputs(*arguments: Any) -> Outputs:
        return new_gradients(arguments[1:3], arguments[-3:-1])

    def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        *ctx.options, ctx.backend = inputs[tensor_count:]
        ctx.save_for_backward(*inputs[:tensor_count], *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    def gradients(ctx: Any, result_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:2]
        found = backward_op(result_gradient, *ctx.saved_tensors, *ctx.options, *needs, ctx.backend)
        return *only_wanted(found, needs), *(None,) * (len(ctx.needs_input_grad) - 2)

    forward_op = torch.library.custom_op(
        f"plr_kernels::{operator}_forward",
        forward,
        mutates_args=(),
        schema=f"({tensors}, {all_options}, str backend) -> ({', '.join(['Tensor'] * (1 + statistics_count))})",
    )
    forward_op.register_fake(new_outputs)
    forward_op.register_autograd(gradients, setup_context=save_for_backward)
    backward_definition = torch.library.custom_op(
        f"plr_kernels::{operator}_backward",
        backward,
        mutates_args=(),
        schema=f"(Tensor {result}_gradient, {tensors}, {statistics}, {all_options}, "
        f"bool needs_{first}, bool needs_{second}, str backend) -> (Tensor, Tensor)",
    )
    backward_definition.register_fake(new_backward_outputs)
    backward_definition.register_autograd(refuse_second_derivatives)
    backward_op = getattr(torch.ops.plr_kernels, f"{operator}_backward")


def register_gradients_in_forward(
    operator: str, *, tensors: str, differentiable: int, options: str, parts: int = 0
) -> None:
    """Define the loss of a fused backend that makes the gradients along with it: `<operator>_with_gradients`.

    The op takes the tensors, all options, a bool for each differentiable tensor that says whether its gradient is
    wanted, and the backend, and calls the function `with_gradients` of the backend's module. It returns the loss, a
    scalar, its parts, and its gradients in float32, an empty tensor for one that is not wanted. They are kept for the
    backward pass, which only multiplies them by the gradient w.r.t. the loss.

    Args:
        operator: the name.
        tensors: "Tensor states, Tensor items, ...".
        differentiable: how many of the tensors, the first ones, have gradients.
        options: "float temperature, ...".
        parts: how many scalars that the loss is made of follow it, without gradients of their own.
    """

    def forward(*arguments: Any) -> Outputs:
        return backend_module(operator, arguments[-1]).with_gradients(*arguments[:-1])

    def new_outputs(*arguments: Any) -> Outputs:
        gradients = new_gradients(arguments[:differentiable], arguments[-2], dtype=torch.float32)
        return *(arguments[0].new_empty((), dtype=torch.float32) for _ in range(1 + parts)), *gradients

    def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        ctx.needs = inputs[-2]
        ctx.others = len(inputs) - differentiable
        ctx.set_materialize_grads(False)  # none are wanted w.r.t. gradients, which may be as large as the items
        # The inputs, so that differentiating the gradients is refused.
        ctx.save_for_backward(*inputs[:differentiable], *output[1 + parts :])
        ctx.mark_non_differentiable(*output[1:])

    def gradients(ctx: Any, loss_gradient: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        if loss_gradient is None:  # what was made of the loss has none, as functions of one's own may say
            return (None,) * (differentiable + ctx.others)
        saved = list(ctx.saved_tensors)  # to be asked for once
        inputs, kept = saved[:differentiable], saved[differentiable:]
        if may_overwrite(loss_gradient, *kept):
            found = only_wanted(scale_in_place(loss_gradient, inputs, kept), ctx.needs)
        else:
            found = _scaled_gradients(loss_gradient, inputs, kept, ctx.needs)
        return *found, *(None,) * ctx.others

    op = torch.library.custom_op(
        f"plr_kernels::{operator}_with_gradients",
        forward,
        mutates_args=(),
        schema=f"({tensors}, {options}, bool[] needs, str backend) -> "
        f"({', '.join(['Tensor'] * (1 + parts + differentiable))})",
    )
    op.register_fake(new_outputs)
    op.register_autograd(gradients, setup_context=save_for_backward)


# Of one tensor at a time: where PyTorch is given several gradients at once (is_grads_batched) it calls an operator for
# each, but none that takes lists.
_scaled_gradient = torch.library.custom_op(
    "plr_kernels::scaled_gradient",
    scaled,
    mutates_args=(),
    schema="(Tensor loss_gradient, Tensor gradient, Tensor input, Tensor? other=None, Tensor? another=None) -> Tensor",
)
_scaled_gradient.register_fake(scaled)
_scaled_gradient.register_autograd(refuse_second_derivatives)


def _scaled_gradients(
    loss_gradient: Tensor, inputs: list[Tensor], kept: list[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients that are wanted, as new tensors. Each depends on all inputs, should it be differentiated."""
    return tuple(
        torch.ops.plr_kernels.scaled_gradient(loss_gradient, kept[each], *inputs[each:], *inputs[:each])
        if wanted[each]
        else None
        for each in range(len(inputs))
    )
