"""A search of equal size for every method, on validation rows; then the chosen settings with several seeds.

    python -m bench.tuning --name beauty --data Beauty.txt --out runs/tuning
    python -m bench.tuning --name steam --data Steam.csv.gz --out runs/steam --set exclude_seen=true --against plr \
        --methods base heads erl prl lares plr-states plr --trials 8 --seeds 5

Trial 0 of a method has the settings of `bench.systems`. Every further one takes values from SHARED, the same for all
methods in the same trial, and from OWN, what only that method has; each value of a field comes as often as the others.
Trials have seed 0. The one with the best validation NDCG@10 is retrained with --final-epochs and --seeds seeds, and
only those runs are tested. Finished runs are not repeated, interrupted ones are resumed. Writes every trial's settings
and validation, the chosen settings' test metrics and each method against one of them to
bench/results/tuning-NAME.md and .json: after the search, and again after every round of seeds.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

from bench.records import RESULTS, write_record, write_text
from bench.summary import METRICS, header, scores_of_runs, trained
from bench.systems import COMMON, METHODS, against, described, settings
from plr.config import Config
from plr.runs import RunFolder

# Beside the methods: what tells apart why one of them is better. M linear maps of h_0 instead of M reasoned streams;
# two views that agree, without streams; the streams' parameters and more, without streams.
CONTROLS: dict[str, dict[str, Any]] = {
    "heads": {"method": "plr", "reasoning": False},
    "base-rdrop": {"method": "base", "consistency_weight": 0.1},
    "base-wide": {"method": "base", "dim": 128, "ffn_dim": 512},
}
SYSTEMS = METHODS | CONTROLS

SHARED: dict[str, tuple[float, ...]] = {
    "lr": (1e-3, 2e-3, 4e-3),
    "hidden_dropout": (0.2, 0.35, 0.5),
    "attention_dropout": (0.2, 0.35, 0.5),
}
OWN: dict[str, dict[str, tuple[float, ...]]] = {
    "base": {},
    "erl": {"steps": (1, 2, 3), "kl_weight": (0.01, 0.1, 1.0)},
    "prl": {
        "steps": (1, 2, 3),
        "progressive_weight": (0.1, 0.3, 1.0),
        "contrastive_weight": (0.03, 0.1, 0.3, 1.0),
    },
    "lares": {"mean_steps": (2, 4), "trajectory_weight": (0.03, 0.1, 0.3), "step_weight": (0.1, 0.5)},
    "plr": {"streams": (2, 4, 8), "steps": (1, 2), "trigger_std": (0.3, 1.0), "consistency_weight": (0.0, 0.1, 0.3)},
    "plr-states": {
        "streams": (2, 4),
        "steps": (1, 2),
        "kl_weight": (0.01, 0.1, 1.0),
        "contrastive_weight": (0.03, 0.1, 0.3, 1.0),
    },
    "heads": {"streams": (2, 4, 8), "consistency_weight": (0.0, 0.1, 0.3)},
    "base-rdrop": {"consistency_weight": (0.03, 0.1, 0.3)},
    "base-wide": {},
}


def drawn(method: str, trial: int) -> dict[str, float]:
    """Return the settings in which a trial of a method differs from those of `bench.systems`; trial 0 in none."""
    if trial == 0:
        return {}
    return {name: _value(name, values, trial) for name, values in SHARED.items()} | {
        name: _value(f"{method} {name}", values, trial) for name, values in OWN[method].items()
    }


def _value(seed: str, values: tuple[float, ...], trial: int) -> float:
    """Return a trial's value: all values in random order, then all again in another."""
    turn, place = divmod(trial - 1, len(values))
    return random.Random(f"{seed} {turn}").sample(values, len(values))[place]


class Search:
    """The runs of one backbone under one folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Keep the command's arguments."""
        self.arguments = arguments

    def run(self, name: str, method: str, chosen_values: dict[str, float], epochs: int, seed: int) -> RunFolder:
        """Return a finished run, training it first where it is not."""
        given = settings(self.arguments.set, (self.arguments.backbone, method))
        values: dict[str, Any] = COMMON | SYSTEMS[method] | given | chosen_values
        config = Config(
            data=self.arguments.data,
            out=str(self.arguments.out / f"{self.arguments.backbone}-{method}-{name}"),
            backbone=self.arguments.backbone,
            seed=seed,
            epochs=epochs,
            threads=self.arguments.threads,
            progress=sys.stderr.isatty(),
            **values,
        )
        return trained(config)

    def trial(self, method: str, trial: int) -> dict[str, Any]:
        """Return what a trial was and how it did on the validation rows."""
        values = drawn(method, trial)
        found = self.run(f"trial{trial}", method, values, self.arguments.epochs, 0).read_metrics()
        return {"settings": values, "ndcg@10": found["valid"]["ndcg@10"], "best_epoch": found["best_epoch"]}

    def final(self, method: str, values: dict[str, float], seed: int) -> RunFolder:
        """Return the run of a method's chosen settings with a seed."""
        return self.run(f"final-seed{seed}", method, values, self.arguments.final_epochs, seed)


