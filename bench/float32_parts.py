"""Float32 losses over all items by AMX tiles, of parts of bfloat16, beside those by vectors.

    python -m bench.float32_parts --threads 1 --rounds 20

`PLR_KERNELS_INSTRUCTION_SET=avx512_amx_parts` beside `avx512_amx`, in turns: loss and all gradients, wall-clock
seconds, ratios turn by turn. Tiles may be slowed down by what else runs on the processor, on a virtual machine by its
neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.records import RESULTS, write_record
from plr_kernels import extension, linear_cross_entropy, mixture_cross_entropy, pairwise_kl, use_backend

VECTORS, PARTS = "avx512_amx", "avx512_amx_parts"


def losses(items_count: int, dim: int, rows: int) -> dict[str, Callable[[], Any]]:
    """Of generated states and items: what each loss and its gradients take."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / 4).requires_grad_()

    items, states = normal(items_count, dim), normal(rows, dim)
    groups, streams = normal(rows // 4, 4, dim), normal(rows // 2, 2, dim)
    log_weights = torch.full((rows // 2, 2), 0.5).log()
    targets = torch.randint(items_count, (rows,), generator=generator)
    half = targets[: rows // 2]

    def step(loss: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(loss(), leaves)

    return {
        "linear_cross_entropy": step(lambda: linear_cross_entropy(states, items, targets), states, items),
        "mixture_cross_entropy": step(lambda: mixture_cross_entropy(streams, log_weights, items, half), streams, items),
        "pairwise_kl": step(lambda: pairwise_kl(groups, items), groups, items),
    }


def seconds(run: Callable[[], Any], instruction_set: str) -> float:
    """Of one run by an instruction set."""
    before = extension._instruction_set
    extension._instruction_set = instruction_set
    try:
        start = time.perf_counter()
        with use_backend("cpp"):
            run()
        return time.perf_counter() - start
    finally:
        extension._instruction_set = before


def in_turns(run: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Seconds of both, and how many times as long vectors take."""
    taken: dict[str, list[float]] = {VECTORS: [], PARTS: []}
    for turn in range(1 + rounds):  # the first warms up
        for name in taken if turn % 2 else reversed(taken):
            duration = seconds(run, name)
            if turn:
                taken[name].append(duration)
    ratios = [vectors / parts for vectors, parts in zip(taken[VECTORS], taken[PARTS], strict=True)]
    return {"seconds": taken, "ratios": ratios, "ratio": statistics.median(ratios)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--items", type=int, nargs="+", default=[12101, 87969], help="with width 64, and 256")
    parser.add_argument("--machine", default="not stated", help="what the record calls it")
    parser.add_argument("--out", type=Path, default=RESULTS / "float32_parts.json")
    options = parser.parse_args(arguments)
    if extension._cpp.instruction_set(PARTS) is None:
        raise SystemExit("this CPU has no AMX tiles of bfloat16, or may not use them")
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {
        "machine": options.machine,
        "torch": torch.__version__,
        "threads": options.threads,
        "rows": options.rows,
        "losses": {},
    }
    for items_count, dim in zip(options.items, (64, 256), strict=False):
        for name, run in losses(items_count, dim, options.rows).items():
            found = in_turns(run, options.rounds)
            record["losses"][f"{name}, V {items_count}, d {dim}"] = found
            spread = f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}"
            ratio = f"{found['ratio']:.2f} times as long ({spread})"
            print(f"{name}, V {items_count}, d {dim}: vectors take {ratio}", flush=True)
            write_record(options.out, record)


if __name__ == "__main__":
    main()
