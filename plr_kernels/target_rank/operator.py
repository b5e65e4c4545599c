"""The public function target_rank."""

from __future__ import annotations

from torch import Tensor

from plr_kernels.dispatch.backend import checks_values, resolve
from plr_kernels.dispatch.checks import check_exclude, check_ids, check_states_and_items, check_targets
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import register_ranking
from plr_kernels.dispatch.results import new_counts
from plr_kernels.target_rank import reference

IMPLEMENTATIONS = register_ranking(
    "target_rank",
    "Tensor states, Tensor items, Tensor targets, Tensor? exclude",
    reference.target_rank,
    lambda states, *_: new_counts(states),
)


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
    sizes = check_states_and_items("R D", states, items)
    check_ids("targets", targets, "R", states, sizes)
    if exclude is not None:
        check_ids("exclude", exclude, "R X", states, sizes)

    run = resolve("target_rank", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_targets(targets, sizes["V"])
        check_exclude(exclude, sizes["V"])
    with no_autocast(states):
        return run(states.detach(), items.detach(), targets, exclude)
