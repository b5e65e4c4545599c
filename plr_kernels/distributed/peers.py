"""What the processes of a group tell each other: how many rows each has, and tensors of one row each."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as distributed
from torch import Tensor

from plr_kernels.dispatch.checks import FLOATING_DTYPES, REDUCTIONS
from plr_kernels.dispatch.dispatcher import autograd_records
from plr_kernels.dispatch.precision import upcast
from plr_kernels.distributed.shard import ItemShard

__all__ = ["Peers", "agree"]

Facts = dict[str, int]

_FACTS = 8
"""Numbers that processes tell each other before they compute: V, R, and six of the operator's own."""
_GRADIENTS: Final = ("none", "of the items alone", "of the states")


@dataclass(frozen=True)
class Peers:
    """The processes that compute together, W, and how many rows each has.

    What is gathered has as many rows of each process, R*, the largest number: those that a process lacks are filled up.

    Attributes:
        shard: of the table.
        rows: R, the process's own rows.
        size: R*.
    """

    shard: ItemShard
    rows: int
    size: int

    def gather(self, own: Tensor, fill: float = 0) -> Tensor:
        """Return what [R, ...] of all processes is together, [W·R*, ...]."""
        padded = own.new_full((self.size, *own.shape[1:]), fill)
        padded[: self.rows] = own
        return gather_equal(padded, self.shard).flatten(0, 1)

    def own(self, every: Tensor) -> Tensor:
        """Return the own rows [R, ...] of [W·R*, ...]."""
        first = self.shard.rank * self.size
        return every[first : first + self.rows].contiguous()

    def total(self, values: Tensor, operation: Any = distributed.ReduceOp.SUM) -> Tensor:
        """Return the sum of all processes' values, or what else is made of them."""
        result = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(result, operation, group=self.shard.group)
        return result

    def exchange(self, values: Tensor) -> Tensor:
        """Return for the own rows what each process has in its [W·R*, ...] for them: [W, R, ...]."""
        received = torch.empty_like(values, memory_format=torch.contiguous_format)
        distributed.all_to_all_single(received, values.contiguous(), group=self.shard.group)
        return received.unflatten(0, (self.shard.processes, self.size))[:, : self.rows]

    def scatter(self, values: Tensor) -> Tensor:
        """Return the own rows [R, ...] of the sum of all processes' [W·R*, ...], added in the processes' order."""
        return self.exchange(upcast(values)).sum(dim=0)


def agree(shard: ItemShard, states: Any, check: Callable[[], Facts]) -> Peers:
    """Check the arguments in every process before any of them waits for another.

    Args:
        shard: of the table.
        states: on whose device processes exchange, if it is a tensor.
        check: raises TypeError or ValueError, or returns {"R": rows, ...}; but for R all must be the same in all
            processes, and there are at most seven.

    Raises:
        TypeError, ValueError: those of `check`, or the processes' arguments do not fit each other.
        RuntimeError: another process refuses its arguments.
    """
    if not isinstance(shard, ItemShard):
        raise TypeError(f"shard must be an ItemShard, found {type(shard).__name__}")
    facts, error = {}, None
    try:
        facts = {"V": shard.items, **check()}
    except (TypeError, ValueError) as raised:
        error = raised
    numbers = [-1] * _FACTS if error is not None else [*facts.values(), *[0] * (_FACTS - len(facts))]
    own = torch.tensor(numbers, device=states.device if isinstance(states, Tensor) else "cpu")
    found = gather_equal(own, shard).tolist()
    if error is not None:
        raise error
    for process, theirs in enumerate(found):
        if theirs[0] < 0:
            raise RuntimeError(f"process {process} of the group refuses its arguments; it says there why")
        for name, mine, other in zip(facts, facts.values(), theirs, strict=False):
            if name != "R" and mine != other:
                raise ValueError(
                    f"{name} must be the same in all processes: {_shown(name, mine)} in process {shard.rank}, "
                    f"{_shown(name, other)} in process {process}"
                )
    rows = [dict(zip(facts, theirs, strict=False))["R"] for theirs in found]
    return Peers(shard, rows[shard.rank], max(rows))


def gather_equal(own: Tensor, shard: ItemShard) -> Tensor:
    """Return the tensors of all processes, which have one shape [...]: [W, ...]."""
    every = own.new_empty((shard.processes, *own.shape))
    distributed.all_gather(list(every.unbind(0)), own.contiguous(), group=shard.group)
    return every


def check_local_table(items: Tensor, shard: ItemShard) -> None:
    """Raise unless these are as many rows as the shard has."""
    if items.shape[0] != shard.rows:
        raise ValueError(
            f"items must have the process's {shard.rows} rows of {shard.items} (its ItemShard), found "
            f"{list(items.shape)}"
        )


def dtype_number(tensor: Tensor) -> int:
    """Return a number for a floating dtype, for `agree`."""
    return FLOATING_DTYPES.index(tensor.dtype)


def temperature_number(temperature: float) -> int:
    """Return the bits of a temperature, for `agree`."""
    return struct.unpack("<q", struct.pack("<d", temperature))[0]


def reduction_number(reduction: str) -> int:
    """Return a number for a reduction, for `agree`."""
    return REDUCTIONS.index(reduction)


def gradients_number(items: Tensor, states: Tensor | None = None) -> int:
    """Return a number for what has gradients, for `agree`: it decides what a process sends in the backward pass.

    That of the items stays in its process, so that it is not told where there is one of the states, too.
    """
    if states is not None and autograd_records(states):
        return 2
    return int(autograd_records(items))


# What numbers mean that stand for something else.
_MEANING: Final[dict[str, Callable[[int], Any]]] = {
    "dtype": FLOATING_DTYPES.__getitem__,
    "temperature": lambda number: struct.unpack("<d", struct.pack("<q", number))[0],
    "reduction": REDUCTIONS.__getitem__,
    "detach_reference": bool,
    "sparse": bool,
    "gradients": _GRADIENTS.__getitem__,
}


def _shown(name: str, value: int) -> str:
    return str(_MEANING[name](value)) if name in _MEANING else str(value)
