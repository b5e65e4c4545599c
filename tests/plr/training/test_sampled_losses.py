"""Training on sampled items: a step moves the items that it names alone, and a run learns, resumes and is shared."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from plr.config import Config
from plr.data import prepare
from plr.errors import RunError
from plr.models import build_model
from plr.models.sampled_items import ItemSampler
from plr.training import device, train
from plr.training.lazy_adam import LazyAdam
from plr.training.module import TrainingModule, build_optimizer, sample_items, training_rows
from tests.plr.training.test_resume import assert_equal_runs, killed_in_mid_epoch

SAMPLED = {"loss": "sampled_softmax", "negatives": 6}
VARIANTS = [
    {"method": "base", **SAMPLED},
    {"method": "base", "loss": "gbce", "negatives": 6, "training_rows": "prefix"},
    {"method": "plr", **SAMPLED, "sampler": "mixed", "consistency_weight": 0.1},
    {"method": "plr", "mixture": "states", "loss": "bce", "negatives": 6, "sampler": "popularity"},
    {"method": "erl", **SAMPLED, "sampler": "in_batch", "clip": 1.0},
    {"method": "prl", **SAMPLED, "accumulate_batches": 2, "clip": 1.0},
    {"method": "base", **SAMPLED, "precision": "bf16", "clip": 1.0},
    {"method": "base", **SAMPLED, "sparse_adam": False, "weight_decay": 0.01},
]


@pytest.mark.parametrize("given", VARIANTS)
def test_a_run_learns(given, quick):
    result = train(Config(**{**quick, **given, "epochs": 8}))
    # Of 24 items in a ring the next is certain; 10 of 24 at random are .42.
    assert result["valid"]["recall@10"] > 0.6


def named_and_moved(config, monkeypatch):
    """Which items a step of training names, and which rows of the table it changes."""
    dataset = prepare(config.data)
    model = build_model(config, dataset.num_items)
    sample_items(model, config, dataset)
    module = TrainingModule(model, training_rows(dataset, config), config)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    optimizer = build_optimizer(model, config)
    batch = module.rows.batch(torch.arange(2))
    table = model.items.embedding.weight
    for _ in range(2):  # after the first there are moments
        before = table.detach().clone()
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
        model.sampler.seed += 1
    model.sampler.seed -= 1
    drawn, _ = model.sampler.draw(batch.each_target)
    real = torch.arange(batch.item_ids.shape[1]) < batch.lengths[:, None]
    named = torch.cat([batch.item_ids[real], batch.each_target, drawn]).unique()
    moved = (table != before).any(dim=1).nonzero()[:, 0]
    return named, moved, table.grad, optimizer


@pytest.mark.parametrize("method", ["base", "plr"])
def test_a_step_moves_the_rows_that_it_names_and_no_other(method, quick, monkeypatch):
    config = Config(**{**quick, **SAMPLED, "method": method, "negatives": 2, "training_rows": "prefix"})
    named, moved, gradient, optimizer = named_and_moved(config, monkeypatch)
    assert len(named) < 20
    assert moved.tolist() == named.tolist()
    assert gradient.is_sparse
    assert gradient.coalesce().indices()[0].tolist() == named.tolist()
    assert isinstance(optimizer, LazyAdam)


def test_without_sparse_adam_the_whole_table_goes_on_by_its_moments(quick, monkeypatch):
    config = Config(**{**quick, **SAMPLED, "method": "base", "negatives": 2, "sparse_adam": False})
    named, moved, gradient, optimizer = named_and_moved(config, monkeypatch)
    assert not gradient.is_sparse
    assert type(optimizer) is torch.optim.Adam
    assert set(moved.tolist()) > set(named.tolist())  # what the first step named, too


def test_the_loss_over_all_items_is_as_it_was(quick):
    config = Config(**quick)
    model = build_model(config, 24)
    assert type(build_optimizer(model, config)) is torch.optim.Adam
    TrainingModule(model, training_rows(prepare(quick["data"]), config), config)
    assert not model.items.embedding.sparse
    assert model.sampler is None


@pytest.mark.parametrize("given", [VARIANTS[2], VARIANTS[5]])
def test_a_killed_run_resumes_exactly(given, quick, tmp_path, monkeypatch):
    values = {**quick, **given, "epochs": 5, "patience": 5, "refit": True}
    train(Config(**{**values, "out": str(tmp_path / "uninterrupted")}))
    killed_in_mid_epoch(Config(**values), monkeypatch, batch=1)
    train(Config(**values))
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "run")


def test_accumulated_batches_draw_anew_each(quick, monkeypatch):
    seeds = []
    original = ItemSampler.draw

    def noted(self, targets):
        seeds.append(self.seed)
        return original(self, targets)

    monkeypatch.setattr(ItemSampler, "draw", noted)
    train(Config(**{**quick, **SAMPLED, "method": "base", "accumulate_batches": 2, "epochs": 2, "batch_size": 10}))
    assert len(set(seeds)) == len(seeds) == 12


def test_sparse_gradients_are_averaged_and_clipped_as_dense_ones(quick):
    gradients = {}
    for sparse in (True, False):
        given = {**quick, **SAMPLED, "method": "base", "training_rows": "prefix", "hidden_dropout": 0.0}
        given |= {"attention_dropout": 0.0, "input_dropout": 0.0, "accumulate_batches": 2}
        config = Config(**given, sparse_adam=sparse, clip=0.01)
        dataset = prepare(config.data)
        model = build_model(config, dataset.num_items)
        sample_items(model, config, dataset)
        module = TrainingModule(model, training_rows(dataset, config), config)
        module._trainer = SimpleNamespace(world_size=1, global_step=0)
        module.log = lambda *_, **__: None
        optimizer = build_optimizer(model, config)
        for rows in (torch.arange(3), torch.arange(3, 10)):
            module.training_step(module.rows.batch(rows), 0).backward()
        module.on_before_optimizer_step(optimizer)
        if sparse:
            module.configure_gradient_clipping(optimizer, config.clip, "norm")
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        gradients[sparse] = {name: each.grad.to_dense() for name, each in model.named_parameters()}
    assert sum(each.square().sum() for each in gradients[False].values()).sqrt() < 0.0101  # there was something to clip
    for name, expected in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], expected, rtol=1e-5, atol=1e-8)


def test_two_processes_draw_the_same_items(small_data, tmp_path):
    out = tmp_path / "run"
    program = tmp_path / "program.py"
    program.write_text(
        "import os, torch\n"
        "from plr.cli import main\n"
        "from plr.models.sampled_items import ItemSampler\n"
        "draw = ItemSampler.draw\n"
        "def noted(self, targets):\n"
        "    items, log_q = draw(self, targets)\n"
        f"    with open(f'{tmp_path}/drawn-' + os.environ.get('LOCAL_RANK', '0'), 'a') as file:\n"
        "        print(*items.tolist(), file=file)\n"
        "    return items, log_q\n"
        "ItemSampler.draw = noted\n"
        "if __name__ == '__main__':\n"
        "    raise SystemExit(main())\n"
    )
    command = [
        sys.executable, str(program), "train", "--data", str(small_data), "--out", str(out), "--devices", "2",
        "--method", "base", "--loss", "sampled_softmax", "--negatives", "6", "--accelerator", "cpu", "--dim", "16",
        "--ffn_dim", "16", "--batch_size", "16", "--epochs", "8", "--lr", "0.01", "--threads", "1",
        "--progress", "false",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"drawn-{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert len(set(first.splitlines())) > 10
    assert json.loads((out / "metrics.json").read_text())["valid"]["recall@10"] > 0.6


def test_sparse_gradients_are_refused_on_several_gpus(quick, monkeypatch):
    class Strategy:
        root_device = torch.device("cuda")

    class Trainer:
        def __init__(self, **_):
            self.strategy = Strategy()

    monkeypatch.setattr(device.lightning, "Trainer", Trainer)
    config = Config(**{**quick, **SAMPLED, "method": "base", "accelerator": "gpu", "devices": 2, "nodes": 3})
    with pytest.raises(RunError, match="sparse_adam must be false with 6 processes on GPUs"):
        device.device_of(config)
    device.device_of(Config(**{**quick, "accelerator": "gpu", "devices": 2}))
    device.device_of(replace(config, shard_items=True))


def test_a_run_goes_on_from_another_with_its_moments(quick, tmp_path):
    values = {**quick, **SAMPLED, "method": "base"}
    train(Config(**values))
    first = load_file(tmp_path / "run" / "model.safetensors")
    later = {**values, "out": str(tmp_path / "next"), "from_run": str(tmp_path / "run"), "epochs": 1}
    train(Config(**later))
    assert load_file(tmp_path / "next" / "model.safetensors").keys() == first.keys()
