"""What the parity tests run: the operators, the backends, and the rule by which a result is accurate enough.

docs/how-tests-work.md derives the rule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor

import plr_kernels
from plr_kernels.candidate_cross_entropy import operator as candidate_cross_entropy_operator
from plr_kernels.candidate_cross_entropy import reference as candidate_cross_entropy_reference
from plr_kernels.consistent_mixture_cross_entropy import operator as consistent_mixture_cross_entropy_operator
from plr_kernels.consistent_mixture_cross_entropy import reference as consistent_mixture_cross_entropy_reference
from plr_kernels.dispatch.backend import TRITON_INTERPRETED, runnable_backends
from plr_kernels.info_nce import operator as info_nce_operator
from plr_kernels.info_nce import reference as info_nce_reference
from plr_kernels.linear_cross_entropy import operator as linear_cross_entropy_operator
from plr_kernels.linear_cross_entropy import reference as linear_cross_entropy_reference
from plr_kernels.mixture_cross_entropy import operator as mixture_cross_entropy_operator
from plr_kernels.mixture_cross_entropy import reference as mixture_cross_entropy_reference
from plr_kernels.pairwise_kl import operator as pairwise_kl_operator
from plr_kernels.pairwise_kl import reference as pairwise_kl_reference
from plr_kernels.stream_attention import operator as stream_attention_operator
from plr_kernels.stream_attention import reference as stream_attention_reference

# A further backend is one line here: its name and the device types it is tested on, where they exist.
BACKENDS: dict[str, tuple[str, ...]] = {
    "reference": ("cpu", "cuda"),
    "cpp": ("cpu",),
    "triton": ("cpu",) if TRITON_INTERPRETED else ("cuda",),
}

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Cases that hypothesis draws for each operator and dtype; the interpreter takes about a second for each.
EXAMPLES = 4 if TRITON_INTERPRETED else 20

# Sizes that are beyond one block of every kernel under the interpreter (launch.py), which takes time for each block:
# items come 64 or 128 at a time, columns 16, candidates 16 or 32, streams 4. Rows, of which 128 are visited at a time
# in the gradient of the items, and prefixes are as large as elsewhere.
MOST_INTERPRETED = {"vocabulary": 271, "dim": 35, "count": 70, "groups": 2, "heads": 1, "streams": 9}

# How far a float32 error may exceed that of the plain formula: both are chance results of differently ordered sums.
FACTOR = 4.0
# How many times the plain formula is run on inputs moved by rounding, to learn how large its error can be.
NUDGED_RUNS = 8

Tensors = dict[str, Tensor]
Options = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """The arguments of one call: the floating tensors, which may ask for gradients, and everything else."""

    tensors: Tensors
    options: Options


@dataclass(frozen=True)
class Operator:
    """How an operator is called, what defines it, and what to call it with."""

    name: str
    public: Callable[..., Tensor]
    formula: Callable[..., Tensor]  # the definition, with the keyword arguments of `public`, in any dtype
    implementations: Mapping[str, Callable[..., Any]]
    sizes: st.SearchStrategy[dict[str, Any]]  # what `make` takes besides the generator
    small: dict[str, Any]  # one set of sizes for tests that are slow per entry
    large: dict[str, Any]  # one set of sizes beyond what a kernel holds in one block
    make: Callable[..., Case]  # draws a case in float64
    # The size of the numbers whose difference the output is, where it can be far smaller than they are.
    output_terms: Callable[[Case], float] = lambda case: 0.0
    variant: str = ""  # of what else is called by this name

    def __str__(self) -> str:
        return self.name + self.variant


@dataclass(frozen=True)
class Target:
    """A backend on a kind of device."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"


def targets() -> list[Target]:
    """The backends that can run here, each on every device that it can run on here."""
    here = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    return [
        Target(backend, device)
        for backend, devices in BACKENDS.items()
        if backend in runnable_backends()
        for device in devices
        if device in here
    ]


def beyond_blocks(operator: Operator) -> dict[str, Any]:
    """Sizes beyond what a kernel holds in one block."""
    most = MOST_INTERPRETED if TRITON_INTERPRETED else {}
    if most and operator.large.get("per_row"):  # a program for each row, which takes 16 candidates at a time
        most = most | {"rows": 20, "count": 35}
    return {name: min(size, most[name]) if name in most else size for name, size in operator.large.items()}


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------- operators


