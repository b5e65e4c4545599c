"""Checks of arguments. Every message names the argument, what is accepted and what was found."""

from __future__ import annotations

import math
import sys
from typing import Any, Final

import torch
from torch import Tensor

from plr_kernels.dispatch.dispatcher import unwrapped, value_is_readable

FLOATING_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS: Final = ("mean", "sum", "none")


def check_tensor(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, found {type(value).__name__}")


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise unless the tensor's entries lie in plain memory: it is not sparse, nested or of a library's own layout."""
    if tensor.layout != torch.strided or tensor.is_nested:
        found = "a nested one" if tensor.is_nested else tensor.layout
        raise TypeError(f"{name} must be a dense tensor, of layout torch.strided, found {found}")


def check_floating(**tensors: Tensor) -> None:
    """Raise unless all tensors are dense, have one floating dtype and lie on one device: those of the first."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        check_dense(name, tensor)
        if tensor.dtype not in FLOATING_DTYPES:
            accepted = ", ".join(str(dtype) for dtype in FLOATING_DTYPES)
            raise TypeError(f"{name} must have one of the dtypes {accepted}, found {tensor.dtype}")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}, found {tensor.dtype}")
        if tensor is not first:
            check_device(name, tensor, first_name, first)


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless `tensor` lies on the device of `other`."""
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, found {tensor.device}")


def check_integer(name: str, value: Any, dtypes: tuple[torch.dtype, ...], other_name: str, other: Tensor) -> None:
    """Raise unless `value` is a dense tensor of one of `dtypes` on the device of `other`."""
    check_tensor(name, value)
    check_dense(name, value)
    if value.dtype not in dtypes:
        accepted = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must have dtype {accepted}, found {value.dtype}")
    check_device(name, value, other_name, other)


def check_shape(name: str, tensor: Tensor, layout: str, sizes: dict[str, int]) -> None:
    """Raise unless `tensor` has the dimensions that `layout` names.

    Args:
        name: the argument's name, for the message.
        tensor: the tensor to check.
        layout: the names of the dimensions, for example "B H M D", or a number; "B or B M" accepts either.
        sizes: the sizes known so far; those that `layout` names for the first time are added to it.
    """
    shape = tensor.shape
    layouts = [alternative.split() for alternative in layout.split(" or ")]
    for dimensions in layouts:
        if len(shape) != len(dimensions):
            continue
        fits = True
        for dimension, size in zip(dimensions, shape, strict=True):
            fits = fits and (int(dimension) if dimension.isdigit() else sizes.get(dimension, size)) == size
        if fits:
            for dimension, size in zip(dimensions, shape, strict=True):
                if not dimension.isdigit():
                    sizes[dimension] = size
            return
    accepted = " or ".join(
        "[" + ", ".join(f"{known}={sizes[known]}" if known in sizes else known for known in dimensions) + "]"
        for dimensions in layouts
    )
    raise ValueError(f"{name} must have shape {accepted}, found {list(shape)}")


def check_not_empty(name: str, dimension: str, sizes: dict[str, int]) -> None:
    """Raise if `dimension` of the argument `name` has size 0."""
    if sizes[dimension] == 0:
        raise ValueError(f"{name} must have at least one entry along {dimension}, found {dimension}=0")


def check_number(name: str, value: Any) -> None:
    """Raise unless `value` is a finite Python number."""
    # What is derived from a shape is a symbol while that is traced. PyTorch 2.7 cannot trace `int | float`.
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} must be a number, found {type(value).__name__}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, found {value}")
    if isinstance(value, int) and not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError(f"{name} must be at most {sys.float_info.max} in size, found {value}")


def check_temperature(temperature: Any) -> None:
    """Raise unless the temperature is a finite number above 0."""
    check_number("temperature", temperature)
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")


def check_dropout_p(dropout_p: Any) -> None:
    """Raise unless the probability lies in [0, 1)."""
    check_number("dropout_p", dropout_p)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be in [0, 1), found {dropout_p}")


def check_values(
    name: str, tensor: Tensor, first: int, stop: int, accepted: str, *, besides: int | None = None, **sizes: int
) -> None:
    """Raise if an integer tensor has an entry outside [first, stop) that is not `besides`.

    On the CPU the message holds the first wrong value, its position, and the sizes that `accepted` mentions.
    Elsewhere reading a value would wait for the device, and while a graph is traced, or under FakeTensorMode, there is
    none to read: there an assertion is enqueued, which fails when the device, or the graph, reaches it. Inside
    torch.func.vmap the tensor is checked, and positions are counted, with its further dimensions.
    """
    tensor = unwrapped(tensor)
    wrong = (tensor < first) | (tensor >= stop)
    if besides is not None:
        wrong = wrong & (tensor != besides)
    if not value_is_readable(tensor):
        torch._assert_async(~wrong.any(), f"{name} must be {accepted}")
    elif wrong.any():
        position = wrong.nonzero()[0].tolist()
        known = ", ".join(f"{size}={value}" for size, value in sizes.items())
        raise ValueError(
            f"{name} must be {accepted} ({known}), found {tensor[tuple(position)].item()} at position {position}"
        )


def check_index(name: str, value: Any) -> None:
    """Raise unless `value` is a Python int."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, found {type(value).__name__}")


