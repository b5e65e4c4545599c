"""Gradients of some batches in float64, and whole runs: what one process computes, and each of several.

As a program it is those processes: parity.py FOLDER '{"1": [NAMES], "2": [NAMES]}' computes the named cases in one,
then in two, and keeps what each process found in the folder.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as distributed
from torch import Tensor

from plr.config import Config
from plr.data import prepare
from plr.inputs import load_item_data
from plr.models import RecommenderModel, build_model
from plr.models.methods.lares_post_training import PostTrainedLARES
from plr.training import train
from plr.training.callbacks import ResumePoint
from plr.training.module import TrainingModule, sample_items, training_rows
from plr_kernels.distributed import ItemShard
from tests.plr.training.processes import in_processes

SEQUENCES, PREFIXES = {"training_rows": "sequence"}, {"training_rows": "prefix"}
PLR = {"method": "plr", "streams": 4, "steps": 2, "load_weight": 0.5}
STATES = {"method": "plr", "mixture": "states", "streams": 4, "steps": 2, "consistency_weight": 0.0,
          "contrastive_weight": 0.3, "kl_weight": 0.1}  # fmt: skip
LARES = {"method": "lares", "mean_steps": 2, "core_layers": 1, "contrastive_temperature": 0.5}
PRL = {"method": "prl", "warmup_epochs": 1, "noise": 0.3}
SAMPLED = {"loss": "sampled_softmax", "negatives": 9, "sparse_adam": True}
OTHERS = {"contrastive_negatives": "others"}

SHARDED = {"shard_items": True}

CASES: dict[str, dict[str, Any]] = {
    "base": {"method": "base"},
    "base prefix clipped": {"method": "base", **PREFIXES, "clip": 0.05},
    "base r-drop": {"method": "base", "consistency_weight": 2.0, "divergence_share": 0.4},
    "base accumulated": {"method": "base", "accumulate_batches": 3, "batch_unit": "targets", "batch_size": 40},
    "bert4rec": {"backbone": "bert4rec", "method": "base"},
    "unisrec": {"backbone": "unisrec", "method": "base", "text_vectors": "vectors", "experts": 2},
    "cloze": {"backbone": "bert4rec-cloze", "method": "base", "mask_probability": 0.4, "mask_last_probability": 0.3},
    "cloze accumulated": {"backbone": "bert4rec-cloze", "method": "base", "accumulate_batches": 2},
    # The limits of the divergence are between the mean of a batch and those of its shares.
    "erl": {"method": "erl", "steps": 2, "kl_weight": 0.5, "divergence_share": 0.5, "kl_limit": 0.3165},
    "erl sequence": {"method": "erl", **SEQUENCES, "kl_limit": 0.0, "divergence_share": 0.3},
    "prl": PRL,
    "prl sequence": {**PRL, **SEQUENCES, "batch_order": "shuffled"},
    "prl dealt": {**PRL, **SEQUENCES, "targets_per_row": 3},
    "lares": {**LARES, "batch_size": 40},  # with positives 80 rows: in buckets of like length, in one process
    "lares sequence": {**LARES, **SEQUENCES, "trajectory_weight": 0.0},
    "lares post-training": {**LARES, "phase": "rpt", "init": "somewhere", "rollouts": 3, "reward": "ndcg"},
    "plr": {**PLR, "consistency_weight": 1.0, "fast_state": "component"},
    "plr all terms": {**PLR, "contrastive_weight": 0.3, "kl_weight": 0.1, **OTHERS},
    "plr sequence": {**PLR, **SEQUENCES, "contrastive_weight": 0.3, **OTHERS},
    "plr states": {**STATES, "consistency_weight": 0.5, "divergence_share": 0.3, "kl_limit": 0.0},
    "plr states sequence": {**STATES, **SEQUENCES, "targets_per_row": 4, "kl_limit": 0.1835},
    "base sampled": {"method": "base", **SAMPLED, "sampler": "mixed"},
    "plr sampled": {**PLR, **SAMPLED, "sampler": "in_batch", "kl_weight": 0.1, "kl_limit": 0.0},
    "unisrec sampled": {"backbone": "unisrec", "method": "base", "text_vectors": "vectors", "experts": 2, **SAMPLED},
    "base sharded": {"method": "base", **SHARDED, "clip": 0.05, "consistency_weight": 2.0, "divergence_share": 0.4},
    "plr sharded": {**PLR, **SHARDED, "contrastive_weight": 0.3, "kl_weight": 0.1, "consistency_weight": 0.5, **OTHERS},
    "plr sharded sequence": {**PLR, **SHARDED, **SEQUENCES, "fast_state": "component", "divergence_share": 0.3,
                             "consistency_weight": 0.5},
    "plr sharded states": {**STATES, **SHARDED, "kl_limit": 0.1835, "accumulate_batches": 2},
    "prl sharded": {**PRL, **SHARDED, **SEQUENCES},
    "erl sharded": {"method": "erl", **SHARDED, "kl_weight": 0.5, "kl_limit": 0.0},
    "base sampled sharded": {"method": "base", **SAMPLED, "sampler": "mixed", **SHARDED},
    "plr sampled sharded": {**PLR, **SAMPLED, "sampler": "in_batch", "kl_weight": 0.1, "kl_limit": 0.0, **SHARDED},
    "gbce sharded": {"method": "base", "loss": "gbce", "negatives": 9, "sparse_adam": False, **SHARDED},
    "features sharded": {"method": "base", "features": "features.json", **SHARDED, "clip": 0.05},
    "unisrec sharded": {**PLR, "backbone": "unisrec", "text_vectors": "vectors", "experts": 2, **SHARDED},
    "unisrec sharded transductive": {"backbone": "unisrec", "method": "base", "text_vectors": "vectors", "experts": 2,
                                     "unisrec_mode": "transductive", **SHARDED, "clip": 0.05},
    "lares sharded": {**LARES, **SHARDED, "batch_size": 40},
    "lares sharded sequence": {**LARES, **SHARDED, **SEQUENCES, "trajectory_weight": 0.0},
    "cloze sharded": {"backbone": "bert4rec-cloze", "method": "base", **SHARDED, "mask_probability": 0.4,
                      "mask_last_probability": 0.3, "accumulate_batches": 2},
    "cloze sharded idle": {"backbone": "bert4rec-cloze", "method": "base", **SHARDED, "batch_size": 1},
    "plr sharded idle": {**STATES, **SHARDED, **SEQUENCES, "batch_size": 1, "consistency_weight": 0.5},
    # A batch is a row or two: some processes have none of it.
    "base idle": {"method": "base", "batch_size": 1},
    "cloze idle": {"backbone": "bert4rec-cloze", "method": "base", "batch_size": 1},
    "plr idle": {**STATES, **SEQUENCES, "batch_size": 1, "consistency_weight": 0.5, "load_weight": 0.5},
    "prl idle": {**PRL, **SEQUENCES, "batch_size": 1},
    "lares idle": {**LARES, "batch_size": 1},
}
"""Of which gradients are compared."""

RUNS: dict[str, dict[str, Any]] = {
    "run": {"method": "plr", "batch_size": 40, "kl_weight": 0.1, "kl_limit": 0.0, "clip": 1.0, "schedule": "cosine",
            "average_weights": 0.9},
    "run lares": {**LARES, "batch_size": 40, "accumulate_batches": 2},
    "run sharded": {"method": "plr", "batch_size": 40, "kl_weight": 0.1, "clip": 1.0, "exclude_seen": True,
                    "average_weights": 0.9, **SHARDED},
    "run sampled sharded": {"method": "base", "batch_size": 40, "clip": 0.5, **SAMPLED, **SHARDED},
    "run sharded texts": {"backbone": "unisrec", "method": "base", "text_vectors": "vectors", "experts": 2,
                          "batch_size": 40, **SHARDED},
    "run from sharded": {"backbone": "bert4rec-cloze", "method": "base", "batch_size": 40, "from_run": "parent",
                         **SHARDED},
    # Each process as if it were a machine's only one.
    "run nodes": {"backbone": "bert4rec-cloze", "method": "base", "batch_size": 40, "nodes": 2, **SHARDED},
}
"""Whole runs."""

EPOCHS = 4
_SMALL = {"dim": 8, "ffn_dim": 8, "heads": 2, "layers": 1, "max_length": 30, "epochs": EPOCHS, "batch_size": 11,
          "seed": 3, "hidden_dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0,
          "adaptor_dropout": 0.0, "progress": False, "accelerator": "cpu", "threads": 1}  # fmt: skip
_STEPS = 2

_prepared = cache(prepare)


def gradients(name: str, folder: Path, rank: int, count: int) -> dict[str, Tensor]:
    """Return the sum of the gradients of a batch of the first epoch and of one of the second, and what was logged."""
    values = case_values(CASES[name], folder)
    sharded = values.pop("shard_items", False) and count > 1
    config = Config(
        **values, data=str(folder / "data.txt"), out=str(folder), devices=count, shard_items=sharded
    )
    dataset = _prepared(config.data)
    item_data = load_item_data(config, dataset.item_ids, folder)
    model = build_model(config, item_data, part=(rank, count) if sharded else None).double()
    if isinstance(model, PostTrainedLARES):
        model.start_from(_enlarged(build_model(replace(config, phase="spt", init=None, seed=4), item_data).double()))
        with torch.no_grad():  # else nothing would differ from the reference yet
            model.items.embedding.weight.mul_(1.1)
    _enlarged(model)
    if config.consistency_weight or (config.method == "plr" and config.contrastive_weight):
        _tell_views_apart(model)
    rows = training_rows(dataset, config)
    if config.batch_size == 1:
        rows = rows.take(torch.arange(0, len(rows), len(rows) // 6))
    sample_items(model, config, dataset)
    module = TrainingModule(model.train(), rows, config)
    found: dict[str, Tensor] = {}

    def log(key: str, value: Tensor, **_: Any) -> None:
        found[f"logged {key}"] = value + found.get(f"logged {key}", 0)

    module.log = log
    module.trainer = SimpleNamespace(world_size=count, global_rank=rank, global_step=0, current_epoch=0)
    loader = module.train_dataloader()
    for step in range(_STEPS):
        loader.sampler.set_epoch(step)
        module.trainer.current_epoch, module.trainer.global_step = step, step
        module.on_train_epoch_start()
        batch = loader.dataset[next(iter(loader.sampler))]
        module.on_train_batch_start(batch, 0)
        module.training_step(batch, 0).backward()
    module.on_before_optimizer_step(None)
    of_tables = {}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name}, process {rank}: {key} has no gradient"
            found[key] = parameter.grad.to_dense()
    for key in model.shared_rows():
        of_tables[key] = together(found.pop(key), model.items.shard)
    if count > 1:  # as DistributedDataParallel and Lightning's logger do
        for value in found.values():
            distributed.all_reduce(value)
            value /= count
    return found | of_tables


def case_values(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    sources = {source: str(folder / case[source]) for source in {"text_vectors", "features", "from_run"} & case.keys()}
    return _SMALL | case | sources


def together(rows: Tensor, shard: ItemShard) -> Tensor:
    """Return the rows of a table that all processes have."""
    counts = [shard.first_of(each + 1) - shard.first_of(each) for each in range(shard.processes)]
    parts = [rows.new_empty(count, *rows.shape[1:]) for count in counts]
    distributed.all_gather(parts, rows)
    return torch.cat(parts)


def _enlarged(model: RecommenderModel) -> RecommenderModel:
    """Give the weights a size with which distributions differ, as they do in training."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.std() < 0.1:
                parameter.mul_(20)
    return model


