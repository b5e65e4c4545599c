"""Theorem 4.1, Proposition 4.2 and Theorem 4.6: what mixing the streams' distributions gains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.ticker import NullFormatter
from torch import Tensor

from plr.evaluation import paired_comparison
from plr.models.methods.plr import PLRRecommender
from plr.reproduce.plots import PALETTE, canvas, panels, svg_of
from plr.reproduce.results import Cell, Part, Plot, Table, signed
from plr.reproduce.study import Run, Study
from plr.signals import raise_again

__all__ = ["gaps", "parts", "rank_correlation", "smallest_distance"]

_LOGITS = 2**24  # at most so many are held at a time
_BLOCK, _NEAREST = 1024, 8


@torch.no_grad()
def gaps(states: Tensor, log_gates: Tensor, items: Tensor, targets: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return, of each row, the losses of its streams and of their mixtures, and how different the streams are.

    Args:
        states: z_m [N, M, d], as they are scored.
        log_gates: log g [N, M].
        items: E [V, d].
        targets: y int64 [N].
        temperature: τ; stream m predicts p_m = softmax(z_m·E / τ).

    Returns:
        float64 [N] each, with p̄ the uniform and p̃ the gated mixture:
        uniform = −log p̄(y); gated = −log p̃(y); member = mean_m −log p_m(y); gated_member = Σ g_m · −log p_m(y);
        expected_gap = E_{v~p̄}[log p̄(v) − mean_m log p_m(v)];
        pairwise_kl = mean over ordered pairs of KL(p_m‖p_m'); diversity = mean over ordered pairs of ‖z_m − z_m'‖²;
        information = Σ g_m KL(p_m‖p̃), what the choice of a stream tells about an item drawn from it.
    """
    states, items = states.double(), items.double()
    log_gates = torch.log_softmax(log_gates.double(), dim=-1)  # float32's sum to 1 up to rounding only
    rows, streams = states.shape[:2]
    found: dict[str, list[Tensor]] = {}
    block = max(1, _LOGITS // (streams * len(items)))
    for first in range(0, rows, block):
        raise_again()
        part = slice(first, first + block)
        log_p = torch.log_softmax(states[part] @ items.T / temperature, dim=-1)  # [n, M, V]
        for name, value in _of_block(log_p, states[part], log_gates[part], targets[part]).items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in found.items()}


def _of_block(log_p: Tensor, states: Tensor, log_gates: Tensor, targets: Tensor) -> dict[str, Tensor]:
    streams = log_p.shape[1]
    pairs = max(streams * (streams - 1), 1)
    at_target = log_p.gather(2, targets[:, None, None].expand(-1, streams, 1)).squeeze(2)  # [n, M]
    p, log_mean = log_p.exp(), torch.logsumexp(log_p, dim=1) - math.log(streams)  # [n, M, V], [n, V]
    log_gated = torch.logsumexp(log_p + log_gates[:, :, None], dim=1)  # [n, V]
    cross = p @ log_p.transpose(1, 2)  # [n, M, M]: Σ_v p_m log p_m'
    own = cross.diagonal(dim1=1, dim2=2)  # [n, M]
    distances = torch.cdist(states, states).square()  # [n, M, M]
    return {
        "uniform": -(torch.logsumexp(at_target, dim=1) - math.log(streams)),
        "gated": -torch.logsumexp(at_target + log_gates, dim=1),
        "member": -at_target.mean(dim=1),
        "gated_member": -(log_gates.exp() * at_target).sum(dim=1),
        "expected_gap": (log_mean.exp() * (log_mean - log_p.mean(dim=1))).sum(dim=1),
        "pairwise_kl": (streams * own.sum(dim=1) - cross.sum(dim=(1, 2))) / pairs,
        "diversity": distances.sum(dim=(1, 2)) / pairs,
        "information": (log_gates.exp() * (own - (p @ log_gated[:, :, None]).squeeze(2))).sum(dim=1),
    }


@torch.no_grad()
def smallest_distance(items: Tensor) -> float:
    """Return the distance between the two nearest of the vectors [V, d], V >= 2."""
    nearest, squares = math.inf, items.square().sum(dim=1)
    for first in range(0, len(items), _BLOCK):
        raise_again()
        block = items[first : first + _BLOCK]
        # By a product, which is fast and loses digits of small distances; the nearest few are computed again.
        distances = squares[first : first + _BLOCK, None] + squares - 2 * block @ items.T
        own = torch.arange(len(block))
        distances[own, first + own] = math.inf
        candidates = distances.topk(min(_NEAREST, len(items) - 1), largest=False).indices
        nearest = min(nearest, float((block[:, None] - items[candidates]).norm(dim=2).min()))
    return nearest


