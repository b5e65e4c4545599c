"""What one sweep of the item table for both pairwise_kl and linear_cross_entropy could save at most.

    OMP_NUM_THREADS=1 python -m bench.shared_sweep

One sweep needs the same products as two. It would read and pack the items once instead of twice in each pass, and write
their gradient once, with nothing left to add up. The first is what a pass costs whatever the number of rows: the
intercept of its time at two numbers of rows. Best of the rounds, in turns. Writes bench/results/shared_sweep.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.peers import Step, training_step
from bench.records import RESULTS, write_record
from bench.training_step import CONFIG, ITEMS
from plr_kernels import linear_cross_entropy, pairwise_kl

FEW, MORE = 256, 1024  # rows: as many as linear_cross_entropy and pairwise_kl have in the step
ROUNDS = 7


def cross_entropy(rows: int, items: torch.Tensor) -> Step:
    """A training step of linear_cross_entropy."""
    targets = torch.randint(ITEMS, (rows,))
    return training_step(
        lambda *both: linear_cross_entropy(*both, targets), torch.randn(rows, CONFIG.dim) / 2, items, backend="cpp"
    )


def addition() -> Step:
    """Of one gradient of the items to another, as autograd does it."""
    sum_, term = torch.zeros(ITEMS, CONFIG.dim), torch.zeros(ITEMS, CONFIG.dim)
    return Step("addition", {"addition": lambda _: [sum_.add_(term)]})


def best_seconds(steps: dict[str, Step]) -> dict[str, dict[str, float]]:
    """Of every phase, over ROUNDS turns after one to warm up."""
    best: dict[str, dict[str, float]] = {name: {} for name in steps}
    for round_number in range(ROUNDS + 1):
        for name, step in steps.items():
            step()
            for phase, seconds in step.seconds.items():
                best[name][phase] = min(best[name].get(phase, seconds), seconds) if round_number else float("inf")
    return best


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "shared_sweep.json")
    out = parser.parse_args().out
    torch.manual_seed(0)
    items = torch.randn(ITEMS, CONFIG.dim) / 4
    group = CONFIG.streams * CONFIG.steps
    states = torch.randn(CONFIG.batch_size, group, CONFIG.dim) / 2
    best = best_seconds({
        "few": cross_entropy(FEW, items),
        "more": cross_entropy(MORE, items),
        "pairwise_kl": training_step(pairwise_kl, states, items, backend="cpp"),
        "addition": addition(),
    })  # fmt: skip
    few, more = best["few"], best["more"]
    packing = {phase: few[phase] - (more[phase] - few[phase]) * FEW / (MORE - FEW) for phase in ("forward", "backward")}
    saved = sum(packing.values()) + best["addition"]["addition"]
    both = best["few"]["both"] + best["pairwise_kl"]["both"]
    by_name = {f"{FEW} rows": few, f"{MORE} rows": more, "pairwise_kl": best["pairwise_kl"], **best["addition"]}
    record = {
        "command": "python -m bench.shared_sweep",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "best_seconds": by_name,
        "independent_of_rows": packing,
        "saved_at_most": saved,
        "share_of_both_operators": saved / both,
    }
    write_record(out, record)
    print(f"{saved * 1e3:.0f} ms of {both * 1e3:.0f} ms, {saved / both:.1%}; independent of the rows: "
          + ", ".join(f"{phase} {seconds * 1e3:.0f} ms" for phase, seconds in packing.items()))  # fmt: skip


if __name__ == "__main__":
    main()
