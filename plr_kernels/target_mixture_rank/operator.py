"""The public function target_mixture_rank."""

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
    check_temperature,
    check_values,
)
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.target_mixture_rank import reference

torch.library.define(
    "plr_kernels::target_mixture_rank",
    "(Tensor states, Tensor log_weights, Tensor items, Tensor targets, float temperature, Tensor? exclude) "
    "-> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("plr_kernels::target_mixture_rank", "CompositeImplicitAutograd")(reference.target_mixture_rank)


def _run_reference(
    states: Tensor, log_weights: Tensor, items: Tensor, targets: Tensor, temperature: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    return torch.ops.plr_kernels.target_mixture_rank(
        upcast(states), upcast(log_weights), upcast(items), targets, temperature, exclude
    )


# No custom_op: what that adds is for gradients, which there are none of.
torch.library.define(
    "plr_kernels::target_mixture_rank_forward",
    "(Tensor states, Tensor log_weights, Tensor items, Tensor targets, float temperature, Tensor? exclude, "
    "str backend) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("plr_kernels::target_mixture_rank_forward", "default")
def _forward(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    temperature: float,
    exclude: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The counts greater and equal, int64 [R]."""
    return backend_module("target_mixture_rank", backend).forward(
        states, log_weights, items, targets, temperature, exclude
    )


@torch.library.register_fake("plr_kernels::target_mixture_rank_forward")
def _(states, log_weights, items, targets, temperature, exclude, backend):
    shape = (states.shape[0],)
    return states.new_empty(shape, dtype=torch.int64), states.new_empty(shape, dtype=torch.int64)


def _run_fused(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(
        states: Tensor, log_weights: Tensor, items: Tensor, targets: Tensor, temperature: float, exclude: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.plr_kernels.target_mixture_rank_forward(
            states, log_weights, items, targets, temperature, exclude, backend
        )

    return run


# Backend name -> implementation with the signature of _run_reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def target_mixture_rank(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Count the other items that are more probable than each row's target, and as probable, under a mixture.

    An item's score is its log-probability, log Σ_m exp(log_weights[m]) softmax(states[m] itemsᵀ / temperature)[item].
    The rank of the target, ties counted half, is 1 + greater + equal / 2. Items with equal vectors tie exactly. The
    scores of all items are never held at once, and nothing is sorted. Not differentiable.

    Args:
        states: [R, M, D], M >= 1, float32, bfloat16, float16 or (reference backend) float64.
        log_weights: [R, M], in the dtype of `states`: logarithms of the mixture's weights; −inf leaves a stream out.
        items: [V, D], in the dtype of `states`.
        targets: int64 [R], in [0, V).
        temperature: what the logits are divided by, above 0.
        exclude: int64 [R, X], ids in [0, V), padded with -1, that do not count; the distributions know them all the
            same, and the target itself always stands.

    Returns:
        greater and equal, int64 [R] each. A row in which a score is not finite, whichever item's, has -1 in both.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU a target outside [0, V) or an excluded id
            outside [-1, V) fails asynchronously.
    """
    states, log_weights, items = floating_inputs(states=states, log_weights=log_weights, items=items)
    sizes: dict[str, int] = {}
    check_shape("states", states, "R M D", sizes)
    check_shape("log_weights", log_weights, "R M", sizes)
    check_shape("items", items, "V D", sizes)
    check_not_empty("states", "M", sizes)
    check_not_empty("states", "D", sizes)
    check_not_empty("items", "V", sizes)
    check_temperature(temperature)
    check_integer("targets", targets, (torch.int64,), "states", states)
    check_shape("targets", targets, "R", sizes)
    if exclude is not None:
        check_integer("exclude", exclude, (torch.int64,), "states", states)
        check_shape("exclude", exclude, "R X", sizes)

    run = resolve("target_mixture_rank", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_values("targets", targets, 0, sizes["V"], "in [0, V)", V=sizes["V"])
        check_exclude(exclude, sizes["V"])
    with no_autocast(states):
        return run(states.detach(), log_weights.detach(), items.detach(), targets, temperature, exclude)