def _make_stream_attention(
    generator, batch, heads, streams, prefix, suffix, dim, lengths, scale, dropout_p, per_query=False, ascending=False
) -> Case:
    tensors = {
        "query": normal(generator, batch, heads, streams, dim),
        "prefix_key": normal(generator, batch, heads, prefix, dim),
        "prefix_value": normal(generator, batch, heads, prefix, dim),
        "stream_key": normal(generator, batch, heads, streams, suffix, dim),
        "stream_value": normal(generator, batch, heads, streams, suffix, dim),
    }
    options: Options = {"scale": scale, "dropout_p": dropout_p}
    if lengths is not None:
        shape = (batch, streams) if per_query else (batch,)
        given = torch.randint(prefix + 1, shape, generator=generator, dtype=lengths)
        options["prefix_lengths"] = given.sort(dim=-1).values if ascending else given
    if dropout_p > 0:
        options["seed"] = torch.randint(-(2**63), 2**63 - 1, (), generator=generator)
    return Case(tensors, options)


def _stream_attention_formula(
    query, prefix_key, prefix_value, stream_key, stream_value, prefix_lengths=None, scale=None, dropout_p=0.0, seed=None
) -> Tensor:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return stream_attention_reference.stream_attention(
        query, prefix_key, prefix_value, stream_key, stream_value, prefix_lengths, scale, dropout_p, seed
    )


def _make_pairwise_kl(generator, batch, group, vocabulary, dim, temperature, detach_reference) -> Case:
    tensors = {
        "states": normal(generator, batch, group, dim),
        "items": normal(generator, vocabulary, dim),
    }
    return Case(tensors, {"temperature": temperature, "detach_reference": detach_reference})


def _make_info_nce(generator, groups, batch, dim, temperature, labels=None) -> Case:
    tensors = {"view1": normal(generator, groups, batch, dim), "view2": normal(generator, groups, batch, dim)}
    options: Options = {"temperature": temperature}
    if labels is not None:  # so many columns, of few different labels, of any size
        options["labels"] = torch.randint(-2, 3, (groups, batch, labels), generator=generator) * 2**61
    return Case(tensors, options)


def _make_linear_cross_entropy(generator, rows, vocabulary, dim, temperature, ignored, reduction) -> Case:
    tensors = {"states": normal(generator, rows, dim), "items": normal(generator, vocabulary, dim)}
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = -100
    return Case(tensors, {"targets": targets, "temperature": temperature, "reduction": reduction})


def _largest_logit(case: Case) -> float:
    """The largest |logit|: a divergence or a cross-entropy is a difference of such numbers, a sum adds up R of them."""
    states, items = case.tensors["states"], case.tensors["items"]
    largest = (states @ items.T / case.options["temperature"]).abs().flatten()
    rows = states.shape[0] if case.options.get("reduction") == "sum" else 1
    return rows * largest.max().item() if largest.numel() else 0.0


_dims = st.integers(1, 17) | st.just(50)
_temperatures = st.sampled_from([1.0, 0.3, 2.5])

STREAM_ATTENTION = Operator(
    name="stream_attention",
    public=plr_kernels.stream_attention,
    formula=_stream_attention_formula,
    implementations=stream_attention_operator.IMPLEMENTATIONS,
    sizes=st.fixed_dictionaries(
        {
            "batch": st.integers(0, 3),
            "heads": st.integers(1, 3),
            "streams": st.integers(1, 4),
            "prefix": st.integers(0, 9),
            "suffix": st.integers(0, 5),
            "dim": _dims,
            "lengths": st.sampled_from([None, torch.int32, torch.int64]),
            "scale": st.sampled_from([None, 1.0]),
            "dropout_p": st.sampled_from([0.0, 0.3]),
        }
    ),
    small={
        "batch": 2,
        "heads": 2,
        "streams": 2,
        "prefix": 3,
        "suffix": 2,
        "dim": 2,
        "lengths": torch.int64,
        "scale": None,
        "dropout_p": 0.3,
    },
    large={
        "batch": 3,
        "heads": 2,
        "streams": 5,
        "prefix": 131,
        "suffix": 7,
        "dim": 50,
        "lengths": torch.int64,
        "scale": None,
        "dropout_p": 0.2,
    },
    make=_make_stream_attention,
)

