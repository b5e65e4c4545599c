"""The public function top_mixture_items."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import backend_module, checks_values, resolve
from plr_kernels.dispatch.checks import (
    check_exclude,
    check_index,
    check_integer,
    check_not_empty,
    check_shape,
    check_temperature,
)
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.top_mixture_items import reference

torch.library.define(
    "plr_kernels::top_mixture_items",
    "(Tensor states, Tensor log_weights, Tensor items, SymInt k, float temperature, Tensor? exclude) "
    "-> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("plr_kernels::top_mixture_items", "CompositeImplicitAutograd")(reference.top_mixture_items)


def _run_reference(
    states: Tensor, log_weights: Tensor, items: Tensor, k: int, temperature: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    return torch.ops.plr_kernels.top_mixture_items(
        upcast(states), upcast(log_weights), upcast(items), k, temperature, exclude
    )


# No custom_op: what that adds is for gradients, which there are none of.
torch.library.define(
    "plr_kernels::top_mixture_items_forward",
    "(Tensor states, Tensor log_weights, Tensor items, SymInt k, float temperature, Tensor? exclude, str backend) "
    "-> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("plr_kernels::top_mixture_items_forward", "default")
def _forward(
    states: Tensor, log_weights: Tensor, items: Tensor, k: int, temperature: float, exclude: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """The log-probabilities [R, k], float32, and ids int64 [R, k]."""
    return backend_module("top_mixture_items", backend).forward(states, log_weights, items, k, temperature, exclude)


@torch.library.register_fake("plr_kernels::top_mixture_items_forward")
def _(states, log_weights, items, k, temperature, exclude, backend):
    shape = (states.shape[0], k)
    return states.new_empty(shape, dtype=torch.float32), states.new_empty(shape, dtype=torch.int64)


def _run_fused(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(
        states: Tensor, log_weights: Tensor, items: Tensor, k: int, temperature: float, exclude: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.plr_kernels.top_mixture_items_forward(
            states, log_weights, items, k, temperature, exclude, backend
        )

    return run


# Backend name -> implementation with the signature of _run_reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def top_mixture_items(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    k: int,
    *,
    temperature: float = 1.0,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most probable items of each row under a mixture of item distributions, best first, ties to the smaller id.

    An item's score is its log-probability, log Σ_m exp(log_weights[m]) softmax(states[m] itemsᵀ / temperature)[item].
    The scores of all items are never held at once. Not differentiable: the scores carry no gradient.

    Args:
        states: [R, M, D], M >= 1, float32, bfloat16, float16 or (reference backend) float64.
        log_weights: [R, M], in the dtype of `states`: logarithms of the mixture's weights; −inf leaves a stream out.
        items: [V, D], in the dtype of `states`.
        k: how many items, 1 <= k <= V.
        temperature: what the logits are divided by, above 0.
        exclude: int64 [R, X], the ids that a row must not return, in [0, V), padded with -1; the distributions know
            them all the same.

    Returns:
        log-probabilities [R, k], float32 (float64 for float64 inputs), and ids int64 [R, k]. Where exclusion leaves
        fewer than k items, the rest have score -inf and id -1.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU an excluded id outside [-1, V) fails
            asynchronously.
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
    check_index("k", k)
    if not 1 <= k <= sizes["V"]:
        raise ValueError(f"k must be in [1, V={sizes['V']}], found {k}")
    if exclude is not None:
        check_integer("exclude", exclude, (torch.int64,), "states", states)
        check_shape("exclude", exclude, "R X", sizes)

    run = resolve("top_mixture_items", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_exclude(exclude, sizes["V"])
    with no_autocast(states):
        return run(states.detach(), log_weights.detach(), items.detach(), k, temperature, exclude)
