"""What LARES' post-training does to its reward, term by term: bench/results/lares_reward.md and .json.

    python -m bench.lares_reward

On synthetic data, for each seed: a first phase; 64 training rows whose target is among the first ten in some of its
rollouts but not in all; then the second phase on these rows alone, each step on all of them, with both terms of the
loss and with each alone. The rewards of the same rows are measured before and after, over rollouts that training did
not see. Two settings: that of the public code's script, and a stronger one (its settings file's G and β, four times
the learning rate, twice the steps); both were chosen before anything was measured with them. Then the first setting on
all rows within reach, 400 to a batch, as `plr train` has them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.records import RESULTS, write_record, write_text
from bench.summary import header
from plr.config import Config
from plr.data import Batch, LengthGroupedBatches, Rows, SameTargetPositives, prepare
from plr.models import build_model
from plr.models.methods.lares import LARESRecommender
from plr.models.methods.lares_post_training import PostTrainedLARES, ranking_rewards
from plr.prepare.synthetic import generate
from plr.training.initial import filter_reachable
from plr.training.module import RowDataset, step_seed
from plr_kernels import linear_cross_entropy

ITEMS, LENGTH, ROWS, BATCH = 120, 12, 64, 400
DECIMALS = 5  # of the record: a single reward of 32 rollouts of 64 rows weighs 1/2048
REWARDS = ("recall", "ndcg")
TERMS = {"both": ("policy", "reference"), "first": ("policy",), "reference": ("reference",)}
CASES = (("both", "recall"), ("both", "ndcg"), ("first", "recall"), ("first", "ndcg"), ("reference", None))
RECALL_CASES = tuple(case for case in CASES if case[1] != "ndcg")
SOURCES = {"rollouts": "as training draws them", "T_0": "T_0 drawn, no dropout, k = m", "fixed": "as evaluation ranks"}
SIZES: dict[str, Any] = {"dim": 16, "ffn_dim": 16, "layers": 1, "core_layers": 1, "mean_steps": 3, "max_length": LENGTH}


@dataclass(frozen=True)
class Setting:
    """Of the second phase: Adam's learning rate, β, G, the number of steps, and of rows (None: all, in batches)."""

    lr: float
    reference_weight: float
    rollouts: int
    steps: int
    rows: int | None = ROWS


SETTINGS = {
    "published": Setting(5e-4, 1.0, 4, 40),
    "stronger": Setting(2e-3, 0.1, 8, 80),
    "published, all rows": Setting(5e-4, 1.0, 4, 35, None),
}


def training_rows(folder: Path, users: int = 200) -> Rows:
    """Make interactions of users with up to four interests each, and return their training rows."""
    path = folder / "interests.csv"
    generate(path, users=users, items=ITEMS, interests=4)
    return prepare(path).rows("train", LENGTH)