def table(trials: dict[str, list[dict[str, Any]]], finals: dict[str, dict[int, RunFolder]], reference: str) -> str:
    """Return the Markdown table of the search and of the chosen settings' test."""
    comparisons = against(reference, {("", method): folders for method, folders in finals.items()})
    difference = f"NDCG@10 − {reference}, per user"
    columns = ("method", "validation NDCG@10: untuned, best of trials", "chosen", *METRICS, difference)
    lines = header(*columns)
    for method, found in trials.items():
        best = chosen(found)
        values = ", ".join(f"{name} {value:g}" for name, value in best["settings"].items()) or "untuned"
        runs = [folder.read_metrics() for folder in finals[method].values()]
        cells = (
            method,
            f"{found[0]['ndcg@10']:.4f}, {best['ndcg@10']:.4f}",
            values,
            *(scores_of_runs(runs) if runs else [""] * len(METRICS)),
            described(comparisons.get(("", method))),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def settled(trials: list[dict[str, Any]]) -> bool:
    """Whether the second half of the trials brought nothing better than the first: more would hardly either."""
    return chosen(trials) in trials[: -(-len(trials) // 2)]


def chosen(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the trial with the best validation NDCG@10, the first of equals."""
    return max(trials, key=lambda trial: trial["ndcg@10"])


def main() -> None:
    """Search, choose, test, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the result files")
    parser.add_argument("--data", required=True, help="as in `plr train`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--backbone", default="sasrec", choices=("sasrec", "bert4rec"))
    parser.add_argument("--methods", nargs="+", default=["base", "erl", "prl", "plr"], choices=SYSTEMS)
    parser.add_argument("--against", default="base", help="the method that the others are compared with")
    parser.add_argument("--trials", type=int, default=6, help="trials per method, including the untuned one")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds for the chosen settings")
    parser.add_argument("--epochs", type=int, default=8, help="maximum number of epochs of a trial")
    parser.add_argument("--final-epochs", type=int, default=20, help="maximum number of epochs of the chosen settings")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="[METHOD:]FIELD=VALUE", help="for all runs"
    )
    arguments = parser.parse_args()
    if arguments.against not in arguments.methods:
        parser.error(f"--against must be one of --methods; found {arguments.against!r}")

    search = Search(arguments)
    trials: dict[str, list[dict[str, Any]]] = {method: [] for method in arguments.methods}
    for number in range(arguments.trials):  # trial by trial: an interrupted search has as many of each method
        for method in arguments.methods:
            trials[method].append(search.trial(method, number))
    finals: dict[str, dict[int, RunFolder]] = {method: {} for method in arguments.methods}
    write(arguments, trials, finals)
    for seed in range(arguments.seeds):  # seed by seed: an interrupted test is complete for the first seeds
        for method in arguments.methods:
            finals[method][seed] = search.final(method, chosen(trials[method])["settings"], seed)
        write(arguments, trials, finals)
    print((RESULTS / f"tuning-{arguments.name}.md").read_text())


def write(
    arguments: argparse.Namespace,
    trials: dict[str, list[dict[str, Any]]],
    finals: dict[str, dict[int, RunFolder]],
) -> None:
    """Write the table and the record of what is finished."""
    seeds = len(finals[arguments.methods[0]])
    unsettled = [method for method, found in trials.items() if not settled(found)]
    text = table(trials, finals, arguments.against) + (
        f"\nSearched: {arguments.trials} trials of each method, seed 0, at most {arguments.epochs} epochs, chosen by "
        f"validation. Tested: the chosen settings, {seeds} seeds, at most {arguments.final_epochs} epochs; "
        "mean and standard deviation. The last column: difference per user, averaged over seeds, 95 % interval over "
        "users and seeds, and p of the paired t-test over users, Holm-corrected over the table.\n"
    )
    if arguments.set:
        text += f"Set for all: {', '.join(arguments.set)}.\n"
    if unsettled:
        text += f"Best trial in the search's second half, so that more may find better: {', '.join(unsettled)}.\n"
    record = {
        method: {
            "trials": trials[method],
            "final": [
                {"best_epoch": run["best_epoch"], "valid": run["valid"], "test": run["test"]}
                for run in (folder.read_metrics() for folder in finals[method].values())
            ],
        }
        for method in arguments.methods
    }
    written = {"common": COMMON, "set": arguments.set, "methods": record}
    write_record(RESULTS / f"tuning-{arguments.name}.json", written)
    write_text(RESULTS / f"tuning-{arguments.name}.md", text)


if __name__ == "__main__":
    main()
