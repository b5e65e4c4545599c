"""What is timed on a GPU: each operator's tensors, its implementations, its formula and the least work.

All implementations get the same numbers in the same half precision. "in float32" is the formula on the same numbers
cast to float32, which is part of its time: as exact as ours, which sums in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from bench.attention import folded, lengths_of_positions, mask_of, mask_of_positions, masked
from bench.gpu import flex
from bench.gpu.plan import Histories, joined
from bench.limits import Limit, copy_probe, products
from bench.records import OURS
from bench.training_step import CONFIG, adam_step
from plr.serving.gpu_plan import Shape
from plr_kernels import (
    candidate_cross_entropy,
    consistent_mixture_cross_entropy,
    info_nce,
    linear_cross_entropy,
    mixture_cross_entropy,
    pairwise_kl,
    stream_attention,
    target_mixture_rank,
    target_rank,
    top_items,
    top_mixture_items,
)
from plr_kernels.consistent_mixture_cross_entropy import reference as consistent
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
    suffix: int = 2
    prefix: int = 50
    heads: int = 2
    dim: int = 256
    items: int = 87_969
    candidates: int = 4096
    k: int = 20


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        operator, shape: the table's first columns.
        leaves: the tensors it is called with.
        implementations: what is called, by name.
        formula: the definition, for exact results; None where the implementations are only compared with each other.
        limit: the least work, by each phase and those that hold both; None where it is not known.
        allowed_error: how far ours may be from exact results, relative to the largest number of each.
        backward: whether gradients are computed.
        capture: whether to time CUDA graphs too.
    """

    operator: str
    shape: str
    leaves: tuple[Tensor, ...]
    implementations: dict[str, Loss]
    formula: Loss | None
    limit: Limit | None
    allowed_error: float
    backward: bool = True
    capture: bool = True