# A length for every query, as where all positions of a sequence reason at once.
STREAM_ATTENTION_PER_QUERY = dataclasses.replace(
    STREAM_ATTENTION,
    variant="-per_query",
    sizes=st.fixed_dictionaries(
        {
            "batch": st.integers(0, 3),
            "heads": st.integers(1, 2),
            "streams": st.integers(1, 7) | st.sampled_from([17, 35]),
            "prefix": st.integers(0, 9) | st.just(20),
            "suffix": st.integers(0, 3),
            "dim": _dims,
            "lengths": st.sampled_from([torch.int32, torch.int64]),
            "scale": st.sampled_from([None, 1.0]),
            "dropout_p": st.sampled_from([0.0, 0.3]),
            "per_query": st.just(True),
            "ascending": st.booleans(),
        }
    ),
    small=STREAM_ATTENTION.small | {"per_query": True},
    large=STREAM_ATTENTION.large | {"streams": 21, "suffix": 2, "per_query": True, "ascending": True},
)

PAIRWISE_KL = Operator(
    name="pairwise_kl",
    public=plr_kernels.pairwise_kl,
    formula=pairwise_kl_reference.pairwise_kl,
    implementations=pairwise_kl_operator.IMPLEMENTATIONS,
    sizes=st.fixed_dictionaries(
        {
            "batch": st.integers(0, 4),
            "group": st.integers(1, 5),
            "vocabulary": st.integers(1, 40),
            "dim": _dims,
            "temperature": _temperatures,
            "detach_reference": st.booleans(),
        }
    ),
    small={"batch": 2, "group": 3, "vocabulary": 5, "dim": 3, "temperature": 0.7, "detach_reference": False},
    large={"batch": 9, "group": 4, "vocabulary": 1031, "dim": 50, "temperature": 1.0, "detach_reference": False},
    make=_make_pairwise_kl,
    output_terms=_largest_logit,
)

INFO_NCE = Operator(
    name="info_nce",
    public=plr_kernels.info_nce,
    formula=lambda view1, view2, temperature, labels=None: info_nce_reference.info_nce(
        view1, view2, labels, temperature
    ),
    implementations=info_nce_operator.IMPLEMENTATIONS,
    sizes=st.fixed_dictionaries(
        {
            "groups": st.integers(0, 3),
            "batch": st.integers(0, 9),
            "dim": _dims,
            "temperature": _temperatures,
            "labels": st.sampled_from([None, 0, 1, 2]),
        }
    ),
    small={"groups": 2, "batch": 3, "dim": 3, "temperature": 0.7},
    large={"groups": 3, "batch": 131, "dim": 50, "temperature": 0.5},
    make=_make_info_nce,
    output_terms=lambda case: 1 / case.options["temperature"],
)

LINEAR_CROSS_ENTROPY = Operator(
    name="linear_cross_entropy",
    public=plr_kernels.linear_cross_entropy,
    formula=lambda states, items, targets, temperature, reduction: linear_cross_entropy_reference.linear_cross_entropy(
        states, items, targets, temperature, -100, reduction
    ),
    implementations=linear_cross_entropy_operator.IMPLEMENTATIONS,
    sizes=st.fixed_dictionaries(
        {
            "rows": st.integers(0, 9),
            "vocabulary": st.integers(1, 40),
            "dim": _dims,
            "temperature": _temperatures,
            "ignored": st.sampled_from([0.0, 0.3, 1.0]),
            "reduction": st.sampled_from(["mean", "sum", "none"]),
        }
    ),
    small={"rows": 4, "vocabulary": 5, "dim": 3, "temperature": 0.7, "ignored": 0.3, "reduction": "mean"},
    large={"rows": 131, "vocabulary": 1031, "dim": 50, "temperature": 1.0, "ignored": 0.2, "reduction": "none"},
    make=_make_linear_cross_entropy,
    output_terms=_largest_logit,
)


def _make_mixture_cross_entropy(
    generator, rows, streams, vocabulary, dim, temperature, weights, ignored, reduction
) -> Case:
    tensors = {
        "states": normal(generator, rows, streams, dim),
        "log_weights": torch.log_softmax(weights * normal(generator, rows, streams), dim=1),
        "items": normal(generator, vocabulary, dim),
    }
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = -100
    return Case(tensors, {"targets": targets, "temperature": temperature, "reduction": reduction})


