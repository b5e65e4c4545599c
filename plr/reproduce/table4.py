"""Table 4: operations and latency of one answer. Nothing is trained."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from plr.config import Config
from plr.data import Batch
from plr.models import RecommenderModel, build_model
from plr.models.encoder import Encoded
from plr.prepare.amazon import TABLE_1
from plr.reproduce import paper
from plr.reproduce.presets import PRESETS
from plr.reproduce.results import Cell, Section, Table
from plr.reproduce.study import Run, Study, System
from plr.serving.engine import Engine, why_not
from plr.signals import raise_again

BACKBONE = "sasrec"
METHODS = ("base", "erl", "plr-states", "plr")
NAMES = {
    "base": "SASRec",
    "erl": "ReaRec",
    "plr-states": "PLR as printed",
    "plr": "PLR (mixture)",
}
PAPER_ITEMS = TABLE_1["CDs_and_Vinyl"]["items"]
TOP = 20


def needs(study: Study) -> list[Run]:
    """Return no run."""
    return []


def section(study: Study) -> Section:
    """Return the operations at the paper's sizes and the latency at those of the preset."""
    return Section("table4", "Table 4: operations and latency", [_operations(), _latency(study)])


def _operations() -> Table:
    rows: list[list[Cell]] = []
    counts = {
        method: [flops(paper_config(method), PAPER_ITEMS, every_position=every) for every in (True, False)]
        for method in METHODS
    }
    for method, (whole, needed) in counts.items():
        printed, increase, _ = paper.TABLE_4.get(method, (None, None, None))
        rows.append(
            [
                _with_streams(method),
                f"{whole / 1e8:.4f}",
                f"{whole / counts['base'][0] - 1:+.2%}",
                f"{needed / 1e8:.4f}",
                f"{needed / counts['base'][1] - 1:+.2%}",
                printed and f"{printed / 1e8:.4f}",
                increase and f"{increase:+.2f}%",
            ]
        )
    return Table(
        "table4-flops",
        (
            "Floating-point operations of one answer, 10⁸, at the paper's sizes (d 256, 50 items of history, "
            f"{PAPER_ITEMS:,} items ranked)"
        ),
        [
            "system",
            "FLOPs",
            "increase",
            "FLOPs, last layer at the last position",
            "increase of those",
            "paper",
            "paper, increase",
        ],
        rows,
        "Counted by torch.utils.flop_counter.FlopCounterMode, a multiply-add as two; norms, biases and softmax are "
        "not counted, the paper's count has them. The first column computes both layers at every position, as the "
        "paper's code does; the third what this project computes: its last layer's states are needed at the last "
        "position alone. The mixture multiplies the item table by each of its streams' states, the others by one "
        "state; at many items that product outweighs the reasoning.",
    )


def _with_streams(method: str) -> str:
    config = paper_config(method)
    return f"{NAMES[method]}, M = {config.streams}, T = {config.steps}" if config.method == "plr" else NAMES[method]


def paper_config(method: str) -> Config:
    """Return the paper's sizes of a method."""
    preset = PRESETS["paper"]
    return Config(**(preset.common | preset.methods[method]), backbone=BACKBONE)


def flops(config: Config, items: int, *, every_position: bool) -> int:
    """Count the operations of encoding one full history and scoring all items.

    Args:
        config: the system.
        items: V.
        every_position: compute the last layer at every position, needed or not.
    """
    with torch.device("meta"):  # shapes alone: no memory, no time
        model = build_model(config, items).eval()
    if every_position:
        model.encoder.encode = partial(_at_every_position, model.encoder.encode)  # type: ignore[method-assign]
    batch = _one_history(config.max_length).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        table = model.item_table()
        model.scorer(batch, table).scores(model.candidates(table))
    return counter.get_total_flops()


def _at_every_position(encode: Any, embeddings: Tensor, lengths: Tensor, *, all_positions: bool = False) -> Encoded:
    return encode(embeddings, lengths, all_positions=True)


def _one_history(length: int) -> Batch:
    return Batch(
        torch.arange(length)[None],
        torch.tensor([length]),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
    )


def _latency(study: Study) -> Table:
    items = study.dataset.num_items if study.has_data else PAPER_ITEMS
    configs = {method: study.config_of(System(BACKBONE, method)) for method in METHODS}
    rounds, threads = study.preset.rounds, torch.get_num_threads()
    systems = {name: {**config.decisive(), "data": None} for name, config in configs.items()}
    reason = why_not(build_model(configs["base"], items).eval())
    by = "the inference engine" if reason is None else f"PyTorch, as {reason}"
    known = {"items": items, "rounds": rounds, "systems": systems, "by": by}
    key = json.loads(json.dumps(known))  # as it is read again
    # Kept: a second command in the same folder reports the same figures.
    seconds = study.kept("latency", lambda: {**_timed(configs, items, rounds), "threads": threads}, key)
    printed = {method: values[2] for method, values in paper.TABLE_4.items()}
    rows: list[list[Cell]] = []
    for method in METHODS:
        own = seconds[method]
        ratios = [one / base for one, base in zip(own, seconds["base"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        milliseconds = [1e3 * each for each in statistics.quantiles(own, n=4)]
        rows.append(
            [
                NAMES[method],
                f"{milliseconds[1]:.3f}",
                f"{milliseconds[0]:.3f} to {milliseconds[2]:.3f}",
                None if method == "base" else f"{middle - 1:+.1%}",
                None if method == "base" else f"{low - 1:+.1%} to {high - 1:+.1%}",
                printed.get(method) and f"{printed[method] / printed['base'] - 1:+.2%}" if method != "base" else None,
            ]
        )
    first = configs["base"]
    return Table(
        "table4-latency",
        "Latency of one answer on this machine, in milliseconds: one history to its best 20 items",
        ["system", "median", "quartiles", "increase", "quartiles of the increase", "paper, increase"],
        rows,
        f"Untrained models, d {first.dim}, layers: {first.layers}, {first.max_length} items of history, {items:,} "
        f"items ranked, by {by}; CPU, threads: {seconds['threads']}; {rounds} rounds, in each of which every system "
        "answers once, in turn; increases are within a round. Measured once for this folder. "
        "Distributions of untrained models are nearly uniform, for which the mixture reads the items twice; for peaked "
        "ones, as of most trained models, once: there it takes less than here.",
    )


def _timed(configs: dict[str, Config], items: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round's answers; the first two rounds warm up and do not count."""
    answers = {
        method: _answer(build_model(config, items).eval(), min(config.max_length, items), min(TOP, items))
        for method, config in configs.items()
    }
    seconds: dict[str, list[float]] = {method: [] for method in configs}
    for number in range(rounds + 2):
        raise_again()
        first = number % len(answers)  # else the first would always find the caches as the last left them
        for method in [*answers, *answers][first : first + len(answers)]:
            start = time.perf_counter()
            answers[method]()
            if number >= 2:
                seconds[method].append(time.perf_counter() - start)
    return seconds


def _answer(model: RecommenderModel, length: int, k: int) -> Callable[[], object]:
    """Return what answers one history as the project does on CPUs: by the engine, or by PyTorch where there is none."""
    if why_not(model) is None:
        return partial(Engine(model).top, torch.arange(length), torch.tensor([0, length]), k)
    batch = _one_history(length)
    with torch.no_grad():
        table = model.item_table()
        candidates = model.candidates(table)

    @torch.no_grad()
    def by_pytorch() -> tuple[Tensor, Tensor]:
        return model.scorer(batch, table).top_items(candidates, k)

    return by_pytorch
