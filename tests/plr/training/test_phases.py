"""LARES' two phases as runs: pre-training, post-training of a finished run, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from plr.config import Config
from plr.data import SameTargetPositives, prepare
from plr.errors import ConfigError, DataError
from plr.models import build_model
from plr.serving import Recommender
from plr.serving.evaluate import evaluate_run
from plr.training import RunError, train
from plr.training.initial import filter_reachable
from plr.training.module import TrainingModule
from tests.plr.training.test_resume import assert_equal_runs, killed_in_mid_epoch

SIZES = {"dim": 16, "ffn_dim": 16, "max_length": 10, "mean_steps": 2, "core_layers": 1, "layers": 1}


@pytest.fixture(scope="module")
def pretrained(small_data, tmp_path_factory):
    """The folder of a finished run of phase spt."""
    out = tmp_path_factory.mktemp("phases") / "spt"
    train(Config(**SIZES, data=str(small_data), out=str(out), method="lares", batch_size=64, epochs=6, lr=0.01,
                 hidden_dropout=0.2, attention_dropout=0.2, progress=False, accelerator="cpu", threads=1))  # fmt: skip
    return out


def post_training(pretrained, data, out, **changes):
    values = {
        **SIZES, "data": str(data), "out": str(out), "method": "lares", "phase": "rpt", "init": str(pretrained),
        "hidden_dropout": 0.1, "attention_dropout": 0.1, "batch_size": 64, "epochs": 2, "lr": 5e-4,
        "progress": False, "accelerator": "cpu", "threads": 1, **changes,
    }  # fmt: skip
    return Config(**values)


def test_positives_reach_the_model(small_data, tmp_path, monkeypatch):
    seen = []
    step = TrainingModule.training_step

    def spy(self, batch, index):
        rows = len(batch) // 2
        assert torch.equal(batch.targets[:rows], batch.targets[rows:])
        seen.append((self.current_epoch, batch.users[:rows].tolist(), batch.item_ids[rows:].tolist()))
        return step(self, batch, index)

    epochs = []
    draw = SameTargetPositives.draw

    def spy_on_draw(self, index, epoch):
        epochs.append(epoch)
        return draw(self, index, epoch)

    monkeypatch.setattr(SameTargetPositives, "draw", spy_on_draw)
    monkeypatch.setattr(TrainingModule, "training_step", spy)
    train(Config(**SIZES, data=str(small_data), out=str(tmp_path / "run"), method="lares", batch_size=512, epochs=2,
                 progress=False, accelerator="cpu", threads=1))  # fmt: skip
    (_, users, positives), (_, users_again, positives_again) = seen
    assert epochs == [0, 1]
    assert sorted(users) == sorted(users_again)
    assert sorted(map(str, positives)) != sorted(map(str, positives_again))


def test_post_training_starts_from_the_run_and_is_served_like_any_other(pretrained, small_data, tmp_path):
    config = post_training(pretrained, small_data, tmp_path / "rpt", refit=True)
    result = train(config)
    weights, initial = (load_file(path / "model.safetensors") for path in (tmp_path / "rpt", pretrained))
    assert weights.keys() == initial.keys()
    assert torch.equal(weights["evaluation_state"], initial["evaluation_state"])
    moved = max((weights[name] - initial[name]).abs().max() for name in weights)
    assert 0 < moved < 0.1
    recorded = yaml.safe_load((tmp_path / "rpt" / "config.yaml").read_text())["provenance"]
    assert re.fullmatch("[0-9a-f]{64}", recorded["init_hash"])
    (csv,) = Path(config.out).glob("logs/csv/*/metrics.csv")
    logged = {"policy", "reference", "reward", "reward_spread", "log_p_spread"}
    assert {f"train/{name}" for name in logged} <= set(csv.read_text().splitlines()[0].split(","))

    evaluation = evaluate_run(Path(config.out))
    assert evaluation.metrics["ndcg@10"] == pytest.approx(result["test"]["ndcg@10"], abs=1e-12)
    recommender = Recommender.load(config.out)
    histories = [["i1", "i2"], ["i5"], ["i3", "i4", "i5", "i6"]]
    answers = recommender.recommend(histories, k=5)
    assert [answer.item for answer in answers[1]] == [
        answer.item for answer in recommender.recommend(histories[1:2], k=5)[0]
    ]


def test_metrics_do_not_depend_on_the_evaluation_batch(pretrained, small_data, tmp_path):
    """T_0 is no function of the batch that a history is in."""
    results = []
    for size in (512, 7):
        config = Config.load(pretrained / "config.yaml")
        config.eval_batch_size = size
        copied = tmp_path / str(size)
        copied.mkdir()
        for name in ("model.safetensors", "items.parquet", "metrics.json"):
            (copied / name).write_bytes((pretrained / name).read_bytes())
        config.save(copied / "config.yaml")
        results.append(evaluate_run(copied).metrics)
    assert results[0] == results[1]
    assert results[0]["ndcg@10"] == json.loads((pretrained / "metrics.json").read_text())["test"]["ndcg@10"]


def test_killed_post_training_resumes_exactly(pretrained, small_data, tmp_path, monkeypatch):
    values = {"epochs": 4, "patience": 4, "lr": 0.003}
    train(post_training(pretrained, small_data, tmp_path / "uninterrupted", **values))
    config = post_training(pretrained, small_data, tmp_path / "killed", **values)
    killed_in_mid_epoch(config, monkeypatch)
    train(config)
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "killed")


def test_killed_pre_training_resumes_exactly(small_data, tmp_path, monkeypatch):
    values = {**SIZES, "data": str(small_data), "method": "lares", "batch_size": 64, "epochs": 4, "patience": 4,
              "lr": 0.003, "progress": False, "accelerator": "cpu", "threads": 1}  # fmt: skip
    train(Config(**values, out=str(tmp_path / "uninterrupted")))
    config = Config(**values, out=str(tmp_path / "killed"))
    killed_in_mid_epoch(config, monkeypatch)
    train(config)
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "killed")


def test_rows_out_of_reach_are_left_out(small_data, monkeypatch):
    dataset = prepare(small_data)
    model = build_model(Config(**SIZES, method="lares"), dataset.num_items)
    rows = dataset.rows("train", 10)
    assert len(filter_reachable(model, rows, 64)) == len(rows)  # 24 items: all targets are in reach
    monkeypatch.setattr("plr.training.initial.REACH", 12)
    kept = filter_reachable(model, rows, 64)
    assert 0 < len(kept) < len(rows)
    model.eval()
    batch, everything = kept.batch(torch.arange(len(kept))), rows.batch(torch.arange(len(rows)))
    with torch.no_grad():
        scores, all_scores = model.scores(batch), model.scores(everything)
    assert ((scores > scores.gather(1, batch.targets[:, None])).sum(1) < 12).all()
    within = (all_scores > all_scores.gather(1, everything.targets[:, None])).sum(1) < 12
    assert int(within.sum()) == len(kept)
    monkeypatch.setattr("plr.training.initial.REACH", 0)
    with pytest.raises(RunError, match="nothing to reward"):
        filter_reachable(model, rows, 64)


def test_fewer_rows_within_reach_than_devices_are_refused_by_name(pretrained, small_data, monkeypatch):
    config = post_training(pretrained, small_data, "nowhere")
    rows = prepare(small_data).rows("train", 10)
    model = build_model(config, 24)
    model.start_from(build_model(Config.load(pretrained / "config.yaml"), 24))
    monkeypatch.setattr("plr.training.initial.REACH", 1)
    kept = len(filter_reachable(model.reference, rows, 64))
    module = TrainingModule(model, rows, config)
    monkeypatch.setattr(TrainingModule, "trainer", SimpleNamespace(world_size=kept))
    assert len(module.train_dataloader()) == 1
    module.trainer.world_size += 1
    message = f"{kept} training rows among the first 1; --devices {kept + 1} needs at least {kept + 1}: take fewer"
    with pytest.raises(RunError, match=re.escape(message)):
        module.train_dataloader()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phase": "rpt"}, "phase 'rpt' needs --init: the folder of a finished run of --method lares --phase spt"),
        ({"phase": "rpt", "init": "x", "method": "plr"}, "is a phase of method 'lares'; found method 'plr'"),
        ({"init": "x"}, "init is for phase 'rpt'; found phase 'spt' with init 'x'"),
        ({"rollouts": 1}, "rollouts must be at least 2: a rollout is judged by the others of its row; found 1"),
        ({"trajectory_weight": -1.0}, "trajectory_weight must be a finite number, 0 or more; found -1.0"),
        ({"training_rows": "sequence"}, "training_rows 'sequence' needs trajectory_weight 0 for method 'lares'"),
        ({"mean_steps": 0}, "mean_steps must be at least 1; found 0"),
        ({"temperature_scale": 0.5}, "temperature_scale must be a finite number, 1 or more; found 0.5"),
    ],
)
def test_configurations_that_cannot_work(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(**{"method": "lares", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 32}, "does not fit this run (dim: 16 there, 32 here)"),
        ({"lares_adapter": "gate"}, "does not fit this run (lares_adapter: 'mean' there, 'gate' here)"),
        ({"core_layers": 2, "max_length": 9}, "(core_layers: 1 there, 2 here; max_length: 10 there, 9 here)"),
    ],
)
def test_a_run_of_another_size_is_refused_before_anything_is_written(
    changes, message, pretrained, small_data, tmp_path
):
    with pytest.raises(RunError, match=re.escape(message)):
        train(post_training(pretrained, small_data, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_runs_that_are_no_finished_first_phase_on_the_same_data_are_refused(pretrained, small_data, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run here"):
        train(post_training(tmp_path / "nowhere", small_data, tmp_path / "run"))

    def altered(name, **changes):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("model.safetensors", "items.parquet", "metrics.json"):
            (folder / file).write_bytes((pretrained / file).read_bytes())
        values = yaml.safe_load((pretrained / "config.yaml").read_text())
        Config(**{**values, **changes}).save(folder / "config.yaml")
        return folder

    for name, changes, message in (
        ("other", {"method": "plr"}, "(method: 'plr' there, 'lares' here)"),
        ("phase", {"phase": "rpt", "init": "x"}, "is a run of phase 'rpt'; name one of phase 'spt'"),
        ("refit", {"refit": True}, "was refitted on the validation rows"),
    ):
        with pytest.raises(RunError, match=re.escape(message)):
            train(post_training(altered(name, **changes), small_data, tmp_path / "run"))
    other = tmp_path / "other.txt"
    other.write_text(small_data.read_text().replace("i3 ", "i99 "))
    with pytest.raises(RunError, match="was trained on other data or another split of them"):
        train(post_training(pretrained, other, tmp_path / "run"))
    with pytest.raises(RunError, match="was trained on other data or another split of them"):
        train(post_training(pretrained, small_data, tmp_path / "run", core=2))
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_as_the_first_phase_wrote_them_are_refused(pretrained, small_data, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(pretrained, damaged)
    weights = load_file(damaged / "model.safetensors")
    save_file(weights | {"evaluation_state": weights["evaluation_state"] + 1}, damaged / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors: not as the run wrote it"):
        train(post_training(damaged, small_data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_from_other_weights_is_not_continued(pretrained, small_data, tmp_path):
    config = post_training(pretrained, small_data, tmp_path / "run", epochs=1)
    train(config)
    (tmp_path / "run" / "metrics.json").unlink()
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    values["provenance"]["init_hash"] = "0" * 64
    Config(**values).save(tmp_path / "run" / "config.yaml")
    with pytest.raises(RunError, match="began at other weights"):
        train(config)