def _mixture_cross_entropy_formula(states, log_weights, items, targets, temperature, reduction) -> Tensor:
    return mixture_cross_entropy_reference.mixture_cross_entropy(
        states, log_weights, items, targets, temperature, -100, reduction
    )


MIXTURE_CROSS_ENTROPY = Operator(
    name="mixture_cross_entropy",
    public=plr_kernels.mixture_cross_entropy,
    formula=_mixture_cross_entropy_formula,
    implementations=mixture_cross_entropy_operator.IMPLEMENTATIONS,
    sizes=st.fixed_dictionaries(
        {
            "rows": st.integers(0, 7),
            "streams": st.integers(1, 5),
            "vocabulary": st.integers(1, 40),
            "dim": _dims,
            "temperature": _temperatures,
            "weights": st.sampled_from([0.0, 1.0, 8.0]),
            "ignored": st.sampled_from([0.0, 0.3, 1.0]),
            "reduction": st.sampled_from(["mean", "sum", "none"]),
        }
    ),
    small={
        "rows": 4,
        "streams": 3,
        "vocabulary": 5,
        "dim": 3,
        "temperature": 0.7,
        "weights": 1.0,
        "ignored": 0.3,
        "reduction": "mean",
    },
    large={
        "rows": 67,
        "streams": 3,
        "vocabulary": 1031,
        "dim": 50,
        "temperature": 1.0,
        "weights": 1.0,
        "ignored": 0.2,
        "reduction": "none",
    },
    make=_make_mixture_cross_entropy,
    output_terms=_largest_logit,
)


def _make_consistent(
    generator, histories, streams, vocabulary, dim, temperature, weights, ignored, weight, near=1.0
) -> Case:
    states = normal(generator, histories, 2, streams, dim)
    states[:, 1:] = near * states[:, 1:] + (1 - near) * states[:, :1]
    tensors = {
        "states": states,
        "log_weights": torch.log_softmax(weights * normal(generator, histories, 2, streams), dim=2),
        "items": normal(generator, vocabulary, dim),
    }
    targets = torch.randint(vocabulary, (histories,), generator=generator)
    targets[torch.rand(histories, generator=generator) < ignored] = -100
    drawn = torch.randint(streams, (histories,), generator=generator)
    return Case(tensors, {"targets": targets, "drawn": drawn, "weight": weight, "temperature": temperature})


def _consistent_loss(*arguments, **options) -> Tensor:
    """The first of its three results: the others are its parts, without gradients."""
    return plr_kernels.consistent_mixture_cross_entropy(*arguments, **options)[0]


def _consistent_formula(states, log_weights, items, targets, drawn, weight, temperature) -> Tensor:
    return consistent_mixture_cross_entropy_reference.consistent_mixture_cross_entropy(
        states, log_weights, items, targets, drawn, weight, temperature, -100
    )[0]


CONSISTENT_MIXTURE_CROSS_ENTROPY = Operator(
    name="consistent_mixture_cross_entropy",
    public=_consistent_loss,
    formula=_consistent_formula,
    implementations=consistent_mixture_cross_entropy_operator.IMPLEMENTATIONS,
    sizes=st.fixed_dictionaries(
        {
            "histories": st.integers(0, 5) | st.just(17),
            "streams": st.integers(1, 4),
            "vocabulary": st.integers(1, 40),
            "dim": _dims,
            "temperature": _temperatures,
            "weights": st.sampled_from([0.0, 1.0, 8.0]),
            "ignored": st.sampled_from([0.0, 0.3, 1.0]),
            "weight": st.sampled_from([0.0, 1e-7, 1e-3, 1.0, 50.0, -0.5]),
            "near": st.sampled_from([1.0, 0.01]),
        }
    ),
    small={
        "histories": 4,
        "streams": 3,
        "vocabulary": 5,
        "dim": 3,
        "temperature": 0.7,
        "weights": 1.0,
        "ignored": 0.3,
        "weight": 0.7,
    },
    large={
        "histories": 37,
        "streams": 3,
        "vocabulary": 1031,
        "dim": 50,
        "temperature": 1.0,
        "weights": 1.0,
        "ignored": 0.2,
        "weight": 0.7,
    },
    make=_make_consistent,
    output_terms=lambda case: (1 + abs(case.options["weight"])) * _largest_logit(case),
)


