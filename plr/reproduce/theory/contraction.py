"""Assumption 4.3, Theorem 4.4 and Corollary 4.5: does a reasoning step contract, and is diversity lost?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vjp

from plr.data import Batch
from plr.models.layers.transformer import KeyValue
from plr.models.methods.plr import ParallelReasoning, PLRRecommender
from plr.models.methods.reasoning import Histories, encode_histories, take_step
from plr.reproduce.plots import PALETTE, canvas, integers, panels, style_of, svg_of
from plr.reproduce.results import Cell, Part, Plot, Table
from plr.reproduce.study import Run, Study
from plr.reproduce.theory.ensemble import gaps
from plr.signals import raise_again
from plr_kernels import use_backend

__all__ = ["local_lipschitz", "losses_by_steps", "parts", "step_functions"]

ITERATIONS = 30
ROWS = 128  # of which Lipschitz constants are computed

StepFunction = Callable[[Tensor], Tensor]


def local_lipschitz(function: StepFunction, states: Tensor, iterations: int = ITERATIONS, seed: int = 0) -> Tensor:
    """Return the largest singular value of the Jacobian of a function that maps each state by itself.

    Power iteration on JᵀJ, all states at once. It approaches the value from below.

    Args:
        function: [..., d] -> [..., d]; what it makes of a state must not depend on the others.
        states: [..., d].
        iterations: of the power method.
        seed: of the first direction.

    Returns:
        [...], of the dtype of states.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(states.shape, generator=generator, dtype=states.dtype)
    pull_back = vjp(function, states)[1]
    for _ in range(iterations):
        raise_again()
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        image = jvp(function, (states,), (direction,))[1]
        (direction,) = pull_back(image)
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    return jvp(function, (states,), (direction,))[1].norm(dim=-1)


def step_functions(model: PLRRecommender, batch: Batch, table: Tensor) -> list[tuple[StepFunction, Tensor]]:
    """Return each step as a function of the state before it, and the states [B, M, d] that it is given.

    The stream's earlier tokens and the prefix, which the step also reads, stay as they are: f(·, r_t) of Assumption
    4.3.
    """
    encoder = model.encoder
    histories: Histories = encode_histories(encoder, model.embed(table, batch.item_ids), batch.lengths, None)
    start, lengths = histories.open(model.options.streams)
    state = start + model.trigger.weight
    streams: list[KeyValue | None] = [None] * len(encoder.layers)
    found: list[tuple[StepFunction, Tensor]] = []
    for t in range(model.steps):

        def function(state: Tensor, t: int = t, before: tuple = tuple(streams)) -> Tensor:
            own = list(before)  # a step appends to it
            return take_step(encoder, histories.encoded, lengths, state + model.step_embedding.weight[t], own)[0]

        found.append((function, state))
        state, _ = take_step(encoder, histories.encoded, lengths, state + model.step_embedding.weight[t], streams)
    return found


def losses_by_steps(
    model: PLRRecommender, outcome: ParallelReasoning, items: Tensor, targets: Tensor
) -> list[dict[str, Tensor]]:
    """Return `gaps` if the model ended after each number of steps, its streams pooled of those that were taken.

    The last of them are the model's own.
    """
    steps = range(1, outcome.states.shape[2] + 1)
    ended = (model.pooled(outcome.states[:, :, :taken], outcome.fast) for taken in steps)
    return [gaps(model.queries(each), outcome.log_gates, items, targets, model.temperature) for each in ended]