def _tell_views_apart(model: RecommenderModel) -> None:
    """Without dropout two views would be the same: the second's embeddings are others here."""
    encode = model.encoder.encode

    def encode_views(embeddings: Tensor, lengths: Tensor, **arguments: Any) -> Any:
        if model.training:
            one, other = embeddings.chunk(2)
            embeddings = torch.cat([one, other.roll(1, dims=-1)])
        return encode(embeddings, lengths, **arguments)

    model.encoder.encode = encode_views


def run(name: str, folder: Path, rank: int, count: int) -> dict[str, Tensor]:
    """Train a run in float32, and leave another after two epochs; several processes end what one has left.

    Where processes share the item table, two leave another two, which four and one end.
    """
    values = case_values(RUNS[name], folder)
    sharded = values.pop("shard_items", False)
    nodes = values.pop("nodes", 1) if count > 1 else 1
    out = folder / f"{name}-{count}"
    config = Config(
        **values | {"nodes": nodes}, lr=0.01, data=str(folder / "data.txt"), out=str(out), devices=count // nodes,
        shard_items=sharded and count > 1,
    )  # fmt: skip
    here = {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "GROUP_RANK": str(rank)} if nodes > 1 else {}
    with patch.dict(os.environ, here):
        train(config)
    left = {1: ["2"], 2: ["4", "back"] if sharded and nodes == 1 else []}
    for other in left.get(count, []):
        _leave(replace(config, out=str(folder / f"{name}-{other}")))
    return {}