def _candidates(generator, rows, vocabulary, count, per_row, with_log_q, ignored) -> Options:
    """Targets, candidates that name some of them and some items twice, padding, and log_q, which is float32 always."""
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = -100
    shape = (rows, count) if per_row else (count,)
    candidates = torch.randint(vocabulary, shape, generator=generator)
    candidates[torch.rand(shape, generator=generator) < 0.1] = -1
    log_q = normal(generator, *shape).float() if with_log_q else None
    return {"targets": targets, "candidates": candidates, "log_q": log_q}


def _make_candidate_cross_entropy(
    generator, rows, vocabulary, dim, count, per_row, with_log_q, kind, power, temperature, ignored, reduction
) -> Case:
    tensors = {"states": normal(generator, rows, dim), "items": normal(generator, vocabulary, dim)}
    options = _candidates(generator, rows, vocabulary, count, per_row, with_log_q, ignored)
    options |= {"kind": kind, "positive_power": power if kind == "bce" else 1.0}
    return Case(tensors, options | {"temperature": temperature, "reduction": reduction})


def _largest_corrected_logit(case: Case) -> float:
    """The same with the correction of candidates' scores."""
    log_q = case.options["log_q"]
    rows = case.tensors["states"].shape[0] if case.options["reduction"] == "sum" else 1
    corrected = rows * log_q.abs().max().item() if log_q is not None and log_q.numel() else 0.0
    return _largest_logit(case) + corrected


CANDIDATE_CROSS_ENTROPY = Operator(
    name="candidate_cross_entropy",
    public=plr_kernels.candidate_cross_entropy,
    formula=lambda states, items, targets, candidates, log_q, kind, positive_power, temperature, reduction: (
        candidate_cross_entropy_reference.candidate_cross_entropy(
            states, items, targets, candidates, log_q, kind, positive_power, temperature, -100, reduction
        )
    ),
    implementations=candidate_cross_entropy_operator.IMPLEMENTATIONS,
    sizes=st.fixed_dictionaries(
        {
            "rows": st.integers(0, 9) | st.just(35),
            "vocabulary": st.integers(1, 40),
            "dim": _dims,
            "count": st.integers(1, 9) | st.just(70),
            "per_row": st.booleans(),
            "with_log_q": st.booleans(),
            "kind": st.sampled_from(["softmax", "bce"]),
            "power": st.sampled_from([0.0, 0.1, 1.0]),
            "temperature": _temperatures,
            "ignored": st.sampled_from([0.0, 0.3, 1.0]),
            "reduction": st.sampled_from(["mean", "sum", "none"]),
        }
    ),
    small={
        "rows": 4,
        "vocabulary": 5,
        "dim": 3,
        "count": 4,
        "per_row": False,
        "with_log_q": True,
        "kind": "softmax",
        "power": 0.3,
        "temperature": 0.7,
        "ignored": 0.3,
        "reduction": "mean",
    },
    large={
        "rows": 131,
        "vocabulary": 503,
        "dim": 50,
        "count": 300,
        "per_row": False,
        "with_log_q": True,
        "kind": "softmax",
        "power": 0.3,
        "temperature": 1.0,
        "ignored": 0.2,
        "reduction": "none",
    },
    make=_make_candidate_cross_entropy,
    output_terms=_largest_corrected_logit,
)

CANDIDATE_BCE = dataclasses.replace(
    CANDIDATE_CROSS_ENTROPY,
    variant="-bce",
    sizes=CANDIDATE_CROSS_ENTROPY.sizes.map(lambda sizes: sizes | {"kind": "bce"}),
    small=CANDIDATE_CROSS_ENTROPY.small | {"kind": "bce", "per_row": True},
    large=CANDIDATE_CROSS_ENTROPY.large | {"kind": "bce", "per_row": True, "count": 70},
)


def _make_candidate_mixture(
    generator, rows, streams, vocabulary, dim, count, per_row, with_log_q, temperature, ignored, reduction
) -> Case:
    tensors = {
        "states": normal(generator, rows, streams, dim),
        "log_weights": torch.log_softmax(normal(generator, rows, streams), dim=1),
        "items": normal(generator, vocabulary, dim),
    }
    options = _candidates(generator, rows, vocabulary, count, per_row, with_log_q, ignored)
    return Case(tensors, options | {"temperature": temperature, "reduction": reduction})