@torch.no_grad()
def _measure(study: Study, run: Run) -> dict[str, Any]:
    model = study.model(run)
    assert isinstance(model, PLRRecommender)
    batch = study.some_test_batch(run)
    outcome = model.run(batch)
    items = model.candidates(model.item_table())
    found = gaps(model.queries(outcome.streams), outcome.log_gates, items, batch.targets, model.temperature)
    return {name: values.tolist() for name, values in found.items()} | {
        "nearest": smallest_distance(items),
        "longest": float(items.norm(dim=1).max()),
        "streams": outcome.streams.shape[1],
        "user": batch.users.tolist(),
    }


def parts(study: Study, runs: Sequence[Run]) -> list[Part]:
    """Return Theorem 4.1, Proposition 4.2 and Theorem 4.6 on the runs."""
    found = {
        run: study.measured("ensemble", run, partial(_measure, study, run), users=study.preset.users, with_users=True)
        for run in runs
    }
    arrays = {
        run: {name: np.asarray(values) if isinstance(values, list) else values for name, values in each.items()}
        for run, each in found.items()
    }
    return [*_theorem_4_1(arrays), *_proposition_4_2(arrays), *_theorem_4_6(arrays)]


def _theorem_4_1(found: dict[Run, dict[str, Any]]) -> list[Part]:
    rows: list[list[Cell]] = []
    for run, each in found.items():
        gap = each["member"] - each["uniform"]
        losses = float(each["uniform"].mean()), float(each["member"].mean())
        apart, expected = f"{(gap > 1e-3).mean():.0%}", float(each["expected_gap"].mean())
        whole, least = float(gap.mean()), float(gap.min())
        rows.append([run.system.label, len(gap), each["streams"], *losses, whole, least, apart, expected, run.name])
    header = ["method", "rows", "M", "loss of the ensemble", "mean loss of its members", "gap"]
    header += ["smallest gap of a row", "rows above .001 nats", "gap under the ensemble", "run"]
    note = (
        "Losses are −log p(target) on test rows, in nats; the ensemble weighs streams equally. The gap is never "
        "negative (Jensen's inequality, row by row; −1e-15 is rounding), so the theorem holds. As printed, the loss "
        "is at most the members' mean less the gap, where the gap is defined as just that difference: it holds with "
        "equality and says nothing more. On one target the gap is 0 wherever the streams give the target the same "
        "probability, also where they differ elsewhere; the last but one column has its mean over items drawn from "
        "the ensemble, which is 0 only where all streams are equal."
    )
    return [Table("theorem-4.1", "Theorem 4.1: the ensemble is at most as wrong as its members", header, rows, note)]


