"""The public function linear_cross_entropy."""

import torch
from torch import Tensor

from plr_kernels.backend import resolve
from plr_kernels.checks import (
    check_index,
    check_integer,
    check_not_empty,
    check_reduction,
    check_shape,
    check_temperature,
    check_values,
)
from plr_kernels.linear_cross_entropy import reference
from plr_kernels.precision import floating_inputs, no_autocast, raised

torch.library.define(
    "plr_kernels::linear_cross_entropy",
    "(Tensor states, Tensor items, Tensor targets, float temperature, SymInt ignore_index, str reduction) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("plr_kernels::linear_cross_entropy", "CompositeImplicitAutograd")(reference.linear_cross_entropy)


def _run_reference(
    states: Tensor, items: Tensor, targets: Tensor, temperature: float, ignore_index: int, reduction: str
) -> Tensor:
    return torch.ops.plr_kernels.linear_cross_entropy(
        raised(states), raised(items), targets, temperature, ignore_index, reduction
    )


# Backend name -> implementation with the signature of _run_reference.
IMPLEMENTATIONS = {"reference": _run_reference}


def linear_cross_entropy(
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of each state's target among all items (PLR, arXiv 2601.03153, Eq. 1).

    A row's loss is −log softmax(states[r] itemsᵀ / temperature)[targets[r]]. Rows whose target is
    `ignore_index` count for nothing: their loss is 0, and the mean is over the others (0, with zero
    gradients, where there is none).

    Args:
        states: [R, D], float32, bfloat16, float16 or (reference backend) float64.
        items: [V, D], V >= 1, in the dtype of `states`.
        targets: int64 [R], in [0, V) or `ignore_index`.
        temperature: what the logits are divided by, above 0.
        ignore_index: the target of rows that do not count.
        reduction: "mean", "sum", or "none" for the loss of every row.

    Returns:
        A scalar, or [R] for "none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU a target outside [0, V) fails
            asynchronously.
    """
    states, items = floating_inputs(states=states, items=items)
    sizes: dict[str, int] = {}
    check_shape("states", states, "R D", sizes)
    check_shape("items", items, "V D", sizes)
    check_not_empty("states", "D", sizes)
    check_not_empty("items", "V", sizes)
    check_integer("targets", targets, (torch.int64,), "states", states)
    check_shape("targets", targets, "R", sizes)
    check_temperature(temperature)
    check_index("ignore_index", ignore_index)
    check_reduction(reduction)
    wrong = ((targets < 0) | (targets >= sizes["V"])) & (targets != ignore_index)
    check_values("targets", targets, wrong, "in [0, V) or ignore_index", V=sizes["V"], ignore_index=ignore_index)

    run = resolve("linear_cross_entropy", IMPLEMENTATIONS, states)
    with no_autocast(states):
        return run(states, items, targets, temperature, ignore_index, reduction)
