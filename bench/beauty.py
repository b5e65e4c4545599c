"""SASRec and PLR on one data set, several seeds, equal budget and tuning: the README's table.

    python -m bench.beauty --data Beauty.txt --out runs/beauty

Trains what is not finished under --out (interrupted runs are resumed), then writes the table and every
run's metrics to bench/results/beauty.md and beauty.json. Both systems have the same rows, batches, budget and
settings, none of them tuned to either: one row per prefix, 256 to a batch, width 64, two layers, two heads, Adam at
1e-3, dropout 0.2 on the input and 0.5 on hidden states and attention (as in ReaRec's public code), at most 15 epochs,
early stopping on validation NDCG@10 with patience 3. PLR has the paper's M = T = 2 and λ = 0.1. The last row is
SASRec refitted: retrained on training and validation rows for the best number of epochs, so that the test target
follows what was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.records import RESULTS, write_record, write_text
from bench.summary import METRICS, header, scores, scores_of_runs, trained
from plr.config import Config
from plr.evaluation import compare, load_ranking, metrics, popularity_ranks
from plr.inputs import load_dataset

METHODS: dict[str, dict[str, Any]] = {
    "SASRec": {"method": "base"},
    "PLR": {"method": "plr", "mixture": "states", "streams": 2},  # as the paper prints it
}
ROWS = {"SASRec": False, "PLR": False, "SASRec, refitted": True}


def configuration(data: str, out: Path, row: str, seed: int, threads: int) -> Config:
    """Return the configuration of one run of one row of the table."""
    system = row.split(",")[0]
    name = f"{system.lower()}-seed{seed}{'-refitted' if ROWS[row] else ''}"
    return Config(
        data=data,
        out=str(out / name),
        **METHODS[system],
        training_rows="prefix",
        batch_size=256,
        dim=64,
        ffn_dim=256,
        input_dropout=0.2,
        hidden_dropout=0.5,
        attention_dropout=0.5,
        epochs=15,
        patience=3,
        refit=ROWS[row],
        seed=seed,
        threads=threads,
    )


def main() -> None:
    """Train, choose, summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a line `user item item ...` per user")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()

    def configured(row: str, seed: int) -> Config:
        return configuration(arguments.data, arguments.out, row, seed, arguments.threads)

    results, rankings = {}, {}
    for row in ROWS:
        folders = [trained(configured(row, seed)) for seed in range(arguments.seeds)]
        results[row] = [folder.read_metrics() for folder in folders]
        rankings[row] = [load_ranking(folder.ranks("test")) for folder in folders]

    dataset = load_dataset(configured("SASRec", 0))
    popularity = metrics(popularity_ranks(dataset.popularity(), dataset.target_items("test")))
    difference = compare(rankings["PLR"], rankings["SASRec"])
    lines = [
        *header("system", *METRICS),
        "| popularity | " + " | ".join(scores(popularity)) + " |",
    ]
    for row, runs in results.items():
        lines.append(f"| {row} | " + " | ".join(scores_of_runs(runs)) + " |")
    lines += [
        "",
        f"Test of {len(dataset.targets['test'])} users, all {dataset.num_items} items ranked, leave-one-out; mean and "
        f"standard deviation over {arguments.seeds} seeds. PLR − SASRec in NDCG@10, per user, averaged over seeds: "
        f"{difference.difference:+.4f}, 95 % interval [{difference.low:+.4f}, {difference.high:+.4f}], "
        f"p = {difference.p_value:.2g} (paired t-test, {difference.n} users).",
    ]
    record = {
        "versions": Config.load(folders[0].config).provenance,
        "popularity": popularity,
        "runs": {
            row: [{key: run[key] for key in ("best_epoch", "epochs", "valid", "test")} for run in runs]
            for row, runs in results.items()
        },
    }
    write_record(RESULTS / "beauty.json", record)
    write_text(RESULTS / "beauty.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
