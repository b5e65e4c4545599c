"""What the benchmarks of the loss operators share: a training step of each rival, timed in turns.

    python -m pytest bench -s --benchmark-json=FILE

Every figure of merit is a ratio to a rival measured in the same run: rivals take turns, so that whatever else the
machine does meets all of them, and the best round counts, which it disturbed least.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plr_kernels import use_backend

OURS = "plr_kernels"


def training_step(
    loss: Callable[..., Tensor], *leaves: Tensor, backend: str | None = None
) -> Callable[[], list[Tensor]]:
    """A function that computes the loss and all its gradients."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)

    def run() -> list[Tensor]:
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    def run_on_backend() -> list[Tensor]:
        with use_backend(backend):
            return run()

    return run if backend is None else run_on_backend


def compiled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The formula as torch.compile fuses it."""
    return torch.compile(loss, fullgraph=True, dynamic=False)


def compare(benchmark: Any, rivals: dict[str, Callable[[], list[Tensor]]], rounds: int) -> None:
    """Time the rivals in turns, `rounds` times each after one round to warm up, and record times and ratios.

    All must agree first. pytest-benchmark's own columns are those of OURS; the rest is in extra_info.
    """
    results = {name: run() for name, run in rivals.items()}
    for name, result in results.items():
        for mine, theirs in zip(results[OURS], result, strict=True):
            difference = (mine - theirs).abs().max() / theirs.abs().max()
            assert difference < 1e-4, f"{name} disagrees by {difference:.2g}"
    del results

    best = dict.fromkeys(rivals, float("inf"))
    for _ in range(rounds):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    extra = {name: extra_memory(run) for name, run in rivals.items()}

    benchmark.pedantic(rivals[OURS], rounds=rounds)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["torch"] = torch.__version__
    print(f"\n{benchmark.name}")
    for name in rivals:
        ratio = best[name] / best[OURS]
        benchmark.extra_info[name] = {"seconds": best[name], "ratio": ratio, "extra_bytes": extra[name]}
        megabytes = "" if extra[name] is None else f", {extra[name] / 2**20:8.0f} MB beside inputs and gradients"
        print(f"  {name:36} {best[name] * 1e3:9.2f} ms, {ratio:6.2f} times ours{megabytes}")


def extra_memory(run: Callable[[], list[Tensor]]) -> int | None:
    """How far a call raises the resident memory beyond what it returns; None where the system is not Linux."""
    peak_reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not peak_reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed, but is still resident, would hide what the call needs
    peak_reset.write_text("5")

    def kilobytes(field: str) -> int:
        return int(status.read_text().split(f"{field}:")[1].split()[0])

    before = kilobytes("VmRSS")
    returned = sum(tensor.nbytes for tensor in run())
    return max((kilobytes("VmHWM") - before) * 1024 - returned, 0)
