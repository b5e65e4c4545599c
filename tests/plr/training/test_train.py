import json
import re
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from plr.cli import main
from plr.config import Config
from plr.data import LengthGroupedBatches, prepare
from plr.errors import EvaluationError, NoReachableTargetError
from plr.evaluation import evaluation_batches, metrics, rank_rows
from plr.models import build_model
from plr.training import NonFiniteLossError, RunError, train
from plr.training.finite import FiniteGuard
from plr.training.module import step_seed


@pytest.mark.parametrize("method", ["base", "erl", "prl", "plr"])
def test_a_tiny_set_is_memorised(method, small_data):
    dataset = prepare(small_data)
    config = Config(
        method=method, dim=32, ffn_dim=32, max_length=10, input_dropout=0.0, hidden_dropout=0.0, attention_dropout=0.0,
        kl_weight=0.01,
    )  # fmt: skip
    model = build_model(config, dataset.num_items)
    rows = dataset.rows("train", 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = LengthGroupedBatches(rows.lengths, 64, shuffle=True)
    for epoch in range(25):
        order.set_epoch(epoch)
        for index in order:
            optimizer.zero_grad()
            torch.stack(list(model.losses(rows.batch(index)).values())).sum().backward()
            optimizer.step()
    ranking = rank_rows(model, evaluation_batches(rows, 64, "cpu"))
    assert metrics(ranking.ranks)["mrr"] > 0.99


@pytest.mark.parametrize("method", ["base", "erl", "prl", "plr"])
def test_a_run_folder_holds_all_the_contract_names(method, quick):
    result = train(Config(**quick, method=method))
    out = quick["out"]
    stored = json.loads(Path(out, "metrics.json").read_text())
    assert stored == json.loads(json.dumps(result))
    for split in ("valid", "test"):
        assert {"recall@10", "ndcg@10", "recall@20", "ndcg@20"} <= set(stored[split])
        ranks = pl.read_parquet(f"{out}/ranks_{split}.parquet")
        assert len(ranks) == stored[split]["rows"] == 60
        assert set(ranks["user_id"]) == {f"u{user}" for user in range(60)}
        assert metrics(ranks["rank"].to_list())["ndcg@10"] == stored[split]["ndcg@10"]
    values = yaml.safe_load(Path(out, "config.yaml").read_text())
    assert values["dim"] == 16
    assert {"torch", "plr", "data_hash"} <= set(values["provenance"])
    assert len(pl.read_parquet(f"{out}/items.parquet")) == 24
    assert load_file(f"{out}/model.safetensors")


def test_the_whole_command_learns(quick):
    result = train(Config(**{**quick, "epochs": 30, "hidden_dropout": 0.0, "attention_dropout": 0.0}, method="base"))
    assert result["test"]["recall@10"] > 0.95
    assert result["test"]["ndcg@10"] > 0.8


def test_same_seed_same_run_other_seed_other_run(quick, tmp_path):
    first, again, other = (
        train(Config(**{**quick, "out": str(tmp_path / name), "seed": seed}))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first["test"] == again["test"]
    assert load_equal(tmp_path / "a", tmp_path / "b")
    assert not load_equal(tmp_path / "a", tmp_path / "c")
    assert first["test"] != other["test"]


def load_equal(one, two):
    one, two = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return all(torch.equal(one[name], two[name]) for name in one)


def test_epochs_see_the_rows_in_different_orders_and_dropout(quick, monkeypatch):
    seen = []
    from plr.training.module import TrainingModule

    step = TrainingModule.training_step

    def spy(self, batch, index):
        seen.append((self.current_epoch, batch.users.tolist(), torch.get_rng_state().sum().item()))
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", spy)
    train(Config(**{**quick, "epochs": 2}, method="plr"))
    first, second = ([users for epoch, users, _ in seen if epoch == e] for e in (0, 1))
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second))
    assert len({state for *_, state in seen}) == len(seen)
    seeds = {step_seed(seed, step, rank) for seed in range(9) for step in range(99) for rank in range(8)}
    assert len(seeds) == 9 * 99 * 8


