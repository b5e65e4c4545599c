"""The "triton" backend of target_mixture_rank: one sweep for the streams' normalisers, one for the counts.

With c the largest term of a row's target, items are compared by Σ_m (2^(term − c) − the target's 2^(term − c)); where a
stream has next to no part in the target's probability, by 2^(term − c) alone. A term is computed from the distance of
the product to an anchor, a product near those that count: the target's own, or the one that reaches 2^c by itself. So
of small distances no digit is lost, and those that overflow are of terms that decide.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.target_rank.triton_kernels import counts, target_products
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.ranking import logit_scale, mixture_statistics

_LARGEST = tl.constexpr(3.4028234663852886e38)
_LEAST_PART = tl.constexpr(-60.0)  # of log2: what is no part of the target's probability that matters
_LARGEST_PART = tl.constexpr(20.0)


@triton.jit
def _load_stream(products, peaks, offsets, places, mask):
    """The target's product, peak and offset o of a stream of each row, in float64."""
    own = tl.load(products + places, mask=mask, other=0.0).to(tl.float64)
    peak = tl.load(peaks + places, mask=mask, other=0.0).to(tl.float64)
    return own, peak, tl.load(offsets + places, mask=mask, other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=["scale", "R", "M"])
def _anchors_kernel(
    products,
    peaks,
    offsets,
    anchors,
    scale,
    R,
    M,
    BLOCK_R: tl.constexpr,
):
    """`at`, `weight` and `taken` of every stream [R, M, 3], in float64 until they are stored."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = rows < R
    c = tl.full([BLOCK_R], float("-inf"), tl.float64)
    wrong = tl.zeros([BLOCK_R], tl.int32)
    for m in range(M):
        own, peak, offset = _load_stream(products, peaks, offsets, rows * M + m, row_mask)
        term = offset + (own - peak) * scale
        wrong = tl.maximum(wrong, (term != term).to(tl.int32))
        c = tl.maximum(c, term)
    # Not finite: all that is compared is NaN, and the row is marked.
    wrong = tl.maximum(wrong, (c * 0.0 != 0.0).to(tl.int32))
    for m in range(M):
        own, peak, offset = _load_stream(products, peaks, offsets, rows * M + m, row_mask)
        term = offset + (own - peak) * scale - c
        total_at = peak + (c - offset) / scale
        total_at = tl.minimum(tl.maximum(total_at, -_LARGEST), _LARGEST).to(tl.float32)
        reached = offset + (total_at.to(tl.float64) - peak) * scale - c
        # Where neighbouring numbers are so far apart, the one above 2^c decides: below it is next to nothing.
        bits = total_at.to(tl.int32, bitcast=True)
        next_at = tl.where(total_at > 0, bits + 1, bits - 1).to(tl.float32, bitcast=True)
        total_at = tl.where(reached < _LEAST_PART, next_at, total_at)
        reached = tl.minimum(offset + (total_at.to(tl.float64) - peak) * scale - c, _LARGEST_PART)
        has_part = term >= _LEAST_PART
        at = tl.where(has_part, own.to(tl.float32), total_at)
        weight = tl.exp2(tl.where(has_part, term, reached)).to(tl.float32)
        weight = tl.where(offset == float("-inf"), 0.0, weight)
        place = anchors + (rows * M + m) * 3
        tl.store(place, at, mask=row_mask)
        tl.store(place + 1, tl.where(wrong > 0, float("nan"), weight), mask=row_mask)
        tl.store(place + 2, tl.where(has_part, 1.0, 0.0), mask=row_mask)


def forward(
    states: Tensor, log_weights: Tensor, items: Tensor, targets: Tensor, temperature: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """How many other items are more probable than the target under the mixture, and how many as much: int64 [R]."""
    rows, streams, _ = states.shape
    scale, anchors, targets = logit_scale(temperature), None, targets.contiguous()
    if rows > 0:
        peaks, offsets = mixture_statistics(states, log_weights, items, scale)
        products = target_products(states, items, targets)
        anchors = states.new_empty((rows, streams, 3), dtype=torch.float32)
        options = launch.target_anchors()
        with torch.cuda.device_of(states):
            _anchors_kernel[(launch.blocks(rows, options["BLOCK_R"]),)](
                products, peaks, offsets, anchors, scale, rows, streams, **options
            )
    return counts(states, anchors, items, targets, scale, exclude)