def attention(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """stream_attention against SDPA and FlexAttention, which have to join keys and values, and against its formula."""
    head = sizes.dim // sizes.heads
    prefix, suffix = (
        (sizes.batch, sizes.heads, sizes.prefix, head),
        (sizes.batch, sizes.heads, sizes.streams, sizes.suffix, head),
    )
    query = (sizes.batch, sizes.heads, sizes.streams, head)
    leaves = tuple(_normal(device, dtype, 1.0, *shape) for shape in (query, prefix, prefix, suffix, suffix))
    mask = mask_of(sizes.streams, sizes.prefix, sizes.suffix).to(device, dtype)

    def formula(*tensors: Tensor) -> Tensor:
        return stream_attention_formula(*tensors, None, head**-0.5, 0.0, None)

    implementations = {
        OURS: stream_attention,
        "eager formula": formula,
        "formula under torch.compile": _compiled(formula),
        "SDPA, folded": folded,
        "SDPA, masked": masked(mask),
        "FlexAttention": flex.stream_attention(sizes.streams, sizes.prefix, sizes.suffix, device),
    }
    read, written = sum(leaf.nbytes for leaf in leaves), leaves[0].nbytes
    # Backward reads the inputs and the output's gradient, and writes a gradient for every input.
    work = _phases(read + written, read + written + read)
    limit = Limit("byte", work, {"copy": copy_probe(read + written, None, device)})
    shape = f"B{sizes.batch} H{sizes.heads} M{sizes.streams} P{sizes.prefix} S{sizes.suffix} D{head} {_name(dtype)}"
    return Case("stream_attention", shape, leaves, implementations, formula, limit, _allowed(dtype))


def attention_of_positions(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """stream_attention of all positions of a sequence: P · M queries, each with a prefix of its own length."""
    batch, head = max(1, sizes.batch // 16), sizes.dim // sizes.heads
    queries = sizes.prefix * sizes.streams
    prefix, suffix = (
        (batch, sizes.heads, sizes.prefix, head),
        (batch, sizes.heads, queries, sizes.suffix, head),
    )
    query = (batch, sizes.heads, queries, head)
    leaves = tuple(_normal(device, dtype, 1.0, *shape) for shape in (query, prefix, prefix, suffix, suffix))
    lengths = lengths_of_positions(sizes.prefix, sizes.streams).to(device).expand(batch, -1)
    mask = mask_of_positions(sizes.prefix, sizes.streams, sizes.suffix).to(device)

    def formula(*tensors: Tensor) -> Tensor:
        return stream_attention_formula(*tensors, lengths, head**-0.5, 0.0, None)

    implementations = {
        OURS: partial(stream_attention, prefix_lengths=lengths),
        "eager formula": formula,
        "formula under torch.compile": _compiled(formula),
        "SDPA, masked": masked(mask),
        "FlexAttention": flex.stream_attention(queries, sizes.prefix, sizes.suffix, device, sizes.streams),
    }
    read, written = sum(leaf.nbytes for leaf in leaves), leaves[0].nbytes
    work = _phases(read + written, read + written + read)
    limit = Limit("byte", work, {"copy": copy_probe(read + written, None, device)})
    shape = (
        f"B{batch} H{sizes.heads} positions {sizes.prefix} M{sizes.streams} S{sizes.suffix} D{head} {_name(dtype)}"
    )
    return Case("stream_attention_positions", shape, leaves, implementations, formula, limit, _allowed(dtype))


def divergence(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """pairwise_kl against its formula, and by FlexAttention with the items as keys and values."""
    states = _normal(device, dtype, 0.5, sizes.batch, sizes.streams, sizes.dim)
    items = _normal(device, dtype, 0.25, sizes.items, sizes.dim)

    def formula(states: Tensor, items: Tensor) -> Tensor:
        return pairwise_kl_formula(states, items, 1.0, False)

    implementations = {
        OURS: pairwise_kl,
        "eager formula in float32": _in_float32(formula),
        "formula in float32 under torch.compile": _compiled(_in_float32(formula)),
        "formula under torch.compile": _compiled(formula),
        "FlexAttention, items as keys and values": flex.pairwise_kl(),
    }
    limit = _products(sizes.batch * sizes.streams, sizes.items, sizes.dim, device, dtype)
    shape = f"B{sizes.batch} N{sizes.streams} V{sizes.items} D{sizes.dim} {_name(dtype)}"
    return Case("pairwise_kl", shape, (states, items), implementations, formula, limit, _allowed(dtype))


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

    implementations: dict[str, Loss] = {
        OURS: lambda states, items: linear_cross_entropy(states, items, targets),
        "eager cross_entropy(h @ E.T)": formula,
        "the same under torch.compile": _compiled(formula),
        "cross_entropy((h @ E.T).float()) under torch.compile": _compiled(upcast),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # since PyTorch 2.13
        implementations["torch linear_cross_entropy"] = lambda states, items: functional.linear_cross_entropy(
            states, items, targets
        )
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        implementations["Liger-Kernel"] = lambda states, items: liger(items, states, targets)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        implementations["cut-cross-entropy, exact"] = lambda states, items: cut(states, items, targets, filter_eps=None)
    limit = _products(sizes.batch, sizes.items, sizes.dim, device, dtype)
    shape = f"R{sizes.batch} V{sizes.items} D{sizes.dim} {_name(dtype)}"
    return Case("linear_cross_entropy", shape, (states, items), implementations, formula, limit, _allowed(dtype))


def candidates_loss(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """candidate_cross_entropy, candidates of all rows, against its formula."""
    states = _normal(device, dtype, 0.5, sizes.batch, sizes.dim)
    items = _normal(device, dtype, 0.25, sizes.items, sizes.dim)
    targets = torch.randint(sizes.items, (sizes.batch,), device=device)
    candidates = torch.randint(sizes.items, (sizes.candidates,), device=device)
    hits = candidates == targets[:, None]

    def formula(states: Tensor, items: Tensor) -> Tensor:
        own = (states * functional.embedding(targets, items)).sum(dim=1, keepdim=True)
        scores = (states @ functional.embedding(candidates, items).T).masked_fill(hits, float("-inf"))
        return functional.cross_entropy(torch.cat([own, scores], dim=1), torch.zeros_like(targets))

    implementations = {
        OURS: lambda states, items: candidate_cross_entropy(states, items, targets, candidates),
        "eager formula in float32": _in_float32(formula),
        "formula in float32 under torch.compile": _compiled(_in_float32(formula)),
        "formula under torch.compile": _compiled(formula),
    }
    # The dense gradient of the table is zeros to write: for small lists most of the time, and not in the limit.
    limit = _products(sizes.batch, sizes.candidates, sizes.dim, device, dtype, backward=2)
    shape = f"R{sizes.batch} K{sizes.candidates} V{sizes.items} D{sizes.dim} {_name(dtype)}"
    return Case("candidate_cross_entropy", shape, (states, items), implementations, formula, limit, _allowed(dtype))


def contrast(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """info_nce against its formula."""
    views = tuple(_normal(device, dtype, 1.0, sizes.streams, sizes.batch, sizes.dim) for _ in range(2))

    def formula(view1: Tensor, view2: Tensor) -> Tensor:
        return info_nce_formula(view1, view2, None, 0.1)

    implementations = {
        OURS: lambda view1, view2: info_nce(view1, view2, temperature=0.1),
        "eager formula in float32": _in_float32(formula),
        "formula in float32 under torch.compile": _compiled(_in_float32(formula)),
        "formula under torch.compile": _compiled(formula),
    }
    limit = _products(sizes.batch * sizes.streams, sizes.batch, sizes.dim, device, dtype)
    shape = f"G{sizes.streams} B{sizes.batch} D{sizes.dim} {_name(dtype)}"
    return Case("info_nce", shape, views, implementations, formula, limit, _allowed(dtype))


def ranking(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """top_items against a product and topk."""
    states = _normal(device, dtype, 1.0, sizes.batch, sizes.dim).detach()
    items = _normal(device, dtype, 1.0, sizes.items, sizes.dim).detach()

    def formula(states: Tensor, items: Tensor) -> Tensor:
        return (states @ items.T).topk(sizes.k).values

    implementations = {
        OURS: lambda states, items: top_items(states, items, sizes.k)[0],
        "eager (h @ E.T).topk(k)": formula,
        "the same under torch.compile": _compiled(formula),
    }
    limit = _products(sizes.batch, sizes.items, sizes.dim, device, dtype, backward=0)
    shape = f"R{sizes.batch} V{sizes.items} D{sizes.dim} k{sizes.k} {_name(dtype)}"
    return Case("top_items", shape, (states, items), implementations, formula, limit, _allowed(dtype), backward=False)


def mixture_loss(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """mixture_cross_entropy against its formula."""
    targets = torch.randint(sizes.items, (sizes.batch,), device=device)

    def formula(states: Tensor, log_weights: Tensor, items: Tensor) -> Tensor:
        logits = states @ items.T  # [R, M, V]
        own = logits.gather(2, targets[:, None, None].expand(-1, sizes.streams, 1)).squeeze(2)
        return -torch.logsumexp(log_weights + own - torch.logsumexp(logits, dim=2), dim=1).mean()

    implementations = {
        OURS: lambda *tensors: mixture_cross_entropy(*tensors, targets),
        "eager formula in float32": _in_float32(formula),
        "formula in float32 under torch.compile": _compiled(_in_float32(formula)),
        "formula under torch.compile": _compiled(formula),
    }
    limit = _products(sizes.batch * sizes.streams, sizes.items, sizes.dim, device, dtype)
    shape, leaves = _mixture_shape(sizes, dtype), _mixtures(sizes, device, dtype)
    return Case("mixture_cross_entropy", shape, leaves, implementations, formula, limit, _allowed(dtype))


def consistent_loss(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """consistent_mixture_cross_entropy, which is two operators here, against its formula."""
    histories = sizes.batch // 2  # of two views each
    targets = torch.randint(sizes.items, (histories,), device=device)
    drawn = torch.randint(sizes.streams, (histories,), device=device)

    def formula(states: Tensor, log_weights: Tensor, items: Tensor) -> Tensor:
        every = (states, log_weights, items, targets, drawn, 1.0, 1.0, -100)
        return consistent.consistent_mixture_cross_entropy(*every)[0]

    implementations = {
        OURS: lambda *tensors: consistent_mixture_cross_entropy(*tensors, targets, drawn, weight=1.0)[0],
        "eager formula in float32": _in_float32(formula),
        "formula in float32 under torch.compile": _compiled(_in_float32(formula)),
        "formula under torch.compile": _compiled(formula),
    }
    views = 2 * histories
    limit = _products(views * sizes.streams, sizes.items, sizes.dim, device, dtype)
    states, log_weights, items = _mixtures(replace(sizes, batch=views), device, dtype)
    with torch.no_grad():
        leaves = [each.unflatten(0, (histories, 2)).requires_grad_() for each in (states, log_weights)]
    shape = f"N{histories} M{sizes.streams} V{sizes.items} D{sizes.dim} {_name(dtype)}"
    name = "consistent_mixture_cross_entropy"
    return Case(name, shape, (*leaves, items), implementations, formula, limit, _allowed(dtype))


def counting(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """target_rank against a product and comparisons; of small integers, whose sums are exact in float32."""
    states, items = (
        torch.randint(-3, 4, (size, sizes.dim), device=device).to(dtype) for size in (sizes.batch, sizes.items)
    )
    targets = torch.randint(sizes.items, (sizes.batch,), device=device)

    def formula(states: Tensor, items: Tensor) -> Tensor:
        scores = states @ items.T
        own = scores.gather(1, targets[:, None])
        return torch.stack([(scores > own).sum(dim=1), (scores == own).sum(dim=1) - 1]).float()

    implementations = {
        OURS: lambda states, items: torch.stack(target_rank(states, items, targets)).float(),
        "eager, h @ E.T compared, in float32": _in_float32(formula),
        "the same under torch.compile": _compiled(_in_float32(formula)),
    }
    limit = _products(sizes.batch, sizes.items, sizes.dim, device, dtype, backward=0)
    shape = f"R{sizes.batch} V{sizes.items} D{sizes.dim} {_name(dtype)}"
    return Case("target_rank", shape, (states, items), implementations, formula, limit, _allowed(dtype), backward=False)


def mixture_counting(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """target_mixture_rank against its formula: how many items are more probable; of near ones rounding decides."""
    leaves = tuple(leaf.detach() for leaf in _mixtures(sizes, device, dtype))
    targets = torch.randint(sizes.items, (sizes.batch,), device=device)

    def formula(states: Tensor, log_weights: Tensor, items: Tensor) -> Tensor:
        scores = _log_probabilities(states, log_weights, items)
        return (scores > scores.gather(1, targets[:, None])).sum(dim=1).float()

    implementations = {
        OURS: lambda *tensors: target_mixture_rank(*tensors, targets)[0].float(),
        "eager formula in float32": _in_float32(formula),
        "formula in float32 under torch.compile": _compiled(_in_float32(formula)),
    }
    limit = _products(sizes.batch * sizes.streams, sizes.items, sizes.dim, device, dtype, forward=2, backward=0)
    shape = _mixture_shape(sizes, dtype)
    return Case("target_mixture_rank", shape, leaves, implementations, formula, limit, _allowed(dtype), backward=False)


def mixture_ranking(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """top_mixture_items against its formula and topk."""
    leaves = tuple(leaf.detach() for leaf in _mixtures(sizes, device, dtype))

    def formula(states: Tensor, log_weights: Tensor, items: Tensor) -> Tensor:
        return _log_probabilities(states, log_weights, items).topk(sizes.k).values

    implementations = {
        OURS: lambda *tensors: top_mixture_items(*tensors, sizes.k)[0],
        "eager formula in float32": _in_float32(formula),
        "formula in float32 under torch.compile": _compiled(_in_float32(formula)),
        "formula under torch.compile": _compiled(formula),
    }
    limit = _products(sizes.batch * sizes.streams, sizes.items, sizes.dim, device, dtype, backward=0)
    shape = f"{_mixture_shape(sizes, dtype)} k{sizes.k}"
    return Case("top_mixture_items", shape, leaves, implementations, formula, limit, _allowed(dtype), backward=False)


def training_step(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """A step of PLR with M = T = 2, mixed precision for half types: with the kernels, and with their formulas."""
    config = replace(CONFIG, batch_size=sizes.batch, dim=sizes.dim)

    def on_backend(backend: str) -> Loss:
        step = adam_step(
            backend, config, sizes.items, device=device, autocast=None if dtype == torch.float32 else dtype
        )
        return lambda: step()[0]

    shape = f"B{sizes.batch} V{sizes.items} M2 T2 D{sizes.dim} L{config.layers} n{config.max_length} {_name(dtype)}"
    implementations = {OURS: on_backend("auto"), "reference backend": on_backend("reference")}
    return Case("training_step", shape, (), implementations, None, None, _allowed(dtype), backward=False, capture=False)


def forward_pass(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """The launches of the serving plan beside the model's forward pass, of tensors on the device; both are captured."""
    histories, shape = _histories(sizes.batch, sizes, device, dtype)
    plan, inputs, (rows, length) = histories.pass_of_all()
    batch = histories.batch()

    @torch.no_grad()
    def by_plan() -> Tensor:
        return joined(plan._run(inputs, Shape(rows, length, "")))

    implementations = {OURS: by_plan, "the model's forward pass": lambda: histories.by_model(batch=batch)}
    return Case(
        "forward_only", shape, (), implementations, histories.exact, None, _allowed(dtype), backward=False
    )


def user_states(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """One user's states from item numbers on the host, as one is served: replayed, launched, and by the model.

    A round's cleared cache gives the host as long as half a GiB takes to write: what it launches meanwhile is hidden.
    """
    histories, shape = _histories(1, sizes, device, dtype)
    ids = histories.ids()
    implementations = {
        OURS: lambda: histories.replayed(*ids),
        "the same launched": lambda: joined(histories.launching.states(*ids)),
        "the model's forward pass": histories.by_model,
    }
    exact, allowed = histories.exact, _allowed(dtype)
    return Case("user_states", shape, (), implementations, exact, None, allowed, backward=False, capture=False)


CASES: dict[str, Callable[[Sizes, torch.device, torch.dtype], Case]] = {
    "stream_attention": attention,
    "stream_attention_positions": attention_of_positions,
    "pairwise_kl": divergence,
    "linear_cross_entropy": cross_entropy,
    "info_nce": contrast,
    "mixture_cross_entropy": mixture_loss,
    "consistent_mixture_cross_entropy": consistent_loss,
    "candidate_cross_entropy": candidates_loss,
    "top_items": ranking,
    "top_mixture_items": mixture_ranking,
    "target_rank": counting,
    "target_mixture_rank": mixture_counting,
    "forward_only": forward_pass,
    "user_states": user_states,
    "training_step": training_step,
}


def _allowed(dtype: torch.dtype) -> float:
    """Sums in another order; in half precision also two roundings: of the scores' gradient and of the result."""
    return 1e-4 + 2 * torch.finfo(dtype).eps * (dtype.itemsize == 2)


def _histories(users: int, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> tuple[Histories, str]:
    histories = Histories.of(users, sizes.prefix, sizes.items, sizes.dim, sizes.heads, device, dtype)
    return histories, f"B{users} L{sizes.prefix} V{sizes.items} D{sizes.dim} {_name(dtype)}"


def _normal(device: torch.device, dtype: torch.dtype, spread: float, *shape: int) -> Tensor:
    return (spread * torch.randn(shape, device=device)).to(dtype).requires_grad_()


def _mixtures(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """States [R, M, D], logarithms of weights [R, M] and items [V, D]."""
    states = _normal(device, dtype, 0.5, sizes.batch, sizes.streams, sizes.dim)
    log_weights = torch.log_softmax(torch.randn(sizes.batch, sizes.streams, device=device), dim=1)
    items = _normal(device, dtype, 0.25, sizes.items, sizes.dim)
    return states, log_weights.to(dtype).requires_grad_(), items


def _log_probabilities(states: Tensor, log_weights: Tensor, items: Tensor) -> Tensor:
    """Of every item under every row's mixture: [R, V]."""
    return torch.logsumexp(torch.log_softmax(states @ items.T, dim=2) + log_weights[:, :, None], dim=1)


def _mixture_shape(sizes: Sizes, dtype: torch.dtype) -> str:
    return f"R{sizes.batch} M{sizes.streams} V{sizes.items} D{sizes.dim} {_name(dtype)}"


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
    rows: int,
    columns: int,
    depth: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    forward: int = 1,
    backward: int = 3,
) -> Limit:
    """The limit of an operator made of products of [rows, depth] by [depth, columns]."""
    edge = SQUARE if device.type == "cuda" else 64
    limit = products(rows, columns, depth, forward=forward, backward=backward, dtype=dtype, device=device, edge=edge)
    return replace(limit, work=_phases(limit.work["forward"], limit.work.get("backward", 0)))
