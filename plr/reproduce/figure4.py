"""Figure 4: the ceiling, what the best step or stream of each user would give, against what is ranked by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from matplotlib.lines import Line2D

from plr.config import Config
from plr.data import Batch
from plr.evaluation import evaluation_batches, load_ranking, metrics
from plr.evaluation.ranking import seen_items
from plr.models import RecommenderModel
from plr.models.methods.lares import LARESRecommender
from plr.models.methods.plr import ParallelReasoning, PLRRecommender
from plr.models.methods.rearec import ReaRecRecommender
from plr.models.scoring import ItemScorer
from plr.reproduce.comparison import listed_runs, spread
from plr.reproduce.plots import PALETTE, canvas, panels, svg_of
from plr.reproduce.results import Cell, Estimate, Plot, Section, Table
from plr.reproduce.study import BASES, Run, Study, System
from plr.signals import raise_again

METRICS = {"ndcg@20": "NDCG@20", "recall@20": "Recall@20"}
KINDS = {"steps": "best step", "streams": "best stream", "steps and streams": "best step of any stream"}


def needs(study: Study) -> list[Run]:
    """Return the runs of Table 2."""
    return study.runs(study.table_2())


def alternatives(model: RecommenderModel, batch: Batch, table: torch.Tensor) -> Iterator[tuple[str, ItemScorer]]:
    """Yield what an oracle may choose from, with the kind of the choice: each of KINDS has one scorer or more.

    Steps are ranked as the method would rank if it ended there: ReaRec's and LARES' by their state, h_0 included for
    ReaRec; PLR's by the mixture of the streams' states at that step. A stream is ranked as if it were the only one,
    with h_0 where the method ranks with it.
    """
    if isinstance(model, ReaRecRecommender):
        states = model.states(table, batch.item_ids, batch.lengths)  # [B, K + 1, d]
        for step in range(states.shape[1]):
            yield "steps", ItemScorer(model.queries(states[:, step]))
    elif isinstance(model, LARESRecommender):
        states = model.reasoning_states(table, batch.item_ids, batch.lengths, model.options.mean_steps)
        for step in range(states.shape[1]):
            yield "steps", ItemScorer(model.queries(states[:, step]))
    elif isinstance(model, PLRRecommender):
        outcome = model.run(batch)
        (streams, steps), fast = outcome.states.shape[1:3], model.options.fast_state
        for step in range(steps):
            yield "steps", _ended_at(model, outcome, outcome.states[:, :, step])
        for stream in range(streams):
            pooled = outcome.streams[:, stream]  # h_0 is in it where it is added in training, too
            yield "streams", ItemScorer(model.queries(pooled + outcome.fast if fast == "ranking" else pooled))
            for step in range(steps):
                state = outcome.states[:, stream, step]
                state = state + outcome.fast if fast in ("ranking", "added") else state
                yield "steps and streams", ItemScorer(model.queries(state))


def _ended_at(model: PLRRecommender, outcome: ParallelReasoning, states: torch.Tensor) -> ItemScorer:
    """Rank as the model does, with one step's states [B, M, d] in place of the pooled ones."""
    ended = replace(outcome, streams=model.pooled(states[:, :, None], outcome.fast))
    if model.options.mixes_distributions:
        return ItemScorer(model.queries(ended.streams), ended.log_gates, model.temperature)
    return ItemScorer(model.queries(ended.final if model.options.fast_state == "ranking" else ended.slow))


@torch.no_grad()
def _ceilings(study: Study, run: Run) -> dict[str, dict[str, float]]:
    """Return the metrics of the run's own ranking and of each oracle, with how many alternatives it has."""
    config, model = Config.load(study.folder(run).config), study.model(run)
    table = model.item_table()
    candidates = model.candidates(table)
    own: list[torch.Tensor] = []
    best: dict[str, list[torch.Tensor]] = {}
    counts: dict[str, int] = {}
    for batch in evaluation_batches(study.test_rows(run), config.eval_batch_size, "cpu"):
        raise_again()
        exclude = seen_items(batch.item_ids, batch.lengths) if config.exclude_seen else None
        own.append(_ranks(model.scorer(batch, table), candidates, batch, exclude))
        ranks: dict[str, list[torch.Tensor]] = {}
        for kind, scorer in alternatives(model, batch, table):
            ranks.setdefault(kind, []).append(_ranks(scorer, candidates, batch, exclude))
        for kind, each in ranks.items():
            best.setdefault(kind, []).append(torch.stack(each).amin(dim=0))
            counts[kind] = len(each)
    found = {"own": {**metrics(torch.cat(own), (20,)), "alternatives": 1}}
    return found | {
        kind: {**metrics(torch.cat(parts), (20,)), "alternatives": counts[kind]} for kind, parts in best.items()
    }


def _ranks(scorer: ItemScorer, candidates: torch.Tensor, batch: Batch, exclude: torch.Tensor | None) -> torch.Tensor:
    greater, equal = scorer.target_rank(candidates, batch.targets, exclude=exclude)
    return 1 + greater + equal.double() / 2