def test_early_stopping_ends_the_run_and_a_repeat_after_it_trains_no_further(quick):
    config = Config(**{**quick, "epochs": 40, "patience": 1, "lr": 0.05})
    result = train(config)
    assert result["epochs"] < 40
    # Killed after the last epoch, before the test metrics were written:
    finished = Path(config.out) / "metrics.json"
    finished.unlink()
    again = train(config)
    assert again == result
    assert finished.exists()


def test_a_callback_whose_state_no_run_could_go_on_from_is_named(quick):
    class Counting(Callback):
        def state_dict(self):
            return {"best": np.float64(0.5)}

    with pytest.raises(RunError, match=r"^callback \S*Counting\S*: its state_dict\(\) must be .*; found numpy"):
        train(Config(**quick), callbacks=Counting())


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_weights_of_the_best_epoch_are_tested_and_kept(exclude_seen, quick):
    """And both splits are ranked alike."""

    class EveryEpoch(Callback):
        def __init__(self):
            self.weights, self.values = [], []

        def on_train_epoch_end(self, trainer, pl_module):
            self.weights.append({name: each.clone() for name, each in pl_module.model.state_dict().items()})
            self.values.append(trainer.callback_metrics["ndcg@10"].item())

    seen = EveryEpoch()
    config = Config(**{**quick, "epochs": 30, "patience": 2, "lr": 0.02}, exclude_seen=exclude_seen)
    result = train(config, callbacks=seen)
    best = seen.values.index(max(seen.values))
    assert (result["best_epoch"], result["epochs"]) == (best + 1, min(best + 1 + 2, 30))
    kept = load_file(f"{config.out}/model.safetensors")
    assert all(torch.equal(kept[name], each) for name, each in seen.weights[best].items())
    dataset = prepare(config.data)
    model = build_model(config, dataset.num_items)
    model.load_state_dict(seen.weights[best])
    for split in ("valid", "test"):
        rows = dataset.rows(split, config.max_length)
        ranks = []
        for row in range(len(rows)):
            batch = rows.batch(torch.tensor([row]))
            scores, target = model.eval().scores(batch)[0], int(batch.targets)
            own = scores[target].clone()
            if exclude_seen:
                scores[batch.item_ids[0]] = -torch.inf
            scores[target] = own
            ranks.append(1 + int((scores > own).sum()))
        assert metrics(ranks)["ndcg@10"] == pytest.approx(result[split]["ndcg@10"], rel=1e-9)
    assert result["valid"]["ndcg@10"] == pytest.approx(seen.values[best], rel=1e-9)


def test_a_refit_trains_on_validation_too_for_the_best_number_of_epochs(quick, monkeypatch):
    seen = []
    from plr.training.module import TrainingModule

    step = TrainingModule.training_step

    def spy(self, batch, index):
        seen.append((len(self.rows), self.current_epoch))
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", spy)
    result = train(Config(**{**quick, "lr": 0.003}, refit=True))
    rows = prepare(quick["data"]).report["rows"]
    together = rows["train"] + rows["valid"]
    assert {count for count, _ in seen} == {rows["train"], together}
    assert max(epoch for count, epoch in seen if count == together) + 1 == result["best_epoch"]
    alone = train(Config(**{**quick, "lr": 0.003, "out": quick["out"] + "-alone"}))
    assert alone["valid"] == result["valid"]
    assert alone["test"] != result["test"]


def test_bf16_clipping_and_prefix_rows_train(quick):
    result = train(Config(**quick, method="base", precision="bf16", clip=1.0, training_rows="prefix"))
    assert result["epochs"] == 3


def test_logs_are_written(quick):
    train(Config(**quick, mixture="states"))
    (csv,) = Path(quick["out"]).glob("logs/csv/*/metrics.csv")
    logged = pl.read_csv(csv)
    assert {"train/next_item", "train/contrastive", "train/diversity", "loss", "ndcg@10"} <= set(logged.columns)
    assert len(logged) == 3
    assert list(Path(quick["out"]).glob("logs/tensorboard/*/events*"))


