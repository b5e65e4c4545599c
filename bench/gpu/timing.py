"""Times implementations in turns by a device's own clock; their memory, and how far their results are from exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.failures import noted
from bench.gpu.cases import Case
from bench.records import OURS

# What a round writes before each turn: more than any chip's L2 cache holds, and long enough for the host to prepare
# the launches that follow.
FLUSHED_BYTES = 512 * 2**20
WARM_UP = 3
# A peer slower than ours by this factor in the first round needs no more than a few.
SLOW_FACTOR, SLOW_ROUNDS = 20.0, 5

Run = Callable[[], list[Tensor]]
Times = dict[str, dict[str, list[float]]]


class Clock(Protocol):
    """A device's time and memory."""

    def flush(self) -> None:
        """Clear the cache."""

    def mark(self) -> Any:
        """A point in the device's order of work."""

    def seconds(self, start: Any, stop: Any) -> float:
        """From one mark to the other, waiting for them."""

    def peak(self, run: Callable[[], object]) -> int:
        """How many bytes a call needs beyond those allocated before it, at its peak."""

    def captured(self, run: Run) -> Callable[[], object]:
        """The call without the host's part: to be repeated by calling what is returned."""


class CudaClock:
    """CUDA events, the caching allocator's counters, CUDA graphs."""

    def __init__(self) -> None:
        self._written = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device="cuda")

    def flush(self) -> None:
        self._written.zero_()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def peak(self, run: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def captured(self, run: Run) -> Callable[[], object]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                run()
            # A call that waits for the device fails here rather than in a capture. From one that was broken off older
            # versions of PyTorch do not recover: they neither clear their memory nor capture again in this process.
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outcome = run()

        def replay() -> list[Tensor]:
            graph.replay()
            return outcome

        return replay


def forward(case: Case, name: str) -> Tensor:
    """The implementation's output on the case's tensors."""
    return case.implementations[name](*case.leaves)


def backward(case: Case, output: Tensor) -> list[Tensor]:
    """The output, and the gradients where the case has any; an output that is no scalar counts as summed."""
    if not case.backward:
        return [output]
    return [output.detach(), *torch.autograd.grad(output, case.leaves, torch.ones_like(output))]


def error(results: list[Tensor], exact: list[Tensor]) -> float:
    """The largest difference from exact results, each tensor's by its largest number; NaN where one is not finite."""
    worst = 0.0
    for result, truth in zip(results, exact, strict=True):
        if not bool(result.isfinite().all()):
            return float("nan")
        difference = (result.double() - truth.double()).abs().max() / truth.double().abs().max()
        worst = max(worst, difference.item())
    return worst


def exact_results(case: Case) -> list[Tensor]:
    """The formula in float32 on the same numbers, its products exact."""
    leaves = tuple(leaf.detach().float().requires_grad_(case.backward) for leaf in case.leaves)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        output = case.formula(*leaves)
        if not case.backward:
            return [output]
        return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]
    finally:
        torch.set_float32_matmul_precision(precision)


class WrongResultError(RuntimeError):
    """Our own results are not what the formula says."""


def compare(case: Case, clock: Clock, rounds: int) -> dict[str, Any]:
    """Check, then time; returns an entry of the result file, as bench.report reads it.

    A peer that fails, for want of memory say, is named with its error in "failed" and left out; ours must not.

    Raises:
        WrongResultError: ours are further from the formula than `case.allowed_error`.
    """
    failed: dict[str, str] = {}
    results: dict[str, list[Tensor]] = {}
    for name in case.implementations:
        with noted(failed, name, needed=name == OURS):
            for _ in range(WARM_UP):
                outcome = backward(case, forward(case, name))
            results[name] = outcome
    names = list(results)
    exact = results[names[-1]] if case.formula is None else exact_results(case)
    found = {name: error(result, exact) for name, result in results.items()}
    del exact, results, outcome
    if not found[OURS] <= case.allowed_error:
        raise WrongResultError(f"off by {found[OURS]:.2g} from the formula, where {case.allowed_error:.2g} is rounding")

    seconds = in_turns(case, names, clock, rounds)
    if case.limit is not None:
        failed |= {f"the limit's probe {name}": message for name, message in case.limit.failed.items()}
    extra_bytes = {name: extra_memory(case, name, clock) for name in names}
    if case.capture:
        for name in names:
            with noted(failed, f"{name}, captured", needed=name == OURS):
                seconds[name] = {"captured": captured_seconds(case, name, clock, rounds), **seconds[name]}
    return {
        "fullname": f"{case.operator}::{case.shape}",
        "param": case.shape,
        "extra_info": {
            "seconds": seconds,
            "extra_bytes": extra_bytes,
            "errors": {name: value if math.isfinite(value) else None for name, value in found.items()},
            "failed": failed,
            "limit": case.limit and case.limit.record(),
        },
    }


def captured_seconds(case: Case, name: str, clock: Clock, rounds: int) -> list[float]:
    """The seconds of every replay; one implementation after the other, since each graph keeps its memory."""
    graph = clock.captured(lambda: backward(case, forward(case, name)))
    return [timed(clock, graph) for _ in range(rounds)]


def in_turns(case: Case, names: list[str], clock: Clock, rounds: int) -> Times:
    """The seconds of each implementation, phase and round; the limit's probes have their turn in every round too."""
    seconds: Times = {name: {} for name in names}
    for round_number in range(rounds):
        if case.limit is not None:
            case.limit.measure(partial(timed, clock))
        for name in names:
            slow = round_number and whole(seconds[name])[0] > SLOW_FACTOR * whole(seconds[OURS])[0]
            if slow and round_number >= SLOW_ROUNDS:
                continue
            clock.flush()
            start = clock.mark()
            output = forward(case, name)
            between = clock.mark()
            if case.backward:
                backward(case, output)
                stop = clock.mark()
                both = clock.seconds(start, stop)
                phases = {
                    "forward": clock.seconds(start, between),
                    "backward": clock.seconds(between, stop),
                    "both": both,
                }
            else:
                phases = {"forward": clock.seconds(start, between)}
            for phase, value in phases.items():
                seconds[name].setdefault(phase, []).append(value)
    return seconds


def whole(times: dict[str, list[float]]) -> list[float]:
    """The seconds of all phases together, which come last."""
    return list(times.values())[-1]


def timed(clock: Clock, run: Callable[[], object]) -> float:
    """One call, behind a cleared cache."""
    clock.flush()
    start = clock.mark()
    run()
    return clock.seconds(start, clock.mark())


def extra_memory(case: Case, name: str, clock: Clock) -> dict[str, int]:
    """The bytes at the peak of each phase, with those before it, without what is returned."""
    kept: list[Tensor] = []

    def step() -> None:
        output = forward(case, name)
        kept.extend(backward(case, output))

    def only_forward() -> None:
        kept.append(forward(case, name).detach())

    extra = {}
    for phase, run in {"forward": only_forward, "both": step}.items() if case.backward else [("forward", only_forward)]:
        peak = clock.peak(run)
        extra[phase] = max(peak - sum(tensor.nbytes for tensor in kept), 0)
        kept.clear()
    return extra