CANDIDATE_MIXTURE_CROSS_ENTROPY = Operator(
    name="candidate_mixture_cross_entropy",
    public=plr_kernels.candidate_mixture_cross_entropy,
    formula=lambda states, log_weights, items, targets, candidates, log_q, temperature, reduction: (
        candidate_cross_entropy_reference.candidate_mixture_cross_entropy(
            states, log_weights, items, targets, candidates, log_q, temperature, -100, reduction
        )
    ),
    implementations=candidate_cross_entropy_operator.MIXTURE_IMPLEMENTATIONS,
    sizes=st.fixed_dictionaries(
        {
            "rows": st.integers(0, 7),
            "streams": st.integers(1, 5),
            "vocabulary": st.integers(1, 40),
            "dim": _dims,
            "count": st.integers(1, 9),
            "per_row": st.booleans(),
            "with_log_q": st.booleans(),
            "temperature": _temperatures,
            "ignored": st.sampled_from([0.0, 0.3, 1.0]),
            "reduction": st.sampled_from(["mean", "sum", "none"]),
        }
    ),
    small={
        "rows": 4,
        "streams": 3,
        "vocabulary": 5,
        "dim": 3,
        "count": 4,
        "per_row": False,
        "with_log_q": True,
        "temperature": 0.7,
        "ignored": 0.3,
        "reduction": "mean",
    },
    large={
        "rows": 67,
        "streams": 3,
        "vocabulary": 503,
        "dim": 50,
        "count": 70,
        "per_row": False,
        "with_log_q": False,
        "temperature": 1.0,
        "ignored": 0.2,
        "reduction": "none",
    },
    make=_make_candidate_mixture,
    output_terms=_largest_corrected_logit,
)

# top_items has no gradients and its ids are exact: test_top_items.py holds its tests.
LOSSES = (
    PAIRWISE_KL,
    INFO_NCE,
    LINEAR_CROSS_ENTROPY,
    MIXTURE_CROSS_ENTROPY,
    CONSISTENT_MIXTURE_CROSS_ENTROPY,
    CANDIDATE_CROSS_ENTROPY,
    CANDIDATE_BCE,
    CANDIDATE_MIXTURE_CROSS_ENTROPY,
)
OPERATORS = (STREAM_ATTENTION, STREAM_ATTENTION_PER_QUERY, *LOSSES)


def implemented() -> list[tuple[Target, Operator]]:
    """Every operator on every target that has an implementation of it."""
    return [
        (target, operator)
        for target in targets()
        for operator in OPERATORS
        if target.backend in operator.implementations
    ]


# ---------------------------------------------------------------------------------------------- cases


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


def _transposed(tensor: Tensor) -> Tensor:
    """The same values, stored with the dimensions in reverse order."""
    return tensor.permute(*reversed(range(tensor.ndim))).contiguous().permute(*reversed(range(tensor.ndim)))


def _sliced(tensor: Tensor) -> Tensor:
    """The same values as every second entry of a larger tensor that is NaN elsewhere."""
    storage = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), torch.nan)
    view = storage[..., 1::2]
    return view.copy_(tensor)


def _expanded(tensor: Tensor) -> Tensor:
    """One entry of a dimension for all of them, with stride 0.

    Of a table that is a column: with all items alike the distributions over them are uniform whatever the state, and
    the gradients nothing but rounding.
    """
    dim = -1 if tensor.ndim == 2 else 0
    return tensor.narrow(dim, 0, 1).expand_as(tensor) if tensor.shape[dim] > 0 else tensor


LAYOUTS = (_contiguous, _transposed, _sliced, _expanded)


