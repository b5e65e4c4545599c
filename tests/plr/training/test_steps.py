"""Steps of the optimiser: gradients of several batches as of one, the learning rate of each step, AdamW."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plr.config import Config
from plr.errors import RunError
from plr.models.methods.cloze import ClozeRecommender
from plr.training import train
from plr.training.module import RowDataset, TrainingModule
from plr.training.schedule import learning_rate

NO_DROPOUT = {"input_dropout": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0}
SYSTEMS = [
    {"method": "base"},
    {"method": "plr", "training_rows": "sequence", "batch_unit": "targets"},
    {"backbone": "bert4rec-cloze", "method": "base"},
]


def mask_every_other(self, predictable):
    """Mask of each row as many items as it has places for, the same ones whatever stands beside it."""
    places = torch.arange(predictable.shape[1]).repeat(len(predictable), 1)
    return places, predictable.sum(dim=1)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: f"{system.get('backbone', 'sasrec')} {system['method']}")
def test_several_batches_have_the_gradient_of_one(system, quick, monkeypatch):
    """Sequence rows have unequal numbers of targets, and an epoch's last step fewer batches than the others."""
    monkeypatch.setattr(ClozeRecommender, "draw_masked", mask_every_other)
    batches: list[torch.Tensor] = []
    counts: list[list[int]] = []
    gather, settle = RowDataset.__getitem__, TrainingModule.on_before_optimizer_step

    def gathered(self, index):
        batches.append(index)
        return gather(self, index)

    def settled(self, optimizer):
        settle(self, optimizer)
        found = {name: each.grad.clone() for name, each in self.model.named_parameters() if each.grad is not None}
        losses = self.model.losses(self.rows.batch(torch.cat(batches)))
        parameters = [each for each in self.model.parameters() if each.grad is not None]
        expected = torch.autograd.grad(torch.stack(list(losses.values())).sum(), parameters)
        size = torch.cat([each.flatten() for each in expected]).norm()
        difference = torch.cat([(a - b).flatten() for a, b in zip(found.values(), expected, strict=True)]).norm()
        assert difference < 1e-5 * size  # float32 sums in another order
        counts.append([len(self.rows.batch(index).each_target) for index in batches])
        batches.clear()

    monkeypatch.setattr(RowDataset, "__getitem__", gathered)
    monkeypatch.setattr(TrainingModule, "on_before_optimizer_step", settled)
    values = {**quick, **NO_DROPOUT, **system, "batch_size": 7, "epochs": 1, "accumulate_batches": 4}
    train(Config(**values))
    assert {len(step) for step in counts[:-1]} == {4}
    assert len(counts[-1]) <= 4
    assert any(len(set(step)) > 1 for step in counts)


def test_each_batch_of_a_step_has_random_numbers_of_its_own(quick, monkeypatch):
    seeds = []
    begin = TrainingModule.on_train_batch_start

    def begun(self, batch, index):
        begin(self, batch, index)
        seeds.append(torch.initial_seed())

    monkeypatch.setattr(TrainingModule, "on_train_batch_start", begun)
    train(Config(**{**quick, "accumulate_batches": 3, "batch_size": 16}))
    assert len(set(seeds)) == len(seeds) > 3


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_of_each_step(schedule):
    config = Config(lr=0.1, schedule=schedule, warmup_steps=4)
    found = [learning_rate(config, step, 12) for step in range(12)]
    fractions = [place / 8 for place in range(8)]
    after = {
        "constant": [1.0] * 8,
        "linear": [1 - done for done in fractions],
        "cosine": [0.5 + 0.5 * math.cos(math.pi * done) for done in fractions],
    }
    assert found == pytest.approx([0.1 * each for each in [0.25, 0.5, 0.75, 1.0, *after[schedule]]], rel=1e-12)


def test_the_optimiser_follows_the_schedule_and_a_resumed_run_too(quick, tmp_path, monkeypatch):
    """The steps of all epochs are planned, whatever ends training: a run of one epoch has the others' rates."""
    rates = []
    step = torch.optim.AdamW.step

    def stepped(self, closure=None):
        result = step(self, closure)
        rates.append((self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    config = Config(
        **quick, method="base", schedule="linear", warmup_steps=2, optimizer="adamw", weight_decay=0.1,
        accumulate_batches=2, refit=True,
    )  # fmt: skip
    result = train(config)
    steps = 3  # 60 sequences in batches of 32: one step an epoch
    planned = [learning_rate(config, each, steps) for each in range(steps)]
    assert rates == [(rate, 0.1) for rate in planned + planned[: result["best_epoch"]]]


def test_adamw_takes_weights_down_apart_from_the_gradient(quick, tmp_path):
    weights = {}
    for name, changes in {
        "none": {},
        "penalty": {"weight_decay": 0.3},
        "decoupled": {"weight_decay": 0.3, "optimizer": "adamw"},
    }.items():
        values = {**quick, **NO_DROPOUT, **changes, "method": "base", "epochs": 1, "batch_size": 100}
        train(Config(**{**values, "out": str(tmp_path / name)}))  # one step
        weights[name] = load_file(tmp_path / name / "model.safetensors")["encoder.input_norm.weight"]
    decayed = weights["none"] - 0.3 * quick["lr"] * 1.0  # the weights were 1 before the step
    assert torch.allclose(weights["decoupled"], decayed, rtol=0, atol=1e-6)
    assert not torch.allclose(weights["penalty"], decayed, rtol=0, atol=1e-6)


def test_a_warm_up_that_never_ends_is_refused_before_anything_is_written(quick):
    with pytest.raises(RunError, match=r"warmup_steps must be below the 27 steps that 3 epochs have here.*found 27"):
        train(Config(**{**quick, "warmup_steps": 27}))
    assert not Path(quick["out"]).exists()
