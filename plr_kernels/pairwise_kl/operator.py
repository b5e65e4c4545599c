"""The public function pairwise_kl."""

import torch
from torch import Tensor

from plr_kernels.backend import resolve
from plr_kernels.checks import check_not_empty, check_shape, check_temperature
from plr_kernels.pairwise_kl import reference
from plr_kernels.precision import floating_inputs, no_autocast, raised

torch.library.define(
    "plr_kernels::pairwise_kl",
    "(Tensor states, Tensor items, float temperature, bool detach_reference) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("plr_kernels::pairwise_kl", "CompositeImplicitAutograd")(reference.pairwise_kl)


def _run_reference(states: Tensor, items: Tensor, temperature: float, detach_reference: bool) -> Tensor:
    return torch.ops.plr_kernels.pairwise_kl(raised(states), raised(items), temperature, detach_reference)


# Backend name -> implementation with the signature of _run_reference.
IMPLEMENTATIONS = {"reference": _run_reference}


def pairwise_kl(states: Tensor, items: Tensor, *, temperature: float = 1.0, detach_reference: bool = False) -> Tensor:
    """Mean divergence between the item distributions of a group's states (PLR, arXiv 2601.03153, Eq. 7).

    The mean, over b and over the N(N − 1) ordered pairs i != j, of KL(p_i || p_j) with
    p_i = softmax(states[b, i] itemsᵀ / temperature). N = 1 and B = 0 give 0, with zero gradients.

    Args:
        states: [B, N, D], N >= 1: for PLR the N = T·M reasoning states of a user; float32, bfloat16, float16
            or (reference backend) float64.
        items: [V, D], V >= 1, in the dtype of `states`.
        temperature: what the logits are divided by, above 0.
        detach_reference: stop the gradient through p_j, as ReaRec (arXiv 2503.22675) does.

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or the temperature does not fit.
    """
    states, items = floating_inputs(states=states, items=items)
    sizes: dict[str, int] = {}
    check_shape("states", states, "B N D", sizes)
    check_shape("items", items, "V D", sizes)
    check_not_empty("states", "N", sizes)
    check_not_empty("states", "D", sizes)
    check_not_empty("items", "V", sizes)
    check_temperature(temperature)

    run = resolve("pairwise_kl", IMPLEMENTATIONS, states)
    with no_autocast(states):
        return run(states, items, temperature, bool(detach_reference))
