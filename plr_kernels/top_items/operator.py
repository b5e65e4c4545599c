"""The public function top_items."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import backend_module, checks_values, resolve
from plr_kernels.dispatch.checks import check_exclude, check_index, check_integer, check_not_empty, check_shape
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.top_items import reference

torch.library.define(
    "plr_kernels::top_items",
    "(Tensor states, Tensor items, SymInt k, Tensor? exclude) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("plr_kernels::top_items", "CompositeImplicitAutograd")(reference.top_items)


def _run_reference(states: Tensor, items: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.ops.plr_kernels.top_items(upcast(states), upcast(items), k, exclude)


# No custom_op: what that adds, for gradients which there are none of, takes as long as ranking a small table for a row.
torch.library.define(
    "plr_kernels::top_items_forward",
    "(Tensor states, Tensor items, SymInt k, Tensor? exclude, str backend) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("plr_kernels::top_items_forward", "default")
def _forward(states: Tensor, items: Tensor, k: int, exclude: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """The scores [R, k], float32, and ids int64 [R, k]."""
    return backend_module("top_items", backend).forward(states, items, k, exclude)


@torch.library.register_fake("plr_kernels::top_items_forward")
def _(states, items, k, exclude, backend):
    shape = (states.shape[0], k)
    return states.new_empty(shape, dtype=torch.float32), states.new_empty(shape, dtype=torch.int64)


def _run_fused(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(states: Tensor, items: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.ops.plr_kernels.top_items_forward(states, items, k, exclude, backend)

    return run


# Backend name -> implementation with the signature of _run_reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def top_items(states: Tensor, items: Tensor, k: int, *, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k best items of each state by dot product, best first, ties to the smaller id.

    The scores of all items are never held at once. Not differentiable: the scores carry no gradient.

    Sums are float32 for half precision too. Products of float32 numbers follow `torch.set_float32_matmul_precision`.

    Args:
        states: [R, D], float32, bfloat16, float16 or (reference backend) float64.
        items: [V, D], in the dtype of `states`.
        k: how many items, 1 <= k <= V.
        exclude: int64 [R, X], the ids that a row must not return, in [0, V), padded with -1.

    Returns:
        scores [R, k], float32 (float64 for float64 inputs), and ids int64 [R, k]. Where exclusion leaves
        fewer than k items, the rest have score -inf and id -1.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU an excluded id outside [-1, V) fails
            asynchronously.
    """
    states, items = floating_inputs(states=states, items=items)
    sizes: dict[str, int] = {}
    check_shape("states", states, "R D", sizes)
    check_shape("items", items, "V D", sizes)
    check_not_empty("states", "D", sizes)
    check_not_empty("items", "V", sizes)
    check_index("k", k)
    if not 1 <= k <= sizes["V"]:
        raise ValueError(f"k must be in [1, V={sizes['V']}], found {k}")
    if exclude is not None:
        check_integer("exclude", exclude, (torch.int64,), "states", states)
        check_shape("exclude", exclude, "R X", sizes)

    run = resolve("top_items", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_exclude(exclude, sizes["V"])
    with no_autocast(states):
        return run(states.detach(), items.detach(), k, exclude)