def _over_seeds(study: Study, runs: list[Run]) -> dict[str, float]:
    """Return the metrics of the best of several runs for each row."""
    rankings = [load_ranking(study.folder(run).ranks("test")) for run in runs]
    rows = [(ranking.users.tolist(), ranking.targets.tolist()) for ranking in rankings]
    assert all(each == rows[0] for each in rows)  # one split, ranked in one order
    return metrics(torch.stack([ranking.ranks for ranking in rankings]).amin(dim=0), (20,))


def section(study: Study) -> Section:
    """Return own and oracle metrics, a panel per backbone and a twin for each."""
    systems = [system for system in study.table_2() if system.method != "base" and study.done(system)]
    backbones = list(dict.fromkeys(system.backbone for system in study.table_2()))
    rows: list[list[Cell]] = []
    for backbone in backbones:
        base = study.done(System(backbone, "base"))
        if len(base) > 1:
            mine = [Estimate.of([study.test_metric(run, name) for run in base]) for name in METRICS]
            oracle = _over_seeds(study, base)
            rows.append(
                [
                    BASES[backbone],
                    BASES[backbone],
                    "best of its seeds",
                    len(base),
                    *_gap(mine, [Estimate(oracle[name]) for name in METRICS]),
                    listed_runs(base),
                ]
            )
        for system in (each for each in systems if each.backbone == backbone):
            runs = study.done(system)
            found = [study.measured("ceiling", run, partial(_ceilings, study, run)) for run in runs]
            own, *oracles = ([each[kind] for each in found] for kind in found[0])
            for kind, values in zip(list(found[0])[1:], oracles, strict=True):
                if not _is_choice(kind, found[0]):
                    continue
                estimates = [[Estimate.of([each[name] for each in part]) for name in METRICS] for part in (own, values)]
                rows.append(
                    [
                        BASES[backbone],
                        system.label,
                        KINDS[kind],
                        int(values[0]["alternatives"]),
                        *_gap(*estimates),
                        listed_runs(runs),
                    ]
                )
    header = ["backbone", "method", "oracle over", "alternatives"]
    header += [f"{name}, {what}" for name in METRICS for what in ("as ranked", "oracle")] + ["NDCG@20, gap", "runs"]
    data = Table("figure4", "As ranked, and with the best alternative of each row", header, rows)
    caption = f"Test NDCG@20 as ranked (filled) and with the best alternative for each row (hollow); {spread(study)}"
    note = (
        "An oracle looks at the target: it says what the best choice would give, not what can be had. It rises with "
        "the number of alternatives by chance alone; the honest twin is the bare backbone with the best of its seeds "
        "for each row, models that differ in nothing but chance. A gap above the twin's with as many alternatives "
        "would be what reasoning leaves unused."
    )
    return Section("figure4", "Figure 4: ceilings", [Plot("figure4", caption, _drawn(rows, backbones), data), note])


def _is_choice(kind: str, found: dict[str, dict[str, float]]) -> bool:
    """Whether an oracle has several alternatives, and others than a simpler oracle has."""
    simpler = [found[each]["alternatives"] for each in ("steps", "streams")] if kind == "steps and streams" else []
    return found[kind]["alternatives"] > 1 and found[kind]["alternatives"] not in simpler


def _gap(own: list[Estimate], oracle: list[Estimate]) -> list[Cell]:
    gap = oracle[0].mean / own[0].mean - 1 if own[0].mean else None
    return [own[0], oracle[0], own[1], oracle[1], None if gap is None else f"{gap:+.1%}"]


def _drawn(rows: list[list[Cell]], backbones: list[str]) -> str:
    most = max((sum(row[0] == BASES[backbone] for row in rows) for backbone in backbones), default=1)
    with canvas():
        figure, axes = panels(1, max(len(backbones), 1), width=4.6, height=1.1 + 0.32 * most, sharex=True)
        for panel, backbone in zip(axes[0], backbones, strict=False):
            own_rows = [row for row in rows if row[0] == BASES[backbone]][::-1]
            for place, row in enumerate(own_rows):
                own, oracle = row[4], row[5]
                assert isinstance(own, Estimate)
                assert isinstance(oracle, Estimate)
                panel.plot([own.mean, oracle.mean], [place, place], color=PALETTE[7], linewidth=1)
                panel.errorbar(own.mean, place, xerr=own.sd, fmt="o", color=PALETTE[6], capsize=3, markersize=5)
                panel.errorbar(
                    oracle.mean, place, xerr=oracle.sd, fmt="o", color=PALETTE[5], mfc="none", capsize=3, markersize=5
                )
            panel.set_yticks(range(len(own_rows)), [f"{row[1]}, {row[2]} ({row[3]})" for row in own_rows], fontsize=7)
            panel.locator_params(axis="x", nbins=5)
            panel.set(title=BASES[backbone], xlabel="NDCG@20, test", ylim=(-0.7, len(own_rows) - 0.3))
        handles = [Line2D([], [], marker="o", linestyle="", color=PALETTE[6], label="as ranked")]
        handles.append(
            Line2D([], [], marker="o", linestyle="", color=PALETTE[5], mfc="none", label="best alternative")
        )
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        return svg_of(figure)