def _proposition_4_2(found: dict[Run, dict[str, Any]]) -> list[Part]:
    rows: list[list[Cell]] = []
    points: list[list[Cell]] = []
    with canvas():
        figure, axes = panels(1, max(len(found), 1), width=4.2, height=3.2)
        for panel, (run, each) in zip(axes[0], found.items(), strict=False):
            constant = float(each["nearest"] ** 2 / (8 * each["longest"] ** 2))
            gap, expected, diversity = each["member"] - each["uniform"], each["expected_gap"], each["diversity"]
            ratio = expected / np.maximum(diversity, 1e-300)
            holds = [f"{(values >= constant * diversity).mean():.1%}" for values in (gap, expected)]
            ratios = float(ratio.min()), float(np.median(ratio))
            beyond = f"{(each['pairwise_kl'] > expected + 1e-12).mean():.1%}"
            correlation = rank_correlation(expected, diversity)
            rows.append([run.system.label, constant, *holds, *ratios, correlation, beyond, run.name])
            points += [
                [run.system.label, float(x), float(y), run.name] for x, y in zip(diversity, expected, strict=True)
            ]

            marks: dict[str, Any] = {"s": 6, "alpha": 0.5, "linewidths": 0, "rasterized": True}
            panel.scatter(diversity, expected, color=PALETTE[6], label="a test row", **marks)
            ends = np.array([max(diversity.min(), 1e-12), max(diversity.max(), 1e-12)])
            panel.plot(ends, constant * ends, color=PALETTE[5], label=f"c·D, c = {constant:.1e} as proved")
            median = f"median of gap / D, {ratios[1]:.1e}"
            panel.plot(ends, ratios[1] * ends, color=PALETTE[0], linestyle="--", label=median)
            panel.set(title=run.system.label, xlabel="diversity of states D", ylabel="gap under the ensemble, nats")
            panel.set(xscale="log", yscale="log")
            panel.xaxis.set_minor_formatter(NullFormatter())  # its labels would overlap
            panel.legend(fontsize=7)
        svg = svg_of(figure)
    header = ["method", "c as proved", "gap at the target ≥ c·D", "gap under the ensemble ≥ c·D", "least gap / D"]
    header += ["median gap / D", "rank correlation", "rows where pairwise KL > gap", "run"]
    note = (
        "D is the mean squared distance of two streams' states, c = δ²/(8R²) with δ the distance of the two nearest "
        "items and R the longest item vector. The proof needs a gap of at least the mean pairwise KL, which "
        "is the wrong way round: "
        "under the ensemble the gap is at most (M − 1)/M of the mean pairwise KL, and the last column counts where it "
        "is below it. It also bounds the distance of distributions from below by that of states, which fails where a "
        "difference of states is orthogonal to those of the items, or the softmax is saturated. What is left is a "
        "tendency: the rank correlation (Spearman's) of the gap with D."
    )
    shown = ["method", "D", "gap under the ensemble, nats", "run"]
    data = Table("proposition-4.2-rows", "Gap and diversity by test row", shown, points)
    caption = "Proposition 4.2: each test row's gap against its diversity, both logarithmic"
    table = Table("proposition-4.2", "Proposition 4.2: gap and diversity", header, rows, note)
    return [table, Plot("proposition-4.2", caption, svg, data)]


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; undefined where one is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    ranks = np.stack([pl.Series(each).rank("average").to_numpy() for each in (one, other)])
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def gain_by_user(gains: np.ndarray, user: np.ndarray) -> tuple[int, list[Cell]]:
    """Return how many users there are, and the mean of theirs, its interval and p; these empty where there is one.

    Args:
        gains: of each row.
        user: whose row it is.
    """
    _, number, rows = np.unique(user, return_inverse=True, return_counts=True)
    means = np.bincount(number, gains) / rows
    if len(means) < 2:
        return len(means), [None, None, None]
    gain = paired_comparison(means, np.zeros_like(means))
    interval = f"{signed(gain.low)} to {signed(gain.high)}"
    return len(means), [signed(gain.difference), interval, f"{gain.p_value:.2g}"]


def _theorem_4_6(found: dict[Run, dict[str, Any]]) -> list[Part]:
    rows: list[list[Cell]] = []
    for run, each in found.items():
        users, tested = gain_by_user(each["uniform"] - each["gated"], each["user"])
        proof = each["gated"] - each["gated_member"]
        gated, uniform, information = (float(each[name].mean()) for name in ("gated", "uniform", "information"))
        claimed = "yes" if gated <= uniform - information else "no"
        printed: list[Cell] = [float(proof.mean()), f"{(proof <= 1e-12).mean():.0%}"]
        rows.append([run.system.label, gated, uniform, users, *tested, *printed, information, claimed, run.name])
    header = ["method", "loss gated", "loss uniform", "users", "uniform − gated", "95 % interval", "p", "proof's I"]
    header += ["rows with I ≤ 0", "information of streams", "gated ≤ uniform − information", "run"]
    note = (
        "The printed statement subtracts the mutual information of Z ~ w(S) and V ~ p*(·|S), which are independent "
        "given S: it is 0, and what is left is that gated is at most uniform, which no gate guarantees; whether it "
        "holds here say the difference, its bootstrap interval and the p of the t-test: over users, each with the mean "
        "of its rows, for rows of one user are not independent; losses are means over rows. The proof's "
        "I = Σ w_m E[log p_m / p̃] is not positive by Jensen's inequality: its mean on the targets is in the table. A "
        "mutual information that is positive is that of the stream and an item drawn from it, Σ w_m KL(p_m‖p̃); the "
        "last column but one says whether the printed bound holds with it."
    )
    return [Table("theorem-4.6", "Theorem 4.6: gated against uniform weights", header, rows, note)]
