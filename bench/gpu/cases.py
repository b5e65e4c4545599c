"""What is timed on a GPU: each operator's tensors, its rivals, its formula and the least work.

All rivals get the same numbers in the same half precision. "in float32" is the formula on the same numbers turned to
float32, which is part of its time: as exact as ours, which sums in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from bench.attention import folded, mask_of, masked
from bench.gpu import flex
from bench.peers import OURS
from bench.training_step import CONFIG, adam_step
from plr_kernels import info_nce, linear_cross_entropy, pairwise_kl, stream_attention, top_items
from plr_kernels.info_nce.reference import info_nce as info_nce_formula
from plr_kernels.pairwise_kl.reference import pairwise_kl as pairwise_kl_formula
from plr_kernels.stream_attention.reference import stream_attention as stream_attention_formula

Loss = Callable[..., Tensor]
SQUARE = 8192


@dataclass(frozen=True)
class Sizes:
    """The paper's batch, width and largest table; M = 4 streams in their second step, histories of 50."""

    batch: int = 2048
    streams: int = 4
    own: int = 2
    prefix: int = 50
    heads: int = 2
    dim: int = 256
    items: int = 87_969
    k: int = 20


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        operator, shape: the table's first columns.
        leaves: the tensors it is called with.
        rivals: what is called, by name.
        formula: the definition, for exact results; None where the rivals are only compared with each other.
        unit: "flop" or "byte".
        work: units that cannot be done without, by phase.
        probes: work of the same kind whose rate is measured: units, and what does them.
        allowed_error: how far ours may be from exact results, relative to the largest number of each.
        backward: whether gradients are computed.
        capture: whether to time CUDA graphs too.
    """

    operator: str
    shape: str
    leaves: tuple[Tensor, ...]
    rivals: dict[str, Loss]
    formula: Loss | None
    unit: str
    work: dict[str, float]
    probes: dict[str, tuple[float, Callable[[], object]]]
    allowed_error: float
    backward: bool = True
    capture: bool = True


def attention(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """stream_attention against SDPA and FlexAttention, which have to join keys and values, and against its formula."""
    head = sizes.dim // sizes.heads
    prefix, own = (
        (sizes.batch, sizes.heads, sizes.prefix, head),
        (sizes.batch, sizes.heads, sizes.streams, sizes.own, head),
    )
    query = (sizes.batch, sizes.heads, sizes.streams, head)
    leaves = tuple(_normal(device, dtype, 1.0, *shape) for shape in (query, prefix, prefix, own, own))
    mask = mask_of(sizes.streams, sizes.prefix, sizes.own).to(device, dtype)

    def formula(*tensors: Tensor) -> Tensor:
        return stream_attention_formula(*tensors, None, head**-0.5, 0.0, None)

    rivals = {
        OURS: stream_attention,
        "eager formula": formula,
        "formula under torch.compile": _compiled(formula),
        "SDPA, folded": folded,
        "SDPA, masked": masked(mask),
        "FlexAttention": flex.stream_attention(sizes.streams, sizes.prefix, sizes.own, device),
    }
    read, written = sum(leaf.nbytes for leaf in leaves), leaves[0].nbytes
    # Backward reads the inputs and the output's gradient, and writes a gradient for every input.
    work = _phases(read + written, read + written + read)
    probes = _copy_probe(device, read + written)
    shape = f"B{sizes.batch} H{sizes.heads} M{sizes.streams} P{sizes.prefix} S{sizes.own} D{head} {_name(dtype)}"
    return Case("stream_attention", shape, leaves, rivals, formula, "byte", work, probes, _allowed(dtype))


def divergence(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """pairwise_kl against its formula, and by FlexAttention with the items as keys and values."""
    states = _normal(device, dtype, 0.5, sizes.batch, sizes.streams, sizes.dim)
    items = _normal(device, dtype, 0.25, sizes.items, sizes.dim)

    def formula(states: Tensor, items: Tensor) -> Tensor:
        return pairwise_kl_formula(states, items, 1.0, False)

    rivals = {
        OURS: pairwise_kl,
        "eager formula in float32": _in_float32(formula),
        "formula in float32 under torch.compile": _compiled(_in_float32(formula)),
        "formula under torch.compile": _compiled(formula),
        "FlexAttention, items as keys and values": flex.pairwise_kl(),
    }
    work, probes = _products(sizes.batch * sizes.streams, sizes.items, sizes.dim, 1, 3, device, dtype)
    shape = f"B{sizes.batch} N{sizes.streams} V{sizes.items} D{sizes.dim} {_name(dtype)}"
    return Case("pairwise_kl", shape, (states, items), rivals, formula, "flop", work, probes, _allowed(dtype))


def cross_entropy(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """linear_cross_entropy against PyTorch's ways and the fused operators that are installed."""
    states = _normal(device, dtype, 0.5, sizes.batch, sizes.dim)
    items = _normal(device, dtype, 0.25, sizes.items, sizes.dim)
    targets = torch.randint(sizes.items, (sizes.batch,), device=device)

    def formula(states: Tensor, items: Tensor) -> Tensor:
        return functional.cross_entropy(states @ items.T, targets)

    def upcast(states: Tensor, items: Tensor) -> Tensor:
        """The product in half precision, its logits in float32: as models in mixed precision write it."""
        return functional.cross_entropy((states @ items.T).float(), targets)

    rivals: dict[str, Loss] = {
        OURS: lambda states, items: linear_cross_entropy(states, items, targets),
        "eager cross_entropy(h @ E.T)": formula,
        "the same under torch.compile": _compiled(formula),
        "cross_entropy((h @ E.T).float()) under torch.compile": _compiled(upcast),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # since PyTorch 2.13
        rivals["torch linear_cross_entropy"] = lambda states, items: functional.linear_cross_entropy(
            states, items, targets
        )
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        rivals["Liger-Kernel"] = lambda states, items: liger(items, states, targets)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        rivals["cut-cross-entropy, exact"] = lambda states, items: cut(states, items, targets, filter_eps=None)
    work, probes = _products(sizes.batch, sizes.items, sizes.dim, 1, 3, device, dtype)
    shape = f"R{sizes.batch} V{sizes.items} D{sizes.dim} {_name(dtype)}"
    return Case("linear_cross_entropy", shape, (states, items), rivals, formula, "flop", work, probes, _allowed(dtype))


def contrast(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """info_nce against its formula."""
    views = tuple(_normal(device, dtype, 1.0, sizes.streams, sizes.batch, sizes.dim) for _ in range(2))

    def formula(view1: Tensor, view2: Tensor) -> Tensor:
        return info_nce_formula(view1, view2, 0.1)

    rivals = {
        OURS: lambda view1, view2: info_nce(view1, view2, temperature=0.1),
        "eager formula in float32": _in_float32(formula),
        "formula in float32 under torch.compile": _compiled(_in_float32(formula)),
        "formula under torch.compile": _compiled(formula),
    }
    work, probes = _products(sizes.batch * sizes.streams, sizes.batch, sizes.dim, 1, 3, device, dtype)
    shape = f"G{sizes.streams} B{sizes.batch} D{sizes.dim} {_name(dtype)}"
    return Case("info_nce", shape, views, rivals, formula, "flop", work, probes, _allowed(dtype))


def ranking(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """top_items against a product and topk."""
    states = _normal(device, dtype, 1.0, sizes.batch, sizes.dim).detach()
    items = _normal(device, dtype, 1.0, sizes.items, sizes.dim).detach()

    def formula(states: Tensor, items: Tensor) -> Tensor:
        return (states @ items.T).topk(sizes.k).values

    rivals = {
        OURS: lambda states, items: top_items(states, items, sizes.k)[0],
        "eager (h @ E.T).topk(k)": formula,
        "the same under torch.compile": _compiled(formula),
    }
    work, probes = _products(sizes.batch, sizes.items, sizes.dim, 1, 0, device, dtype)
    shape = f"R{sizes.batch} V{sizes.items} D{sizes.dim} k{sizes.k} {_name(dtype)}"
    return Case(
        "top_items", shape, (states, items), rivals, formula, "flop", work, probes, _allowed(dtype), backward=False
    )


def training_step(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """A step of PLR with M = T = 2, mixed precision for half types: with the kernels, and with their formulas."""
    config = replace(CONFIG, batch_size=sizes.batch, dim=sizes.dim)

    def rival(backend: str) -> Loss:
        step = adam_step(
            backend, config, sizes.items, device=device, autocast=None if dtype == torch.float32 else dtype
        )
        return lambda: step()[0]

    shape = f"B{sizes.batch} V{sizes.items} M2 T2 D{sizes.dim} L{config.layers} n{config.max_length} {_name(dtype)}"
    rivals = {OURS: rival("auto"), "reference backend": rival("reference")}
    return Case(
        "training_step", shape, (), rivals, None, "flop", {}, {}, _allowed(dtype), backward=False, capture=False
    )


CASES: dict[str, Callable[[Sizes, torch.device, torch.dtype], Case]] = {
    "stream_attention": attention,
    "pairwise_kl": divergence,
    "linear_cross_entropy": cross_entropy,
    "info_nce": contrast,
    "top_items": ranking,
    "training_step": training_step,
}


def _allowed(dtype: torch.dtype) -> float:
    """Sums in another order; in half precision also two roundings: of the gradient by scores and of the result."""
    return 1e-4 + 2 * torch.finfo(dtype).eps * (dtype.itemsize == 2)


def _normal(device: torch.device, dtype: torch.dtype, spread: float, *shape: int) -> Tensor:
    return (spread * torch.randn(shape, device=device)).to(dtype).requires_grad_()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _in_float32(function: Loss) -> Loss:
    return lambda *tensors: function(*(tensor.float() for tensor in tensors))


def _compiled(function: Loss) -> Loss:
    return torch.compile(function, dynamic=False)


def _phases(forward: float, backward: float) -> dict[str, float]:
    """The work of each phase and of those that hold both."""
    if not backward:
        return {"forward": forward, "captured": forward}
    return {"forward": forward, "backward": backward, "captured": forward + backward, "both": forward + backward}


def _products(
    rows: int, columns: int, depth: int, forward: int, backward: int, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, tuple[float, Callable[[], object]]]]:
    """Least work and probes of an operator made of products of [rows, depth] by [depth, columns]."""
    flop = 2 * rows * columns * depth
    edge = SQUARE if device.type == "cuda" else 64
    probes = {}
    for name, shape in {"this shape": (rows, columns, depth), f"{edge} squared": (edge,) * 3}.items():
        left = torch.randn(shape[0], shape[2], device=device, dtype=dtype)
        right = torch.randn(shape[1], shape[2], device=device, dtype=dtype)
        output = torch.empty(shape[0], shape[1], device=device, dtype=dtype)
        probes[f"product, {name}"] = 2 * shape[0] * shape[1] * shape[2], _product(left, right, output)
    return _phases(forward * flop, backward * flop), probes


def _product(left: Tensor, right: Tensor, output: Tensor) -> Callable[[], object]:
    return lambda: torch.mm(left, right.T, out=output)


def _copy_probe(device: torch.device, moved: int) -> dict[str, tuple[float, Callable[[], object]]]:
    source = torch.ones(max(moved // 8, 1), device=device)  # float32; half of the bytes are read, half written
    target = torch.empty_like(source)
    return {"copy": (source.nbytes + target.nbytes, lambda: target.copy_(source))}
