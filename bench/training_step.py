"""One training step of PLR on the CPU: with the fused operators, and with their formulas in PyTorch.

    python -m bench.training_step

Times both models in turns, same weights and same dropout, then measures the peak memory of each in a process of its
own; writes bench/results/training_step.json and prints its table. `pytest bench/` includes it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench.peers import Step, resident_bytes
from plr.config import Config
from plr.data import Batch
from plr.models import RecommenderModel, build_model
from plr.training.module import build_optimizer
from plr_kernels import use_backend

HERE = Path(__file__).parent
ITEMS = 87_969
# The paper's width and depth, M = T = 2, histories of 50; a batch that the formulas' memory allows a CPU.
CONFIG = Config(method="plr", mixture="states", dim=256, layers=2, streams=2, steps=2, max_length=50, batch_size=256)
TINY = Config(method="plr", mixture="states", dim=8, ffn_dim=8, streams=2, steps=2, max_length=5, batch_size=4)


def random_batch(config: Config, items: int, device: str | torch.device = "cpu") -> Batch:
    """Full histories of random items, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    rows = config.batch_size
    return Batch(
        item_ids=torch.randint(items, (rows, config.max_length), generator=generator).to(device),
        lengths=torch.full((rows,), config.max_length, device=device),
        targets=torch.randint(items, (rows,), generator=generator).to(device),
        users=torch.arange(rows, device=device),
    )


def take_step(model: RecommenderModel, optimizer: torch.optim.Optimizer, batch: Batch, seed: int) -> None:
    """One step as training takes it; all that is drawn follows from the seed."""
    torch.manual_seed(seed)
    if model.sampler is not None:
        model.sampler.seed = seed
    optimizer.zero_grad()
    torch.stack(list(model.losses(batch).values())).sum().backward()
    optimizer.step()


def adam_step(
    backend: str,
    config: Config = CONFIG,
    items: int = ITEMS,
    *,
    device: str | torch.device = "cpu",
    autocast: torch.dtype | None = None,
) -> Step:
    """A step of a new model: the losses forward, backward, and Adam's update; the loss and the item table's gradient.

    Every call draws its dropout masks from the number of the call, so two of these do the same whatever runs between.
    """
    model = build_model(config, items).train().to(device)
    optimizer = build_optimizer(model, config)
    batch = random_batch(config, items, device)
    calls = 0

    def forward() -> Tensor:
        nonlocal calls
        torch.manual_seed(calls)
        calls += 1
        optimizer.zero_grad()
        with torch.autocast(batch.item_ids.device.type, autocast, enabled=autocast is not None):
            return torch.stack(list(model.losses(batch).values())).sum()

    def backward(loss: Tensor) -> Tensor:
        loss.backward()
        return loss.detach()

    def update(loss: Tensor) -> list[Tensor]:
        optimizer.step()
        return [loss, model.items.embedding.weight.grad]

    def on_backend(phase: Callable[..., object]) -> Callable[[object], object]:
        def run(outcome: object) -> object:
            with use_backend(backend):
                return phase() if outcome is None else phase(outcome)

        return run

    phases = {"forward": forward, "backward": backward, "update": update}
    return Step("step", {name: on_backend(phase) for name, phase in phases.items()})


def process_peak(backend: str) -> int:
    """The resident memory, in bytes, of a new process at the peak of two steps: interpreter, weights and all."""
    command = [sys.executable, "-m", "bench.training_step", "--peak", backend]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and render; with --peak be the process that `process_peak` asks."""
    from bench import report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "training_step.json")
    parser.add_argument("--peak", metavar="BACKEND", help="only print the bytes at the peak of two steps")
    options = parser.parse_args()
    if options.peak:
        step = adam_step(options.peak)
        step()
        step()
        print(resident_bytes("VmHWM"))
        return
    tests = str(HERE / "test_training_step.py")
    report.main(["--run", "--sizes", "large", "--tests", tests, "--out", str(options.out)])


if __name__ == "__main__":
    main()
