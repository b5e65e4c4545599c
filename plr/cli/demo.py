"""An end-to-end run on synthetic data: generate, train PLR and the bare SASRec, compare with popularity, recommend."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from plr.cli.tables import metrics_table, quoted, recommendation_table
from plr.config import Config
from plr.data import SequenceDataset, prepare
from plr.evaluation import metrics, popularity_ranks
from plr.prepare.synthetic import generate
from plr.runs import RunFolder
from plr.serving import Recommender
from plr.training import train

SYSTEMS = {"SASRec": ("base", "sasrec"), "PLR": ("plr", "plr")}
EPOCHS = 10


def demo(out: Path, seed: int = 0, console: Console | None = None) -> None:
    """Run the demo and leave data and runs under `out`; what is already finished there is used again.

    Args:
        out: folder for the data and the runs.
        seed: of the data and of both runs.
        console: where to print.

    Raises:
        RunError: there is a run of other data or settings.
    """
    console = console or Console()
    demo_config(out, out, "base", seed)  # refuses a seed before anything is written
    data = out / f"interactions-seed{seed}.csv"
    out.mkdir(parents=True, exist_ok=True)
    if not data.exists():
        generate(data, seed=seed)
    dataset = prepare(data)
    rows = len(dataset.rows("train", 50))
    console.print(
        f"[bold]1/4[/bold] synthetic data, several interests per user: {dataset.num_users} users, {dataset.num_items} "
        f"items, {rows} training rows, split by {dataset.split} -> {escape(str(data))}",
        highlight=False,
        soft_wrap=True,
    )
    results = {"Popularity": _popularity(dataset)}
    for step, (system, (method, name)) in enumerate(SYSTEMS.items(), start=2):
        run = RunFolder(out / f"{name}-seed{seed}")
        console.print(f"[bold]{step}/4[/bold] {system} -> {escape(str(run.path))}", highlight=False, soft_wrap=True)
        start = time.perf_counter()
        config = demo_config(data, run.path, method, seed)
        finished = run.finished_as(config, dataset.content_hash, None)
        result = run.read_metrics() if finished else train(config, dataset)
        results[system] = result["test"]
        console.print(
            f"    best epoch {result['best_epoch']} of {result['epochs']}, {time.perf_counter() - start:.0f} s",
            highlight=False,
        )
    console.print(metrics_table(results, title="Test, all items ranked"))

    plr_run = out / f"plr-seed{seed}"
    user = dataset.user_ids[0]
    history = _history(dataset, 0)
    recommender = Recommender.load(plr_run)
    (answer,) = recommender.recommend([history], k=5)
    console.print(
        f"[bold]4/4[/bold] user {user}, who last took {' '.join(history[-5:])}, is recommended", highlight=False
    )
    console.print(recommendation_table(answer))
    console.print(
        "What to type next:\n"
        f'  plr recommend {quoted(plr_run)} --history "{" ".join(history[-3:])}" -k 5\n'
        f"  plr evaluate {quoted(plr_run)}\n"
        f"  plr train --data {quoted(data)} --method plr --streams 3 --out {quoted(out / 'my-run')} --dim 64 "
        "--batch_size 256\n"
        "  plr train --help        every option; your own file goes to --data",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def demo_config(data: Path, out: Path, method: str, seed: int) -> Config:
    """Return the demo's configuration: equal for both systems but for the method."""
    return Config(
        data=str(data),
        out=str(out),
        method=method,
        dim=64,
        ffn_dim=128,
        hidden_dropout=0.2,
        attention_dropout=0.2,
        streams=4,
        steps=2,
        consistency_weight=0.0,  # it learns longer for more: in ten epochs PLR gets less far with it
        training_rows="prefix",
        batch_size=256,
        epochs=EPOCHS,
        seed=seed,
        threads=1,  # batches this small gain nothing from a second thread, and lose where cores are shared
    )


def _popularity(dataset: SequenceDataset) -> dict[str, float]:
    targets = dataset.target_items("test")
    return metrics(popularity_ranks(dataset.popularity(), targets))


def _history(dataset: SequenceDataset, user: int) -> list[str]:
    first, last = dataset.offsets[user : user + 2].tolist()
    return [dataset.item_ids[item] for item in dataset.items[first:last].tolist()]
