"""The least work of an operator, and how fast this machine does such work: no implementation can be faster.

The rates are measured in the same rounds as the operator. For the losses and top_items the work is matrix products, at
the best rate that any product in the process reaches; for stream_attention it is reading and writing every tensor
once, as fast as a plain copy of as many bytes; where nearly all is reading, in its forward pass without gradients and
in top_items of one row, as fast as summing as many; where each query has a length of its own, whichever of bytes and
products takes longer. A probe that cannot run on this machine is named and left out: for instance, oneDNN has no
product of bfloat16 numbers for a CPU without AVX-512.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.failures import noted

CPU = torch.device("cpu")
Run = Callable[[], object]
# What takes longer in all has no further rounds, after at least two.
TIME_BUDGET = 20.0


def over_budget(seconds: Sequence[float]) -> bool:
    """Whether the rounds so far, of these seconds, are enough of what is slow."""
    return len(seconds) >= 2 and sum(seconds) >= TIME_BUDGET


def wall_seconds(run: Run) -> float:
    """The time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


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
    """Least work, and how fast it can be done.

    Attributes:
        unit: "flop" or "byte".
        work: units needed by phase.
        probes: by name.
        failed: {probe: message}, the probes that cannot run here.
    """

    unit: str
    work: dict[str, float]
    probes: dict[str, Probe]
    failed: dict[str, str] = field(default_factory=dict)

    def measure(self, timed: Callable[[Run], float] = wall_seconds) -> None:
        """Give every probe one turn, after one to warm up; `timed` returns the seconds of a call."""
        for name, probe in self.probes.items():
            if name in self.failed or over_budget(probe.seconds):
                continue
            with noted(self.failed, name):
                if not probe.seconds:
                    probe.run()
                probe.seconds.append(timed(probe.run))

    def record(self) -> dict[str, Any]:
        """For the result file: what could be measured."""
        probes = {
            name: {"amount": probe.amount, "phase": probe.phase, "seconds": probe.seconds}
            for name, probe in self.probes.items()
            if probe.seconds
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
    both: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    edge: int = 1024,
) -> Limit:
    """The limit of an operator that needs `forward` and `backward` products of [rows, depth] by [depth, columns].

    A backward pass that recomputes the scores takes a product for them, then one for each of two gradients; `both` is
    for an operator that makes gradients in its forward pass, and counts its products as a whole. The probes are
    the product of that shape and a square one of `edge`, which on a CPU fits the caches, as torch.matmul and on a CPU
    as oneDNN compute them.
    """
    flop = 2 * rows * columns * depth
    probes = _product_probes("this shape", rows, columns, depth, dtype, device)
    probes |= _product_probes(f"{edge} squared", edge, edge, edge, dtype, device)
    if dtype != torch.float32 and device == CPU:  # many CPUs multiply half-precision numbers faster as float32 ones
        probes |= _product_probes("this shape in float32", rows, columns, depth, torch.float32, device)
        probes |= _product_probes(f"{edge} squared in float32", edge, edge, edge, torch.float32, device)
    counts = {"forward": forward, "backward": backward} if both is None else {"both": both}
    work = {phase: count * groups * flop for phase, count in counts.items()}
    return Limit("flop", {phase: amount for phase, amount in work.items() if amount}, probes)


def _product_probes(
    name: str, rows: int, columns: int, depth: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Probe]:
    left = torch.randn(rows, depth, dtype=dtype, device=device)
    right = torch.randn(columns, depth, dtype=dtype, device=device)
    flop = 2 * rows * columns * depth
    output = torch.empty(rows, columns, dtype=dtype, device=device)
    probes = {f"torch.matmul, {name}": Probe(flop, lambda: torch.mm(left, right.T, out=output))}
    # oneDNN, which torch.matmul leaves to MKL for float32; on CPUs not made by Intel MKL is much slower.
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # not public
    if linear is not None and torch.backends.mkldnn.is_available() and device == CPU:
        probes[f"oneDNN, {name}"] = Probe(flop, lambda: linear(left, right, None, "none", [], ""))
    return probes


def square_products(*, forward: int, backward: int, edge: int = 1024) -> Limit:
    """The limit of an operator that needs so many flop of small products: those of a large square one on this CPU."""
    probes = _product_probes(f"{edge} squared", edge, edge, edge, torch.float32, CPU)
    return Limit("flop", {"forward": forward, "backward": backward}, probes)


def slowest(*limits: Limit) -> Limit:
    """The limit that takes longest on this machine, all phases together, by the best of a few rounds of each."""

    def seconds(limit: Limit) -> float:
        for _ in range(3):
            limit.measure()
        rates = {
            phase: max(
                (
                    probe.amount / min(probe.seconds)
                    for probe in limit.probes.values()
                    if probe.seconds and probe.phase in (None, phase)
                ),
                default=math.inf,
            )
            for phase in limit.work
        }
        for probe in limit.probes.values():
            probe.seconds.clear()
        return sum(amount / rates[phase] for phase, amount in limit.work.items())

    return max(limits, key=seconds)


def copies(*, forward: int, backward: int = 0) -> Limit:
    """The limit of an operator that must read and write `forward` and `backward` bytes: a copy that moves as many."""
    moved = {"forward": forward, "backward": backward}
    work: dict[str, float] = {phase: amount for phase, amount in moved.items() if amount}
    return Limit("byte", work, {f"copy, {phase}": copy_probe(amount, phase) for phase, amount in work.items()})


def reads(*, forward: int) -> Limit:
    """The limit of an operator that must read `forward` bytes: a sum of as many, or a copy that moves as many."""
    source = torch.zeros(max(forward // 4, 1))  # float32
    probes = {"sum, forward": Probe(source.nbytes, source.sum, "forward")}
    return Limit("byte", {"forward": forward}, probes | {"copy, forward": copy_probe(forward, "forward")})


def copy_probe(moved: float, phase: str | None, device: torch.device = CPU) -> Probe:
    """A copy that moves as many bytes, half of them read and half written."""
    source = torch.zeros(max(int(moved) // 8, 1), device=device)  # float32
    target = torch.empty_like(source)
    return Probe(source.nbytes + target.nbytes, lambda: target.copy_(source), phase)