def parent_of(folder: Path) -> Config:
    """What another run goes on from."""
    values = {name: value for name, value in RUNS["run from sharded"].items() if name not in {"from_run", *SHARDED}}
    return Config(**_SMALL | values, lr=0.01, data=str(folder / "older.txt"), out=str(folder / "parent"))


def _leave(config: Config) -> None:
    """Begin a run, and leave it after two epochs."""
    save = ResumePoint.on_train_epoch_end

    def leave(self: ResumePoint, trainer: Any, module: Any) -> None:
        save(self, trainer, module)
        if trainer.current_epoch == 1:
            raise _Left

    ResumePoint.on_train_epoch_end = leave
    with suppress(_Left):
        train(config)
    ResumePoint.on_train_epoch_end = save


class _Left(BaseException):
    pass


def compute(folder: Path, groups: dict[int, list[str]]) -> None:
    """Compute the cases in one group of processes after the other."""
    for count, names in groups.items():

        def work(rank: int, count: int = count, names: list[str] = names) -> None:
            if count > 1:
                distributed.init_process_group("gloo")
            for name in names:
                found = (gradients if name in CASES else run)(name, folder, rank, count)
                torch.save(found, folder / f"{name}-{count}-{rank}.pt")

        in_processes(count, work)


if __name__ == "__main__":
    torch.set_num_threads(1)
    compute(Path(sys.argv[1]), {int(count): names for count, names in json.loads(sys.argv[2]).items()})