def pretrained(rows: Rows, seed: int, epochs: int = 4) -> LARESRecommender:
    """Return a model after the first phase, frozen."""
    config = Config(
        method="lares", **SIZES, input_dropout=0.1, hidden_dropout=0.3, attention_dropout=0.3, lr=0.01, seed=seed
    )
    model = build_model(config, ITEMS).train()
    order = LengthGroupedBatches(rows.lengths, 256, shuffle=True, seed=seed)
    batches = RowDataset(rows, order, SameTargetPositives(rows, seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    for epoch in range(epochs):
        order.set_epoch(epoch)
        for number, index in enumerate(order):
            torch.manual_seed(step_seed(seed, epoch * len(order) + number, 0))
            _step(model, batches[index], optimizer, ("next_item", "trajectory", "step"))
    return model.eval().requires_grad_(False)


def policy_of(first: LARESRecommender, setting: Setting, reward: str, seed: int) -> PostTrainedLARES:
    """Return the model of the second phase before its first step."""
    config = Config(
        method="lares", phase="rpt", init="first", **SIZES, seed=seed, rollouts=setting.rollouts, reward=reward,
        reference_weight=setting.reference_weight, input_dropout=0.1, hidden_dropout=0.1, attention_dropout=0.1,
    )  # fmt: skip
    model = build_model(config, ITEMS)
    model.start_from(first)
    return model


def rewarded_rows(model: PostTrainedLARES, rows: Rows, seed: int, count: int | None, rollouts: int = 16) -> Rows:
    """Return the rows within reach: all, or the first whose target is among the ten in 20 to 80 % of the rollouts."""
    rows = filter_reachable(model.reference, rows, 512)
    if count is None:
        return rows
    rate = measured(model, everything(rows), "rollouts", rollouts, seed)["rewards"]["recall"].mean(dim=0)
    kept = ((rate >= 0.2) & (rate <= 0.8)).nonzero()[:count, 0]
    return rows.take(kept)


def everything(rows: Rows) -> Batch:
    """Return all rows as one batch."""
    return rows.batch(torch.arange(len(rows)))


@torch.no_grad()
def measured(model: PostTrainedLARES, batch: Batch, source: str, rollouts: int, seed: int) -> dict[str, Any]:
    """Return {"rewards": {name: [rollouts, B]}, "log_p": [rollouts, B]} of the last states of rollouts."""
    torch.manual_seed(seed)
    table = model.item_table()
    candidates = model.candidates(table)
    rewards, log_p = {name: [] for name in REWARDS}, []
    for _ in range(rollouts):
        like = table.new_empty(*batch.item_ids.shape, table.shape[1])
        start = model.train(source != "fixed").initial_states(like)
        steps = model.sample_steps() if source == "rollouts" else model.options.mean_steps
        model.train(source == "rollouts")
        states = model.queries(model.reasoning_states(table, batch.item_ids, batch.lengths, steps, start)[:, -1])
        for name in REWARDS:
            rewards[name].append(ranking_rewards(states, candidates, batch.targets, name))
        log_p.append(
            -linear_cross_entropy(states, candidates, batch.targets, temperature=model.temperature, reduction="none")
        )
    return {"rewards": {name: torch.stack(found) for name, found in rewards.items()}, "log_p": torch.stack(log_p)}


def batches_of(rows: Rows, setting: Setting, seed: int) -> Iterator[Batch]:
    """Yield without end the few rows as one batch, or epochs of batches of all rows."""
    if setting.rows is not None:
        yield from itertools.repeat(everything(rows))
    order = LengthGroupedBatches(rows.lengths, BATCH, shuffle=True, seed=seed)
    for epoch in itertools.count():
        order.set_epoch(epoch)
        yield from map(rows.batch, order)


def post_train(model: PostTrainedLARES, rows: Rows, setting: Setting, terms: Sequence[str], seed: int) -> list[float]:
    """Take the setting's steps; return the mean reward of each step's own rollouts."""
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.lr)
    model.train()
    rewards = []
    for number, batch in enumerate(itertools.islice(batches_of(rows, setting, seed), setting.steps)):
        torch.manual_seed(step_seed(seed, number, 0))
        _step(model, batch, optimizer, terms)
        rewards.append(float(model.extra_metrics["reward"]))
    return rewards


def _step(model: LARESRecommender, batch: Batch, optimizer: torch.optim.Optimizer, terms: Iterable[str]) -> None:
    losses = model.losses(batch)
    optimizer.zero_grad()
    torch.stack([losses[term] for term in terms]).sum().backward()
    optimizer.step()


def state_of(model: PostTrainedLARES, batch: Batch, seed: int, rollouts: int = 32) -> dict[str, float]:
    """Return the mean rewards from every source, the rollouts' mean log p(target) and its spread within a row."""
    found = {}
    for source in SOURCES:
        seen = measured(model, batch, source, 1 if source == "fixed" else rollouts, seed)
        found |= {f"{name}, {source}": float(values.mean()) for name, values in seen["rewards"].items()}
        if source == "rollouts":
            found["log_p"] = float(seen["log_p"].mean())
            found["log_p_spread"] = float(seen["log_p"].std(dim=0).mean())
    return {name: round(value, DECIMALS) for name, value in found.items()}


def run(
    rows: Rows,
    seed: int,
    settings: dict[str, Setting],
    cases: Iterable[tuple[str, str | None]] = CASES,
    *,
    epochs: int = 4,
    rollouts: int = 32,
) -> list[dict[str, Any]]:
    """Return one record for each setting and each case: terms, and the reward. The reference term knows no reward."""
    first = pretrained(rows, seed, epochs)
    untrained = policy_of(first, next(iter(settings.values())), "recall", seed)
    records = []
    for name, setting in settings.items():
        chosen = rewarded_rows(untrained, rows, seed, setting.rows, rollouts // 2)
        batch = everything(chosen)
        before = state_of(untrained, batch, seed + 1, rollouts)
        quarter = setting.steps // 4
        for terms, reward in cases:
            model = policy_of(first, setting, reward or "recall", seed)
            curve = post_train(model, chosen, setting, TERMS[terms], seed)
            records.append(
                {
                    "seed": seed,
                    "setting": name,
                    "terms": terms,
                    "reward": reward,
                    "rows": len(batch),
                    "before": before,
                    "after": state_of(model, batch, seed + 1, rollouts),
                    "training_reward_by_quarter": [
                        round(statistics.mean(curve[start : start + quarter]), DECIMALS)
                        for start in range(0, 4 * quarter, quarter)
                    ],
                }
            )
    return records


def change(records: Iterable[dict[str, Any]], name: str) -> tuple[float, float]:
    """Return the mean over records of after − before, and its standard error."""
    changes = [record["after"][name] - record["before"][name] for record in records]
    return statistics.mean(changes), statistics.stdev(changes) / len(changes) ** 0.5


def table(records: list[dict[str, Any]]) -> str:
    """Return the Markdown table of mean changes and their standard errors."""
    lines = header("setting", "terms", "reward", *SOURCES, "log p", "spread of log p")
    for key in dict.fromkeys((record["setting"], record["terms"], record["reward"]) for record in records):
        group = [record for record in records if (record["setting"], record["terms"], record["reward"]) == key]
        setting, terms, rewarded = key
        for name in REWARDS if rewarded is None else (rewarded,):
            columns = [*(f"{name}, {source}" for source in SOURCES), "log_p", "log_p_spread"]
            cells = ["{:+.3f} ± {:.3f}".format(*change(group, column)) for column in columns]
            lines.append(f"| {setting} | {terms} | {name}@10 | {' | '.join(cells)} |")
    seeds = len({record["seed"] for record in records})
    lines += ["", f"Mean change over {seeds} seeds ± its standard error."]
    for name in dict.fromkeys(record["setting"] for record in records):
        start = [record for record in records if record["setting"] == name and record["terms"] == "reference"]
        means = {key: statistics.mean(record["before"][key] for record in start) for key in start[0]["before"]}
        lines += [
            "",
            f"{name}: {asdict(SETTINGS[name])}; {statistics.mean(record['rows'] for record in start):.0f} rows. "
            + "Before: "
            + "; ".join(f"{key} {value:.3f}" for key, value in means.items())
            + ".",
        ]
    lines += ["", "Columns: " + "; ".join(f"{source}, {meaning}" for source, meaning in SOURCES.items()) + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "lares_reward.json", help="a table beside it")
    arguments = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as folder:
        rows = training_rows(Path(folder))
    few, whole = (
        {name: each for name, each in SETTINGS.items() if (each.rows is None) == wanted} for wanted in (False, True)
    )
    for seed in range(arguments.seeds):
        records += run(rows, seed, few) + run(rows, seed, whole, RECALL_CASES, rollouts=8)
        print(f"seed {seed}", flush=True)
    settings = {name: asdict(setting) for name, setting in SETTINGS.items()}
    write_record(arguments.out, {"settings": settings, "runs": records})
    write_text(arguments.out.with_suffix(".md"), table(records))
    print(table(records))


if __name__ == "__main__":
    main()
