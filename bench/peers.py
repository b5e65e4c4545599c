"""What the benchmarks share: an operator and its peers, timed in turns. docs/benchmarks.md explains the figures.

    python -m bench.report --run

Every figure of merit is a ratio to a peer measured in the same run. In every round each implementation has one turn, so
that whatever else the machine does meets all of them, and the ratios are taken round by round.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.failures import noted
from bench.limits import Limit, over_budget
from bench.records import OURS
from plr_kernels import use_backend


class Step:
    """Phases that run one after the other, each with what the one before returned.

    Args:
        whole: the name of all phases together.
        phases: by name; the first is called with None, the last returns tensors.

    Attributes:
        seconds: of the last call, for each phase and for the whole.
    """

    def __init__(self, whole: str, phases: dict[str, Callable[[Any], Any]]) -> None:
        self.whole = whole
        self.phases = phases
        self.seconds: dict[str, float] = {}

    def __call__(self) -> list[Tensor]:
        outcome: Any = None
        times = [time.perf_counter()]
        for phase in self.phases.values():
            outcome = phase(outcome)
            times.append(time.perf_counter())
        self.seconds = {name: end - start for name, start, end in zip(self.phases, times, times[1:], strict=False)}
        self.seconds[self.whole] = times[-1] - times[0]
        return outcome


def training_step(
    loss: Callable[..., Tensor], *leaves: Tensor, backend: str | None = None, divided: bool = True
) -> Step:
    """A step that computes the loss, forward, and all its gradients, backward.

    `divided=False` is for a loss that computes gradients in its forward pass: only the whole can be compared.
    """
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)

    def forward(_: None) -> Tensor:
        if backend is None:
            return loss(*leaves)
        with use_backend(backend):
            return loss(*leaves)

    def backward(value: Tensor) -> list[Tensor]:
        # An operator's output that is no scalar counts as summed.
        return [value.detach(), *torch.autograd.grad(value, leaves, torch.ones_like(value))]

    if not divided:
        return Step("both", {"both": lambda _: backward(forward(None))})
    return Step("both", {"forward": forward, "backward": backward})


def compiled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The formula as torch.compile fuses it."""
    torch._dynamo.reset()  # it compiles one function for eight shapes and no more
    torch._inductor.config.compile_threads = 1  # no pool of processes beside what is timed
    return torch.compile(loss, fullgraph=True, dynamic=False)


def compare(
    benchmark: Any,
    implementations: dict[str, Callable[[], list[Tensor]]],
    rounds: int,
    limit: Limit | None = None,
    unchecked: frozenset[str] = frozenset(),
) -> None:
    """Time the implementations in turns, `rounds` times each after one round to warm up, and their memory once.

    pytest-benchmark's own columns are those of OURS. extra_info holds the seconds of every implementation, phase and
    round, the extra memory, what the limit was found from, and under "failed" the peers and probes that cannot run
    here, each with its error; OURS must run.

    Args:
        benchmark: pytest-benchmark's fixture.
        implementations: by name, OURS among them: steps, or functions, which count as forward passes.
        rounds: fewer for a peer that is over the time budget (bench/limits.py).
        limit: the least work, and how fast this machine does such work.
        unchecked: peers that compute in a lower precision, whose results need not agree with ours.
    """
    steps = {name: _as_step(run) for name, run in implementations.items()}
    failed: dict[str, str] = {}
    results = {}
    for name, step in steps.items():
        with noted(failed, name, needed=name == OURS):
            results[name] = step()
    _check_agreement({name: result for name, result in results.items() if name not in unchecked})
    del results

    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in steps}

    def take_turn(name: str) -> None:
        steps[name]()
        for phase, value in steps[name].seconds.items():
            seconds[name].setdefault(phase, []).append(value)

    def take_peers_turns() -> None:
        if limit is not None:
            limit.measure()
        for name in steps:
            if name != OURS and name not in failed and not over_budget(seconds[name].get(steps[name].whole, ())):
                with noted(failed, name):
                    take_turn(name)

    benchmark.pedantic(take_turn, args=(OURS,), setup=take_peers_turns, rounds=rounds)
    measured = {name: phases for name, phases in seconds.items() if phases}
    extra_bytes: dict[str, dict[str, int] | None] = dict.fromkeys(measured)
    for name in measured:
        if name not in failed:
            with noted(failed, f"{name}, memory", needed=name == OURS):
                extra_bytes[name] = extra_memory(steps[name])
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["seconds"] = measured
    benchmark.extra_info["extra_bytes"] = extra_bytes
    benchmark.extra_info["failed"] = failed
    if limit is not None:
        benchmark.extra_info["limit"] = limit.record()
        failed |= {f"the limit's probe {name}": message for name, message in limit.failed.items()}


def _as_step(run: Callable[[], list[Tensor]]) -> Step:
    return run if isinstance(run, Step) else Step("forward", {"forward": lambda _: run()})


def _check_agreement(results: dict[str, list[Tensor]]) -> None:
    for name, result in results.items():
        for mine, theirs in zip(results[OURS], result, strict=True):
            difference = (mine.double() - theirs.double()).abs().max() / theirs.double().abs().max()
            # What summing in another order may cost, and two roundings to half precision: of the gradient by scores
            # and of the result.
            allowed = 1e-4 + sum(torch.finfo(tensor.dtype).eps for tensor in (mine, theirs) if tensor.itemsize == 2)
            assert difference < allowed, f"{name} disagrees by {difference:.2g}"


def extra_memory(step: Step) -> dict[str, int] | None:
    """How far each phase, with those before it, raises the resident memory beyond what the step returns, in bytes.

    By name of the phase; the last goes by the name of the whole. None where the system is not Linux.
    """
    peak_reset = Path("/proc/self/clear_refs")
    if not peak_reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed, but is still resident, would hide what the call needs
    peak_reset.write_text("5")
    before = resident_bytes("VmRSS")
    outcome: Any = None
    extra = {}
    for name, phase in step.phases.items():
        outcome = phase(outcome)
        extra[name] = max(resident_bytes("VmHWM") - before, 0)
    extra[step.whole] = max(extra.pop(name) - sum(tensor.nbytes for tensor in outcome), 0)
    return extra


def resident_bytes(field: str) -> int:
    """What Linux says of this process' resident memory: VmRSS now, VmHWM at its peak."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024
