"""What a process has of an item table over processes, the files that they write together, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save

from plr.config import Config
from plr.data import prepare
from plr.errors import ConfigError, EvaluationError, RunError
from plr.files import sha256_of
from plr.items import FeatureField, ItemData, ItemText
from plr.models import build_model
from plr.models.items import sharded
from plr.models.sharded_items import ShardedItems
from plr.systems import BACKBONES, Backbone
from plr.training.opened import check_rows
from plr.training.sharded_ranking import rank_over_shards
from plr.training.shared_files import read_part, write_together
from plr.training.shared_rows import complete, drop_other_rows, load_own_weights, number_of_parameters

TABLE = "items.embedding.weight"


FIELD = FeatureField("colour", torch.tensor([0, 2, 2, 3, 3, 3, 5, 6]), torch.tensor([0, 1, 2, 0, 3, 1]))
TEXT = ItemText(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.arange(7) != 2)


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({}, ItemData(7, (FIELD,))),
        ({"backbone": "unisrec", "text_vectors": "vectors"}, ItemData(7, text=TEXT)),
        ({"backbone": "unisrec", "text_vectors": "vectors", "unisrec_mode": "transductive"}, ItemData(7, text=TEXT)),
    ],
)
def test_the_vectors_that_processes_hold_are_the_table(options, data):
    config = Config(heads=1, layers=1, dim=4, ffn_dim=8, seed=5, **options)
    whole = build_model(config, data)
    parts = [build_model(config, data, part=(process, 3)) for process in range(3)]
    for model in (whole, *parts):
        model.eval()
    held = [part.items.held_vectors() for part in parts]
    assert [len(vectors) for vectors in held] == [3, 2, 2]
    torch.testing.assert_close(torch.cat(held), whole.item_table(), rtol=1e-6, atol=1e-7)
    for part in parts:
        assert number_of_parameters(part) == number_of_parameters(whole)
        with pytest.raises(RuntimeError, match="none has all rows"):
            part.item_table()


@pytest.mark.parametrize(("items", "dim", "processes"), [(3, 1, 2), (70, 5, 4), (67, 8, 3), (33, 3, 1)])
def test_processes_draw_the_rows_that_one_draws(items, dim, processes, monkeypatch):
    monkeypatch.setattr(sharded, "_AT_A_TIME", 16)
    config = Config(method="plr", heads=1, layers=1, dim=dim, ffn_dim=8)
    whole = build_model(config, items)
    parts = [build_model(config, items, part=(process, processes)) for process in range(processes)]
    assert torch.equal(torch.cat([part.get_parameter(TABLE) for part in parts]), whole.get_parameter(TABLE))
    for part in parts:
        assert number_of_parameters(part) == sum(each.numel() for each in whole.parameters())
        for name, parameter in part.named_parameters():
            assert name == TABLE or torch.equal(parameter, whole.get_parameter(name)), name
    assert parts[0].shared_rows() == (TABLE,)
    assert whole.shared_rows() == ()
    with pytest.raises(RuntimeError, match="none has all rows"):
        parts[0].item_table()


def test_a_file_written_together_is_that_of_whole_tensors(tmp_path, monkeypatch):
    """Of one process: test_one_law.py has several."""
    monkeypatch.setattr("plr.training.shared_files._AT_A_TIME", 7)
    whole = {"b": torch.randn(3, 5), "a": torch.tensor(2.0), "counts": torch.arange(4), "empty": torch.zeros(0, 2)}
    shared = {"äöü \"'": torch.randn(6, 3)}
    write_together(tmp_path / "file", whole, shared, SimpleNamespace(rank=0, processes=1, items=6))
    assert (tmp_path / "file").read_bytes() == save(whole | shared)
    read = read_part(tmp_path / "file", slice(2, 4), list(shared))
    assert all(torch.equal(read[name], value) for name, value in whole.items())
    assert torch.equal(read["äöü \"'"], shared["äöü \"'"][2:4])
    (tmp_path / "file").write_bytes(b"other")
    with pytest.raises(RunError, match="file: cannot be read"):
        read_part(tmp_path / "file", slice(2, 4))


@pytest.fixture
def models():
    config = Config(heads=1, layers=1, dim=4, ffn_dim=8)
    return build_model(config, 7), build_model(config, 7, part=(1, 3))


def _checkpoint(model):
    states = {
        number: {"step": torch.tensor(3.0), "exp_avg": torch.randn_like(each), "exp_avg_sq": torch.rand_like(each)}
        for number, each in enumerate(model.parameters())
    }
    weights = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    return {"state_dict": weights, "optimizer_states": [{"state": states}]}


def test_a_resume_point_of_one_process_gives_each_of_several_its_rows(models, tmp_path):
    whole, part = models
    checkpoint = _checkpoint(whole)
    number = [name for name, _ in whole.named_parameters()].index(TABLE)
    before = {kind: value.clone() for kind, value in checkpoint["optimizer_states"][0]["state"][number].items()}
    complete(checkpoint, tmp_path / "last.ckpt", part)
    assert torch.equal(checkpoint["state_dict"][f"model.{TABLE}"], whole.get_parameter(TABLE)[3:5])
    state = checkpoint["optimizer_states"][0]["state"][number]
    assert state["step"] == 3
    assert all(torch.equal(state[kind], before[kind][3:5]) for kind in ("exp_avg", "exp_avg_sq"))


def test_a_resume_point_is_of_no_use_without_the_rows_beside_it(models, tmp_path):
    whole, _ = models
    checkpoint, path = _checkpoint(whole), tmp_path / "last.ckpt"
    rows = {f"weight.{TABLE}": checkpoint["state_dict"].pop(f"model.{TABLE}"), f"exp_avg.{TABLE}": torch.randn(7, 4)}
    beside = tmp_path / "last-items-8.safetensors"
    write_together(beside, {}, rows, SimpleNamespace(rank=0, processes=1, items=7))
    entry = {"file": beside.name, "sha256": sha256_of(beside)}
    complete(checkpoint | {"shared_rows": entry}, path, whole)
    assert torch.equal(checkpoint["state_dict"][f"model.{TABLE}"], whole.get_parameter(TABLE))
    number = [name for name, _ in whole.named_parameters()].index(TABLE)
    assert torch.equal(checkpoint["optimizer_states"][0]["state"][number]["exp_avg"], rows[f"exp_avg.{TABLE}"])
    with open(beside, "ab") as file:
        file.write(b"more")
    with pytest.raises(RunError, match=r"last-items-8.safetensors: not as the run wrote it.*delete both"):
        complete(checkpoint | {"shared_rows": entry}, path, whole)
    drop_other_rows(path, beside)
    assert beside.exists()
    drop_other_rows(path, None)
    with pytest.raises(RunError, match=r"last-items-8\.safetensors: it is missing"):
        complete(checkpoint | {"shared_rows": entry}, path, whole)


def test_each_process_reads_its_rows_of_the_weights(models, tmp_path):
    whole, part = models
    path = tmp_path / "best.safetensors"
    path.write_bytes(save(whole.state_dict()))
    with torch.no_grad():
        part.get_parameter(TABLE).zero_()
    load_own_weights(part, path)
    assert torch.equal(part.get_parameter(TABLE), load_file(path)[TABLE][3:5])
    path.write_bytes(save(build_model(Config(heads=1, layers=1, dim=8, ffn_dim=8), 7).state_dict()))
    with pytest.raises(RunError, match=r"not the weights of the model in config\.yaml"):
        load_own_weights(part, path)


def test_a_score_that_is_not_finite_is_said_after_all_rows(small_data, monkeypatch):
    """Else the other processes would wait for what this one has to say of its items."""
    rows = prepare(small_data).rows("test", 5)
    model = build_model(Config(heads=1, layers=1, dim=4, ffn_dim=8, max_length=5), 24, part=(0, 1))
    ranked = []

    class Scorer:
        def target_rank(self, items, targets, *, exclude):
            ranked.append(exclude.shape)
            counts = torch.zeros_like(targets)
            return (counts - 1, counts - 1) if len(ranked) == 2 else (counts, counts)

    nothing = ShardedItems(torch.zeros(1, 1), None)
    monkeypatch.setattr(model, "shared_items", lambda batch, held: (batch, None, nothing))
    monkeypatch.setattr(model, "scorer", lambda batch, table: Scorer())
    with pytest.raises(EvaluationError, match=r"user \d+: a score is not finite"):
        rank_over_shards(model, rows, 8, 0, 1, exclude_seen=True)
    assert sum(shape[0] for shape in ranked) == len(rows)
    assert {shape[1] for shape in ranked} == {5}  # all processes' alike


def test_a_backbone_that_makes_all_vectors_at_once_is_refused(monkeypatch):
    monkeypatch.setitem(BACKBONES, "sasrec", Backbone("as docs/how-to-add-a-backbone.md has it", causal=True))
    with pytest.raises(ConfigError, match="shard_items must be false for backbone 'sasrec'"):
        Config(devices=2, shard_items=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lares", "phase": "rpt", "init": "run"}, "shard_items must be false for phase 'rpt' of method"),
        (
            {"loss": "sampled_softmax", "features": "titles.json"},
            "loss must be softmax with shard_items true and features, found 'sampled_softmax'",
        ),
        ({"rank_with": "engine"}, "rank_with must be model with shard_items true, found 'engine'"),
        ({"devices": 1}, "shard_items needs several devices.*: shard_items false, or devices of at least 2; found T"),
    ],
)
def test_what_a_table_over_processes_cannot_be_had_with_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Config(**{"devices": 2, "shard_items": True} | options)


def test_more_processes_than_items_are_refused(quick, small_data):
    with pytest.raises(RunError, match="has 24 items; with --shard_items true each of the 30 devices has at least one"):
        check_rows(Config(**quick | {"devices": 30, "shard_items": True}), prepare(small_data))
