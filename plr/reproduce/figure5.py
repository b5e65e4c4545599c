"""Figure 5: what each stream and step attends to."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from plr.data import Batch
from plr.models.methods.plr import PLRRecommender
from plr.reproduce.plots import canvas, integers, panels, svg_of
from plr.reproduce.results import Cell, Plot, Section, Table, shown
from plr.reproduce.study import Run, Study, System

BACKBONE = "sasrec"
METHODS = ("plr-states", "plr")
CHOSEN = 3  # users shown by themselves
BATCH = 256


def needs(study: Study) -> list[Run]:
    """Return a run of either form of PLR that reasons: without steps nothing attends."""
    systems = [System(BACKBONE, method) for method in METHODS]
    return study.runs([each for each in systems if study.config_of(each).reasoning], seeds=study.seeds[:1])


@torch.no_grad()
def attention_of(model: PLRRecommender, batch: Batch) -> Tensor:
    """Return the attention [N, layers, H, M, T, P] over the history, its most recent item first, 0 beyond its length.

    Weights of the stream's own tokens are left out: a row sums to what the history gets.
    """
    outcome = model.run(batch, with_attention=True)
    assert outcome.attention is not None  # asked for
    longest = batch.item_ids.shape[1]
    steps = [torch.stack([layer[..., :longest] for layer in step], dim=1) for step in outcome.attention]
    weights = torch.stack(steps, dim=4)  # [N, layers, H, M, T, P]
    place = batch.lengths[:, None] - 1 - torch.arange(longest)  # [N, P] of the item that is so many before the last
    real = (place >= 0)[:, None, None, None, None]
    index = place.clamp(min=0)[:, None, None, None, None].expand_as(weights)
    return weights.gather(-1, index).masked_fill(~real, 0.0)


def jensen_shannon(maps: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of M distributions [..., M, P], in bits: [...], from 0 to log2 M."""
    maps = maps.double()
    mean = maps.mean(dim=-2)
    return (torch.special.entr(mean).sum(-1) - torch.special.entr(maps).sum(-1).mean(-1)) / np.log(2)


def _measure(study: Study, run: Run) -> dict:
    """Return mean maps, single users' maps, how different streams' maps are, and what the history gets."""
    model = study.model(run)
    assert isinstance(model, PLRRecommender)
    batch = study.some_test_batch(run)
    total = divergences = history = None
    counts = torch.zeros(batch.item_ids.shape[1], dtype=torch.float64)
    examples = []
    chosen = _long_histories(batch)
    for first in range(0, len(batch), BATCH):
        part = slice(first, first + BATCH)
        rows = Batch(batch.item_ids[part], batch.lengths[part], batch.targets[part], batch.users[part])
        weights = attention_of(model, rows).double()
        mean_map = weights.mean(dim=(1, 2))  # [n, M, T, P], over layers and heads
        total = mean_map.sum(0) if total is None else total + mean_map.sum(0)
        counts += (rows.lengths[:, None] > torch.arange(len(counts))).sum(0)
        share = weights.sum(-1)  # [n, layers, H, M, T]
        history = share.sum(0) if history is None else history + share.sum(0)
        normed = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
        found = jensen_shannon(normed.movedim(3, -2))  # [n, layers, H, T]
        divergences = found.sum(0) if divergences is None else divergences + found.sum(0)
        for row in sorted(chosen & set(range(first, first + len(rows)))):
            examples.append(
                {"user": int(batch.users[row]), "map": mean_map[row - first, :, :, : int(batch.lengths[row])].tolist()}
            )
    users = len(batch)
    assert total is not None
    assert divergences is not None
    assert history is not None
    return {
        "users": users,
        "mean": (total / counts.clamp(min=1)).tolist(),  # of the rows whose history is so long
        "js": (divergences / users).tolist(),
        "history": (history / users).mean((0, 1)).tolist(),
        "examples": examples,
    }


def _long_histories(batch: Batch) -> set[int]:
    """Return rows with the longest histories, of different users."""
    by_user: dict[int, int] = {}
    for row in batch.lengths.argsort(descending=True, stable=True).tolist():
        by_user.setdefault(int(batch.users[row]), row)
    return set(list(by_user.values())[:CHOSEN])


def section(study: Study) -> Section:
    """Return maps as a mean over users and of single users, and the streams' difference."""
    section = Section("figure5", "Figure 5: attention of streams and steps")
    differences: list[list[Cell]] = []
    for run in needs(study):
        if run in study.failed:
            continue
        found = study.measured("attention", run, partial(_measure, study, run), users=study.preset.users)
        method, label = run.system.method, run.system.label
        caption = (
            f"{label}: attention over the history, mean over layers, heads and those of {found['users']} test rows "
            "whose history is so long"
        )
        section.parts.append(_map_plot(f"figure5-{method}", caption, {"mean": found["mean"]}, run))
        users = {study.dataset.user_ids[each["user"]]: each["map"] for each in found["examples"]}
        section.parts.append(
            _map_plot(f"figure5-{method}-users", f"{label}: the same for users with long histories", users, run)
        )
        for layer, heads in enumerate(found["js"]):
            for head, steps in enumerate(heads):
                for step, value in enumerate(steps):
                    differences.append([label, layer + 1, head + 1, step + 1, value, run.name])
        streams = len(found["mean"])
        mean = float(np.mean(found["js"]))
        section.parts.append(
            f"{label}: the streams' maps differ by {shown(mean)} bits on average (Jensen-Shannon; 0: all alike; "
            f"{np.log2(streams):g}: no item in common for {streams} streams); the history gets "
            f"{np.mean(found['history']):.0%} of the attention, the stream's own tokens the rest."
        )
    section.parts.append(
        Table(
            "figure5-difference",
            "How different the streams' maps are, in bits",
            ["method", "layer", "head", "step", "Jensen-Shannon divergence", "run"],
            differences,
            "Between the streams' attention over the history, normed to 1, for each test row, layer, head and step; "
            "mean over rows.",
        )
    )
    return section


def _map_plot(name: str, caption: str, maps: dict[str, list], run: Run) -> Plot:
    rows: list[list[Cell]] = []
    with canvas():
        streams, steps = np.asarray(next(iter(maps.values()))).shape[:2]
        figure, axes = panels(len(maps), 1, width=6.4, height=0.9 + 0.22 * streams * steps)
        for (panel,), (who, values) in zip(axes, maps.items(), strict=True):
            array = np.asarray(values)  # [M, T, P]
            image = panel.imshow(
                array.reshape(streams * steps, -1), aspect="auto", cmap="cividis", vmin=0, interpolation="nearest"
            )
            labels = [f"stream {m + 1}, step {t + 1}" for m in range(streams) for t in range(steps)]
            panel.set_yticks(range(len(labels)), labels, fontsize=7)
            panel.set_xlabel("items before the most recent one (0: the most recent)")
            panel.grid(False)
            integers(panel)
            if len(maps) > 1:
                panel.set_title(f"user {who}", fontsize=8, parse_math=False)  # an id may have dollars in it
            figure.colorbar(image, ax=panel, label="weight", pad=0.01)
            rows += [
                [who, m + 1, t + 1, place, float(array[m, t, place]), run.name]
                for m in range(streams)
                for t in range(steps)
                for place in range(array.shape[2])
            ]
        svg = svg_of(figure)
    return Plot(
        name,
        caption,
        svg,
        Table(name, caption, ["user", "stream", "step", "items before the last", "weight", "run"], rows),
    )