def check_ignore_index(value: Any) -> None:
    """Raise unless `value` is a number that an int64 tensor of targets can hold."""
    check_index("ignore_index", value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"ignore_index must fit into 64 bits, in [-2^63, 2^63), found {value}")


def check_flag(name: str, value: Any) -> None:
    """Raise unless `value` is a bool: "false" and "no" would count as True."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, found {type(value).__name__} {value!r}")


# What operators on states and an item table take.


def check_states_and_items(
    layout: str, states: Tensor, items: Tensor, log_weights: Tensor | None = None
) -> dict[str, int]:
    """The sizes of states, items [V, D] and a mixture's log_weights, of the states' dimensions but D.

    Raise unless the shapes fit and only the states' first dimension is empty, if any.

    Args:
        layout: the dimensions of `states`: "R D", "R M D", "B N D" or "N 2 M D".
        states: the states.
        items: the item table.
        log_weights: the mixtures' weights, None where there are no mixtures.
    """
    sizes: dict[str, int] = {}
    check_shape("states", states, layout, sizes)
    if log_weights is not None:
        check_shape("log_weights", log_weights, layout.removesuffix(" D"), sizes)
    check_shape("items", items, "V D", sizes)
    for dimension in layout.split()[1:]:
        if dimension in sizes:
            check_not_empty("states", dimension, sizes)
    check_not_empty("items", "V", sizes)
    return sizes


def check_ids(
    name: str, ids: Tensor, layout: str, states: Tensor, sizes: dict[str, int], *, other_name: str = "states"
) -> None:
    """Raise unless `ids` is an int64 tensor of that layout on the device of the states, or what else is named."""
    check_integer(name, ids, (torch.int64,), other_name, states)
    check_shape(name, ids, layout, sizes)


def check_targets(targets: Tensor, vocabulary: int, ignore_index: int | None = None) -> None:
    """Raise if a target is none of the vocabulary's, nor ignore_index."""
    if ignore_index is None:
        check_values("targets", targets, 0, vocabulary, "in [0, V)", V=vocabulary)
    else:
        sizes = {"V": vocabulary, "ignore_index": ignore_index}
        check_values("targets", targets, 0, vocabulary, "in [0, V) or ignore_index", besides=ignore_index, **sizes)


def check_candidates(candidates: Tensor, vocabulary: int) -> None:
    """Raise if a candidate is none of the vocabulary's, nor -1."""
    check_values("candidates", candidates, -1, vocabulary, "in [0, V), or -1 as padding", V=vocabulary)


def check_log_q(log_q: Any, candidates: Tensor, states: Tensor) -> Tensor | None:
    """The correction as the operators compute with it, without a gradient. Raise unless it fits the candidates."""
    if log_q is None:
        return None
    check_tensor("log_q", log_q)
    check_dense("log_q", log_q)
    if log_q.dtype not in FLOATING_DTYPES:
        accepted = ", ".join(str(dtype) for dtype in FLOATING_DTYPES)
        raise TypeError(f"log_q must have one of the dtypes {accepted}, found {log_q.dtype}")
    check_device("log_q", log_q, "states", states)
    if log_q.shape != candidates.shape:
        raise ValueError(
            f"log_q must have the shape of candidates, {list(candidates.shape)}, found {list(log_q.shape)}"
        )
    return log_q.detach().to(torch.float64 if states.dtype == torch.float64 else torch.float32)


def check_exclude(exclude: Tensor | None, vocabulary: int) -> None:
    """Raise if an excluded item is none of the vocabulary's, nor -1."""
    if exclude is not None:
        check_values("exclude", exclude, -1, vocabulary, "in [0, V), or -1 as padding", V=vocabulary)


def check_where(where: Tensor, states: Tensor, sizes: dict[str, int]) -> None:
    """Raise unless `where` is a mask of the items, bool [V], on the device of the states."""
    check_integer("where", where, (torch.bool,), "states", states)
    check_shape("where", where, "V", sizes)


def check_list_length(k: Any, vocabulary: int) -> None:
    """Raise unless k is an int from 1 to the number of items."""
    check_index("k", k)
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k must be in [1, V={vocabulary}], found {k}")


def check_loss_options(temperature: Any, ignore_index: Any, reduction: Any) -> None:
    """Raise unless these are the options of a cross-entropy."""
    check_temperature(temperature)
    check_ignore_index(ignore_index)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', found {reduction!r}")


def check_candidate_options(kind: Any, positive_power: Any) -> None:
    """Raise unless these say what a loss over candidates is made of."""
    if kind not in ("softmax", "bce"):
        raise ValueError(f"kind must be 'softmax' or 'bce', found {kind!r}")
    check_number("positive_power", positive_power)
    if positive_power < 0 or (kind == "softmax" and positive_power != 1):
        accepted = "0 or more" if kind == "bce" else "1 with kind 'softmax'"
        raise ValueError(f"positive_power must be {accepted}, found {positive_power}")
