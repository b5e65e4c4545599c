"""The public function info_nce."""

from __future__ import annotations

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import Implementation, resolve
from plr_kernels.dispatch.checks import check_ids, check_not_empty, check_shape, check_temperature
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import register_reference, register_with_gradients
from plr_kernels.info_nce import reference

_run_reference = register_reference(
    "info_nce", "(Tensor view1, Tensor view2, Tensor? labels, float temperature) -> Tensor", reference.info_nce
)
register_with_gradients(
    "info_nce",
    tensors="Tensor view1, Tensor view2, Tensor? labels",
    options="float temperature",
    result="loss",
    statistics="Tensor statistics",
    new_result=lambda view1: view1.new_empty((), dtype=torch.float32),
)


def _run_fused(backend: str) -> Implementation:
    return lambda *arguments: torch.ops.plr_kernels.info_nce_forward(*arguments, backend)[0]


# Backend name -> implementation with the arguments of the reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def info_nce(view1: Tensor, view2: Tensor, *, temperature: float = 1.0, labels: Tensor | None = None) -> Tensor:
    """Contrastive loss between two views of the same batch (PLR, arXiv 2601.03153, Eq. 8).

    With s_ij the cosine similarity of view1[g, i] and view2[g, j] over the temperature, a group's loss is
    −(1/B) Σ_i [log softmax_j(s_ij)_i + log softmax_j(s_ji)_i], and the result is the mean over the groups. G
    = 0 and B = 0 give 0. Norms below 1e-8 count as 1e-8, so that a zero vector has similarity 0 to all.

    With `labels`, j ≠ i is left out of both sums of i where the two rows have the same label in any of the K columns:
    rows of one user, or with one target, say, are then no negatives of each other. A row without negatives has loss 0.

    Products of float32 numbers follow `torch.set_float32_matmul_precision`, as it is in each of the two passes.

    Args:
        view1: [G, B, D]: for PLR one group per reasoning step and stream; float32, bfloat16, float16 or
            (reference backend) float64.
        view2: [G, B, D], in the dtype of `view1`; its row (g, b) is the positive of row (g, b) of `view1`.
        temperature: what the similarities are divided by, above 0.
        labels: int64 [G, B, K], any values; None leaves no pair out.

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or the temperature does not fit.
    """
    view1, view2 = floating_inputs(view1=view1, view2=view2)
    sizes: dict[str, int] = {}
    check_shape("view1", view1, "G B D", sizes)
    check_shape("view2", view2, "G B D", sizes)
    check_not_empty("view1", "D", sizes)
    check_temperature(temperature)
    if labels is not None:
        check_ids("labels", labels, "G B K", view1, sizes, other_name="view1")

    run = resolve("info_nce", IMPLEMENTATIONS, view1)
    with no_autocast(view1):
        return run(view1, view2, labels, temperature)