def _measure(study: Study, run: Run) -> dict[str, Any]:
    """Return Lipschitz constants and diversity by step, and the losses of an ensemble that ends at each step."""
    model = study.model(run)
    assert isinstance(model, PLRRecommender)
    batch = study.some_test_batch(run)
    with torch.no_grad():
        outcome = model.run(batch)
        items = model.candidates(model.item_table())
        start = outcome.fast[:, None] + model.trigger.weight  # [N, M, d]
        states = torch.cat([start[:, :, None], outcome.states], dim=2).double()  # [N, M, T + 1, d], h_{0,m} first
        diversity = _diversity(states.transpose(1, 2))  # [N, T + 1]
        losses = losses_by_steps(model, outcome, items, batch.targets)
    constants = []
    exact = copy.deepcopy(model).double()
    rows = Batch(batch.item_ids[:ROWS], batch.lengths[:ROWS], batch.targets[:ROWS], batch.users[:ROWS])
    with torch.no_grad(), use_backend("reference"):
        functions = step_functions(exact, rows, exact.item_table())
        for function, state in functions:
            constants.append(local_lipschitz(function, state).flatten().tolist())
    return {
        "lipschitz": constants,
        "diversity": diversity.T.tolist(),
        "uniform": [float(each["uniform"].mean()) for each in losses],
        "member": [float(each["member"].mean()) for each in losses],
        "gap": [float((each["member"] - each["uniform"]).mean()) for each in losses],
    }


def _diversity(states: Tensor) -> Tensor:
    """Return the mean over ordered pairs of the squared distance of [..., M, d]: [...]."""
    streams = states.shape[-2]
    return torch.cdist(states, states).square().sum(dim=(-2, -1)) / max(streams * (streams - 1), 1)


def parts(study: Study, runs: Sequence[Run]) -> list[Part]:
    """Return Assumption 4.3, Theorem 4.4 and Corollary 4.5 on the runs."""
    found = {
        run: study.measured("contraction", run, partial(_measure, study, run), users=study.preset.users, pooled=True)
        for run in runs
    }
    return [_assumption_4_3(found), *_theorem_4_4(found), *_corollary_4_5(found)] if found else []