def make_case(
    operator: Operator,
    sizes: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    generator_seed: int = 0,
    layouts: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Case:
    """A case in a dtype, on a device, and with each tensor in the memory layout that is asked for."""
    generator = torch.Generator().manual_seed(generator_seed)
    case = operator.make(generator, **sizes)
    layouts = layouts or {}
    return Case(
        {name: layouts.get(name, _contiguous)(tensor.to(device, dtype)) for name, tensor in case.tensors.items()},
        {name: value.to(device) if isinstance(value, Tensor) else value for name, value in case.options.items()},
    )


def cast(case: Case, dtype: torch.dtype) -> Case:
    """The same case, its tensors in another dtype."""
    return dataclasses.replace(case, tensors={name: tensor.to(dtype) for name, tensor in case.tensors.items()})


def _nudged(case: Case, generator: torch.Generator) -> Case:
    """The case in float32, each number moved by at most a unit of rounding."""

    def nudge(tensor: Tensor) -> Tensor:
        shift = 2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1
        return (tensor.double() * (1 + torch.finfo(torch.float32).eps * shift.to(tensor.device))).float()

    return dataclasses.replace(case, tensors={name: nudge(tensor) for name, tensor in case.tensors.items()})


def evaluate(function: Callable[..., Tensor], case: Case, wanted: Collection[str] | None = None) -> Tensors:
    """The output and the gradients asked for (all, if not told), by name.

    The gradient of the output is drawn at random, and is representable in half precision: all dtypes get the
    same.
    """
    names = list(case.tensors) if wanted is None else [name for name in case.tensors if name in wanted]
    leaves = {name: tensor.detach().requires_grad_(name in names) for name, tensor in case.tensors.items()}
    output = function(**leaves, **case.options)
    generator = torch.Generator().manual_seed(1)
    cotangent = (torch.randint(-8, 9, output.shape, generator=generator) / 8).to(output)
    if output.ndim == 0:
        cotangent = torch.ones_like(output)
    gradients = torch.autograd.grad(output, [leaves[name] for name in names], cotangent) if names else ()
    results = {"output": output.detach()}
    return results | {f"gradient of {name}": grad for name, grad in zip(names, gradients, strict=True)}


# ---------------------------------------------------------------------------------------------- the rule


def largest_error(result: Tensor, truth: Tensor) -> float:
    """The largest deviation of any entry from the truth; NaN if one is NaN."""
    return (result.double() - truth).abs().max().item() if truth.numel() else 0.0


def _finite(error: float) -> float:
    """The error of a formula, where one that overflows excuses nothing: its error counts as 0."""
    return error if math.isfinite(error) else 0.0


def allowed_error(
    truth: Tensor, result_dtype: torch.dtype, plain: Tensor, in_float32: Sequence[Tensor], terms: float
) -> float:
    """The largest error that the rule allows, given runs in float32: more of them never make it smaller."""
    magnitude = truth.abs().max().item() if truth.numel() else 0.0
    unit = torch.finfo(torch.float32).eps * max(magnitude, terms)
    noise = max(unit, *(_finite(largest_error(run, truth)) for run in in_float32)) if in_float32 else unit
    return max(_finite(largest_error(plain, truth)), FACTOR * noise) + torch.finfo(result_dtype).eps / 2 * magnitude


def assert_accurate(results: Tensors, operator: Operator, case: Case) -> None:
    """Fail unless every result is as close to the truth as the plain formula comes.

    The plain formula runs in the case's dtype, and in float32, in which every backend holds its sums: there also on
    inputs moved by rounding, since a single run can be right by luck, a scalar loss above all. These runs take most of
    a test's time and can only allow more, so they are made until all results are within what is allowed.
    """
    wanted = [name.removeprefix("gradient of ") for name in results if name != "output"]
    exact = cast(case, torch.float64)
    truth = evaluate(operator.formula, exact, wanted)
    assert results.keys() == truth.keys()
    for name, result in results.items():
        assert result.shape == truth[name].shape, name
        assert truth[name].isfinite().all(), name
    plain = evaluate(operator.formula, case, wanted)
    terms = operator.output_terms(exact)
    generator = torch.Generator().manual_seed(2)
    in_float32: list[Tensors] = []
    while True:
        wrong = {}
        for name, result in results.items():
            runs = [run[name] for run in in_float32]
            allowed = allowed_error(truth[name], result.dtype, plain[name], runs, terms if name == "output" else 0.0)
            error = largest_error(result, truth[name])
            if not error <= allowed:  # nor NaN
                wrong[name] = f"{operator.name}: {name} is off by {error:.3g}, allowed is {allowed:.3g}"
        if not wrong:
            return
        assert len(in_float32) <= NUDGED_RUNS, next(iter(wrong.values()))
        run = _nudged(case, generator) if in_float32 else cast(case, torch.float32)
        in_float32.append(evaluate(operator.formula, run, wanted))