def test_a_finished_run_is_not_overwritten(quick):
    train(Config(**{**quick, "epochs": 1}))
    with pytest.raises(RunError, match="holds a finished run; choose another --out"):
        train(Config(**{**quick, "epochs": 1}))


def test_an_unfinished_run_of_another_configuration_is_not_continued(quick, tmp_path):
    train(Config(**{**quick, "epochs": 1}))
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(RunError, match=re.escape("(lr: 0.01 -> 0.02)")):
        train(Config(**{**quick, "epochs": 1, "lr": 0.02}))


def test_a_non_finite_loss_stops_with_step_term_and_advice(quick, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"step 0: the loss term 'contrastive' is not finite.*contrastive_"):
        train(Config(**quick, contrastive_weight=3e38))
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_the_exit_status_says_what_a_run_has_failed_by(quick, tmp_path, capsys, monkeypatch):
    path = tmp_path / "config.yaml"
    Config(**quick, contrastive_weight=3e38).save(path)
    assert main(["train", "--config", str(path)]) == NonFiniteLossError.status == EvaluationError.status == 3
    Config(**quick, warmup_steps=10**6).save(path)
    assert main(["train", "--config", str(path)]) == RunError.status == 2

    def unreachable(*arguments, **options):
        raise NoReachableTargetError("none")

    monkeypatch.setattr("plr.api.train", unreachable)
    assert main(["train", "--config", str(path)]) == NoReachableTargetError.status == 4
    assert capsys.readouterr().err.count("plr: ") == 3


def test_a_loss_noted_on_a_device_is_read_before_the_validation_rows_are_ranked(quick, monkeypatch):
    """Else the message would be that of a ranking with weights that are not finite, which knows no step and no term."""
    watch = FiniteGuard.watch

    def noted_only(guard, losses, step):
        with monkeypatch.context() as patch:
            patch.setattr(FiniteGuard, "settle", lambda guard: None)
            watch(guard, losses, step)

    monkeypatch.setattr(FiniteGuard, "watch", noted_only)
    with pytest.raises(NonFiniteLossError, match="step 0: the loss term 'contrastive' is not finite"):
        train(Config(**quick, contrastive_weight=3e38))


def test_the_guard_remembers_the_first_bad_step_until_it_looks():
    guard = FiniteGuard()
    guard.watch({"next_item": torch.tensor(1.0)}, 0)
    with pytest.raises(NonFiniteLossError, match="step 7: the loss term 'diversity'"):
        guard.watch({"next_item": torch.tensor(1.0), "diversity": torch.tensor(float("nan"))}, 7)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 0, "dim must be at least 1; found 0"),
        ("heads", 3, "heads must be a divisor of dim=256; found 3"),
        ("hidden_dropout", 1.0, "hidden_dropout must be in [0, 1); found 1.0"),
        ("temperature", 0.0, "temperature must be a finite number above 0; found 0.0"),
        ("kl_weight", -0.1, "kl_weight must be a finite number, 0 or more; found -0.1"),
        ("ks", (0,), "ks must be positive; found (0,)"),
        ("lr", float("nan"), "lr must be a finite number above 0; found nan"),
        ("lr", 1e30, "lr must be from 1e-12 to 10: about so far Adam moves each weight in a step; found 1e+30"),
        ("lr", 1e-320, "lr must be from 1e-12 to 10"),
        ("temperature", 1e-320, "temperature must be from 1e-06 to 1e+06: beyond, float32 cannot tell"),
        ("contrastive_temperature", 1e30, "contrastive_temperature must be from 1e-06 to 1e+06"),
        ("weight_decay", 1e30, "weight_decay must be from 1e-12 to 1e+06"),
        ("clip", 1e-300, "clip must be from 1e-06 to 1e+18"),
    ],
)
def test_bad_configuration_names_field_value_and_what_is_accepted(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config(**{field: value})