def _assumption_4_3(found: dict[Run, dict[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    for run, each in found.items():
        for step, constants in enumerate(each["lipschitz"], start=1):
            low, middle, high = np.quantile(constants, (0.05, 0.5, 0.95)).tolist()
            below = f"{np.mean(np.asarray(constants) < 1):.0%}"
            rows.append([run.system.label, step, low, middle, high, max(constants), below, run.name])
    note = (
        f"The largest singular value of the Jacobian of a step at the states of up to {ROWS} test rows and all "
        f"streams, by {ITERATIONS} power iterations in float64, from below. The largest is a lower bound of the "
        "Lipschitz constant L. A LayerNorm does not make a map contract: it divides by the standard deviation of its "
        "input, and stretches where that is small or its gain large."
    )
    header = ["method", "step", "5 %", "median", "95 %", "largest", "states below 1", "run"]
    return Table("assumption-4.3", "Assumption 4.3: local Lipschitz constants of a reasoning step", header, rows, note)


def _theorem_4_4(found: dict[Run, dict[str, Any]]) -> list[Part]:
    rows: list[list[Cell]] = []
    with canvas():
        figure, axes = panels(1, len(found), width=4.2, height=3.2)
        for panel, (run, each) in zip(axes[0], found.items(), strict=True):
            diversity = np.asarray(each["diversity"])  # [T + 1, N]
            means = diversity.mean(axis=1)
            steps = np.arange(len(means))
            low, high = np.quantile(diversity, (0.25, 0.75), axis=1)
            medians = np.array([np.median(values) for values in each["lipschitz"]])
            largest = np.array([np.max(values) for values in each["lipschitz"]])
            predicted = means[0] * np.concatenate([[1.0], np.cumprod(medians**2)])
            bound = means[0] * np.concatenate([[1.0], np.cumprod(largest**2)])
            panel.fill_between(
                steps, np.maximum(low, 1e-12), high, color=PALETTE[2], alpha=0.35, linewidth=0, label="rows, quartiles"
            )
            panel.plot(steps, means, label="D after t steps, mean", **style_of(run.system.method))
            panel.plot(steps, predicted, color=PALETTE[0], linestyle="--", label="L²ᵗ·D(0), median local L")
            panel.plot(steps, bound, color=PALETTE[7], linestyle=":", label="L²ᵗ·D(0), largest local L")
            panel.set(title=run.system.label, xlabel="reasoning step t", ylabel="diversity of states D", yscale="log")
            panel.legend(fontsize=7)
            for step in steps.tolist():
                decay = float(means[step] / means[step - 1]) if step else None
                rows.append(
                    [
                        run.system.label,
                        step,
                        float(means[step]),
                        decay,
                        float(medians[step - 1] ** 2) if step else None,
                        float(bound[step]),
                        run.name,
                    ]
                )
        svg = svg_of(figure)
    header = ["method", "step", "D", "D / D before", "L², median local L", "bound by the largest local L", "run"]
    data = Table("theorem-4.4", "Diversity by step", header, rows)
    verdicts = "; ".join(f"{run.system.label}: {_decay(each)}" for run, each in found.items())
    note = (
        "A model trained with eight steps, diversity after each. Printed is an equality, D(T) = L^(2T)·D(0) + "
        "o(L^(2T)); the proof has an upper bound, which needs L below 1 to say that diversity decays, and holds here "
        "with the largest local constant if at all (local constants bound differences of states only between "
        f"neighbours, and a stream's earlier tokens differ too). Measured: {verdicts}."
    )
    caption = "Theorem 4.4: diversity of the streams' states by step, and what Lipschitz constants predict; logarithmic"
    return [Plot("theorem-4.4", caption, svg, data), note]


def _decay(each: dict[str, Any]) -> str:
    means = np.asarray(each["diversity"]).mean(axis=1)
    rate = -math.log(max(means[-1], 1e-300) / max(means[0], 1e-300)) / (2 * (len(means) - 1))
    word = "decays" if rate > 0 else "grows"
    return f"D {word} from {means[0]:.3g} to {means[-1]:.3g} in {len(means) - 1} steps, γ = {rate:+.3f} on average"


def _corollary_4_5(found: dict[Run, dict[str, Any]]) -> list[Part]:
    rows: list[list[Cell]] = []
    with canvas():
        figure, axes = panels(2, len(found), width=4.2, height=2.4, sharex=True)
        for column, (run, each) in enumerate(found.items()):
            steps = list(range(1, len(each["gap"]) + 1))
            upper, lower = axes[0][column], axes[1][column]
            upper.plot(steps, each["member"], color=PALETTE[0], marker="s", markersize=4, label="mean of its members")
            upper.plot(steps, each["uniform"], color=PALETTE[5], marker="o", markersize=4, label="ensemble")
            upper.set(title=run.system.label, ylabel="loss, nats")
            upper.legend(fontsize=7)
            lower.plot(steps, each["gap"], color=PALETTE[6], marker="^", markersize=4)
            lower.set(xlabel="steps T", ylabel="gap, nats")
            integers(lower)
            for step, *values in zip(steps, each["uniform"], each["member"], each["gap"], strict=True):
                rows.append([run.system.label, step, *values, run.name])
        svg = svg_of(figure)
    header = ["method", "steps T", "loss of the ensemble", "mean loss of its members", "gap", "run"]
    data = Table("corollary-4.5", "Losses by number of steps", header, rows)
    best = "; ".join(f"{run.system.label}: T = {int(np.argmin(each['uniform'])) + 1}" for run, each in found.items())
    note = (
        "Losses on test rows if the model of eight steps ended after T, its streams pooled of the steps so far as it "
        "pools them (Eq. 6: their mean). It was trained to end after the eighth: early ends are at a disadvantage, "
        f"Figure 2 trains each T by itself. The ensemble's loss is least at {best}."
    )
    caption = "Corollary 4.5: loss of the ensemble and of its members, and the gap between them, by number of steps"
    return [Plot("corollary-4.5", caption, svg, data), note]
