"""Averaged weights: what is validated, kept and tested is the moving average, and training goes on as without it."""

from __future__ import annotations

import json

import lightning.pytorch as lightning
import pytest
import torch
from safetensors.torch import load_file

from plr.config import Config
from plr.errors import ConfigError
from plr.training import train
from plr.training.weight_average import advance_average, averaged

DECAY = 0.95


class Trajectory(lightning.Callback):
    """Notes the weights after each step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.steps):
            self.steps.append({name: each.detach().clone() for name, each in pl_module.model.named_parameters()})


def average_of(steps):
    """The recursion, in float64."""
    average = {name: each.double() for name, each in steps[0].items()}
    for number, weights in enumerate(steps[1:], 2):
        decay = min(DECAY, number / (number + 9))
        average = {name: decay * each + (1 - decay) * weights[name].double() for name, each in average.items()}
    return average


@pytest.mark.parametrize(("method", "batches"), [("base", 3), ("plr", 1)])
def test_the_average_is_kept_and_training_goes_on_as_without_it(method, batches, quick, tmp_path):
    values = {**quick, "method": method, "epochs": 4, "patience": 4, "lr": 0.003, "batch_size": 16}
    values["accumulate_batches"] = batches
    plain, other = Trajectory(), Trajectory()
    train(Config(**{**values, "out": str(tmp_path / "plain")}), callbacks=plain)
    result = train(Config(**{**values, "out": str(tmp_path / "average"), "average_weights": DECAY}), callbacks=other)
    assert len(plain.steps) == len(other.steps) > 7
    for one, two in zip(plain.steps, other.steps, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    weights = load_file(tmp_path / "average" / "model.safetensors")
    steps = len(plain.steps) * result["best_epoch"] // result["epochs"]
    expected = average_of(plain.steps[:steps])
    moved = 0.0
    for name, each in expected.items():
        # A step rounds once or twice, by 6e-8 of a weight, and later steps keep at most all of it.
        assert (weights[name] - each).abs().max() <= 2 * steps * 6e-8 * max(1.0, float(each.abs().max())), name
        moved = max(moved, float((each - plain.steps[steps - 1][name]).abs().max()))
    assert moved > 1e-3  # the average is no longer the last step's weights


def test_validation_ranks_with_the_average(quick):
    """The epoch is chosen by the figure that the kept weights have when they are ranked again."""
    best = []

    class Figures(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            best.append(float(trainer.callback_metrics["ndcg@10"]))

    metrics = train(Config(**{**quick, "epochs": 3, "lr": 0.003, "average_weights": DECAY}), callbacks=Figures())
    assert max(best) == metrics["valid"]["ndcg@10"]
    assert len(set(best)) > 1


def test_a_refit_ends_with_its_average(quick, tmp_path):
    values = {**quick, "epochs": 2, "lr": 0.003, "refit": True}
    for decay in (0.0, DECAY):
        train(Config(**{**values, "out": str(tmp_path / str(decay)), "average_weights": decay}))
    plain, average = (load_file(tmp_path / str(decay) / "model.safetensors") for decay in (0.0, DECAY))
    state = torch.load(tmp_path / str(DECAY) / "resume" / "refit.ckpt", weights_only=True)
    numbers = state["optimizer_states"][0]["state"]
    names = [name.removeprefix("model.") for name in state["state_dict"]]
    assert json.loads((tmp_path / "0.0" / "metrics.json").read_text())["refit"]
    assert any(not torch.equal(plain[name], average[name]) for name in plain)
    last = state["state_dict"]
    assert all(torch.equal(average[name], numbers[number]["average"]) for number, name in enumerate(names))
    assert any(not torch.equal(average[name], last[f"model.{name}"]) for name in names)


def test_a_parameter_without_a_step_has_no_average():
    moved, still = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.Adam([moved, still], lr=0.1)
    for step in (1, 2):
        moved.grad = torch.ones(2)
        optimizer.step()
        advance_average(optimizer, 0.5, step)
    after = moved.detach().clone()
    with averaged(optimizer):
        assert not torch.equal(moved, after)
        assert torch.equal(still, torch.ones(2))
    assert torch.equal(moved, after)
    assert still not in optimizer.state


def test_lazy_adam_is_refused(quick):
    sampled = {"method": "base", "loss": "sampled_softmax"}
    with pytest.raises(ConfigError, match=r"average_weights must be 0 with sparse_adam.*found 0\.9"):
        Config(**{**quick, **sampled, "average_weights": 0.9})
    Config(**{**quick, **sampled, "average_weights": 0.9, "sparse_adam": False})
