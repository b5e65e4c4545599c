"""The public function target_rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import backend_module, checks_values, resolve
from plr_kernels.dispatch.checks import (
    check_exclude,
    check_integer,
    check_not_empty,
    check_shape,
    check_values,
)
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.target_rank import reference

torch.library.define(
    "plr_kernels::target_rank",
    "(Tensor states, Tensor items, Tensor targets, Tensor? exclude) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("plr_kernels::target_rank", "CompositeImplicitAutograd")(reference.target_rank)


def _run_reference(states: Tensor, items: Tensor, targets: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.ops.plr_kernels.target_rank(upcast(states), upcast(items), targets, exclude)


# No custom_op: what that adds is for gradients, which there are none of.
torch.library.define(
    "plr_kernels::target_rank_forward",
    "(Tensor states, Tensor items, Tensor targets, Tensor? exclude, str backend) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("plr_kernels::target_rank_forward", "default")
def _forward(
    states: Tensor, items: Tensor, targets: Tensor, exclude: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """The counts greater and equal, int64 [R]."""
    return backend_module("target_rank", backend).forward(states, items, targets, exclude)


@torch.library.register_fake("plr_kernels::target_rank_forward")
def _(states, items, targets, exclude, backend):
    shape = (states.shape[0],)
    return states.new_empty(shape, dtype=torch.int64), states.new_empty(shape, dtype=torch.int64)


def _run_fused(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(states: Tensor, items: Tensor, targets: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.ops.plr_kernels.target_rank_forward(states, items, targets, exclude, backend)

    return run


# Backend name -> implementation with the signature of _run_reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def target_rank(
    states: Tensor, items: Tensor, targets: Tensor, *, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Count the other items that score above each row's target and those that score the same, by dot product.

    The rank of the target, ties counted half, is 1 + greater + equal / 2. Items with equal vectors tie exactly. The
    scores of all items are never held at once, and nothing is sorted. Not differentiable.

    Sums are float32 for half precision too. Products of float32 numbers follow `torch.set_float32_matmul_precision`.

    Args:
        states: [R, D], float32, bfloat16, float16 or (reference backend) float64.
        items: [V, D], in the dtype of `states`.
        targets: int64 [R], in [0, V).
        exclude: int64 [R, X], ids in [0, V), padded with -1, that do not count; the target itself always stands.

    Returns:
        greater and equal, int64 [R] each. A row in which a score is not finite, whichever item's, has -1 in both.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU a target outside [0, V) or an excluded id
            outside [-1, V) fails asynchronously.
    """
    states, items = floating_inputs(states=states, items=items)
    sizes: dict[str, int] = {}
    check_shape("states", states, "R D", sizes)
    check_shape("items", items, "V D", sizes)
    check_not_empty("states", "D", sizes)
    check_not_empty("items", "V", sizes)
    check_integer("targets", targets, (torch.int64,), "states", states)
    check_shape("targets", targets, "R", sizes)
    if exclude is not None:
        check_integer("exclude", exclude, (torch.int64,), "states", states)
        check_shape("exclude", exclude, "R X", sizes)

    run = resolve("target_rank", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_values("targets", targets, 0, sizes["V"], "in [0, V)", V=sizes["V"])
        check_exclude(exclude, sizes["V"])
    with no_autocast(states):
        return run(states.detach(), items.detach(), targets, exclude)
