"""The least work of an operator, and how fast this machine does such work: no implementation can be faster.

The rates are measured in the same rounds as the operator. For the losses and top_items the work is matrix products, at
the best rate that any product in the process reaches; for stream_attention it is reading and writing every tensor
once, as fast as a plain copy of as many bytes; where nearly all is reading, in its forward pass without gradients and
in top_items of one row, as fast as summing as many.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Run = Callable[[], object]


@dataclass
class Probe:
    """Work of the same kind whose rate is measured.

    Attributes:
        amount: floating-point operations, or bytes, of one run.
        run: does it.
        phase: the phase of the operator that it is like; None for all.
        seconds: of every round.
    """

    amount: float
    run: Run
    phase: str | None = None
    seconds: list[float] = field(default_factory=list)


@dataclass
class Limit:
    """Attributes: unit, "flop" or "byte"; work, units needed by phase; probes by name."""

    unit: str
    work: dict[str, float]
    probes: dict[str, Probe]

    def measure(self) -> None:
        """Give every probe one turn, after one to warm up."""
        for probe in self.probes.values():
            if not probe.seconds:
                probe.run()
            start = time.perf_counter()
            probe.run()
            probe.seconds.append(time.perf_counter() - start)

    def record(self) -> dict[str, Any]:
        """For the result file."""
        probes = {
            name: {"amount": probe.amount, "phase": probe.phase, "seconds": probe.seconds}
            for name, probe in self.probes.items()
        }
        return {"unit": self.unit, "work": self.work, "probes": probes}


def products(
    rows: int,
    columns: int,
    depth: int,
    *,
    groups: int = 1,
    forward: int = 1,
    backward: int = 3,
    dtype: torch.dtype = torch.float32,
) -> Limit:
    """The limit of an operator that needs `forward` and `backward` products of [rows, depth] by [depth, columns].

    The backward passes of the losses compute the scores anew, then a product for each of two gradients. The probes
    are the product of that shape and a square one that fits the caches, as torch.matmul and as oneDNN compute them.
    """
    flop = 2 * rows * columns * depth
    probes = _product_probes("this shape", rows, columns, depth, dtype)
    probes |= _product_probes("1024 squared", 1024, 1024, 1024, dtype)
    work = {"forward": forward * groups * flop, "backward": backward * groups * flop}
    return Limit("flop", {phase: amount for phase, amount in work.items() if amount}, probes)


def _product_probes(name: str, rows: int, columns: int, depth: int, dtype: torch.dtype) -> dict[str, Probe]:
    left, right = torch.randn(rows, depth, dtype=dtype), torch.randn(columns, depth, dtype=dtype)
    flop = 2 * rows * columns * depth
    output = torch.empty(rows, columns, dtype=dtype)
    probes = {f"torch.matmul, {name}": Probe(flop, lambda: torch.mm(left, right.T, out=output))}
    # oneDNN, which torch.matmul leaves to MKL for float32; on CPUs not made by Intel MKL is much slower.
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # not public
    if linear is not None and torch.backends.mkldnn.is_available():
        probes[f"oneDNN, {name}"] = Probe(flop, lambda: linear(left, right, None, "none", [], ""))
    return probes


def copies(*, forward: int, backward: int = 0) -> Limit:
    """The limit of an operator that must read and write `forward` and `backward` bytes: a copy that moves as many."""
    work = {phase: amount for phase, amount in (("forward", forward), ("backward", backward)) if amount}
    return Limit("byte", work, {f"copy, {phase}": _copy_probe(amount, phase) for phase, amount in work.items()})


def reads(*, forward: int) -> Limit:
    """The limit of an operator that must read `forward` bytes: a sum of as many, or a copy that moves as many."""
    source = torch.zeros(max(forward // 4, 1))  # float32
    probes = {"sum, forward": Probe(source.nbytes, source.sum, "forward")}
    return Limit("byte", {"forward": forward}, probes | {"copy, forward": _copy_probe(forward, "forward")})


def _copy_probe(moved: int, phase: str) -> Probe:
    source = torch.zeros(max(moved // 8, 1))  # float32; half of the bytes are read, half written
    target = torch.empty_like(source)
    return Probe(source.nbytes + target.nbytes, lambda: target.copy_(source), phase)
