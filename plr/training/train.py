"""Train, validate, test and save one run; go on with it where it was interrupted."""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file

from plr.config import Config
from plr.data import SequenceDataset
from plr.errors import RunError
from plr.evaluation import evaluation_batches, metrics, rank_rows, save_ranking, write_metrics
from plr.models import METHODS, Recommender, build_model
from plr.runs import RunFolder
from plr.source import load_dataset
from plr.training.callbacks import MONITOR, BestWeights, ResumePoint, Validation, save_weights
from plr.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from plr.training.module import RecommenderModule
from plr.training.provenance import provenance


def train(config: Config, dataset: SequenceDataset | None = None) -> dict[str, Any]:
    """Train the configured recommender and write its run folder.

    A folder that holds an unfinished run of the same configuration is gone on with, from its last finished epoch, and
    ends with the metrics of an uninterrupted run.

    Args:
        config: where from, what, how and where to.
        dataset: the prepared data, where the caller already has them; otherwise they are read from config.data.

    Returns:
        The content of metrics.json.

    Raises:
        RunError: the folder holds a finished run or one of another configuration.
        NonFiniteLossError: a loss term became NaN or infinite.
    """
    if not config.out:
        raise RunError("--out is missing: name the folder for the run")
    if config.threads:
        torch.set_num_threads(config.threads)
    if dataset is None:
        dataset = load_dataset(config)
    folder = RunFolder(Path(config.out))
    _open_folder(folder, config, dataset)

    model = build_model(config, dataset.num_items)
    module = RecommenderModule(model, dataset.rows("train", config.max_length, row_kind(config)), config)
    validation = Validation(
        dataset.rows("valid", config.max_length), config.eval_batch_size, config.ks, config.exclude_seen
    )
    best = BestWeights(folder.best_so_far)
    early_stopping = EarlyStopping(
        MONITOR, mode="max", patience=config.patience, check_on_train_epoch_end=True, check_finite=True
    )
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            max_epochs=config.epochs,
            precision={"32": "32-true", "bf16": "bf16-mixed"}[config.precision],
            gradient_clip_val=config.clip or None,
            callbacks=[
                *_progress(config),
                validation,
                early_stopping,
                best,
                ResumePoint(folder.resume_point),
            ],
            plugins=[AtomicCheckpointIO()],
            logger=[
                CSVLogger(folder.logs, name="csv"),
                TensorBoardLogger(folder.logs, name="tensorboard"),
            ],
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=config.progress,
            use_distributed_sampler=False,
            log_every_n_steps=50,
        )
        resume = folder.resume_point if folder.resume_point.exists() else None
        if resume and _had_stopped(resume, early_stopping.state_key, config.patience):
            # Stopping is decided after an epoch and not part of Lightning's state: do not train one epoch more.
            state = read_checkpoint(resume)
            best.load_state_dict(state["callbacks"][best.state_key])
            validation.load_state_dict(state["callbacks"][validation.state_key])
            epochs = state["epoch"] + 1
        else:
            trainer.fit(module, ckpt_path=resume)
            epochs = trainer.current_epoch
    if not trainer.is_global_zero:
        return {}
    model.load_state_dict(load_file(folder.best_so_far))
    result: dict[str, Any] = {
        "epochs": epochs,
        "best_epoch": best.best_epoch + 1,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_seconds_per_epoch": statistics.median(validation.train_seconds),
    }
    return _finish(folder, config, dataset, model, result)


def row_kind(config: Config) -> str:
    """Return the kind of training rows: what the configuration says or the method prefers."""
    if config.training_rows != "auto":
        return config.training_rows
    return METHODS[config.method].model.row_kind


def _finish(
    folder: RunFolder, config: Config, dataset: SequenceDataset, model: Recommender, result: dict[str, Any]
) -> dict[str, Any]:
    """Rank both held-out splits with the best weights and complete the folder, metrics.json last."""
    save_weights(model, folder.weights)
    for split in ("valid", "test"):
        rows = dataset.rows(split, config.max_length)
        batches = evaluation_batches(rows, config.eval_batch_size, next(model.parameters()).device)
        ranking = rank_rows(model, batches, exclude_seen=config.exclude_seen)
        save_ranking(folder.ranks(split), ranking, dataset.user_ids, dataset.item_ids)
        result[split] = {**metrics(ranking.ranks, config.ks), "rows": len(rows)}
    result["data"] = {"split": dataset.split, **dataset.report}
    write_metrics(folder.metrics, result)
    return result


def _open_folder(folder: RunFolder, config: Config, dataset: SequenceDataset) -> None:
    """Start a run folder or accept the unfinished run of the same configuration in it."""
    recorded = provenance(dataset.content_hash)
    if folder.config.exists():
        earlier = Config.load(folder.config)
        if folder.finished():
            raise RunError(f"{folder.path}: holds a finished run; choose another --out or delete the folder")
        before, now = earlier.decisive(), config.decisive()
        changed = [f"{name}: {before[name]!r} -> {now[name]!r}" for name in now if before[name] != now[name]]
        if changed:
            raise RunError(
                f"{folder.path}: holds an unfinished run of another configuration ({'; '.join(changed)}); repeat its "
                "own command to go on with it, choose another --out or delete the folder"
            )
        if (earlier.provenance or {}).get("data_hash") != dataset.content_hash:
            raise RunError(f"{folder.path}: holds an unfinished run on other data; {config.data} has changed since")
        return
    if rank_zero_only.rank not in (None, 0) or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    folder.resume_point.parent.mkdir(parents=True, exist_ok=True)
    folder.save_item_ids(dataset.item_ids)
    Config(**{**asdict(config), "provenance": recorded}).save(folder.config)


def _had_stopped(resume: Path, state_key: str, patience: int) -> bool:
    """Whether early stopping had ended the run whose resume point this is."""
    return read_checkpoint(resume)["callbacks"][state_key]["wait_count"] >= patience


def _progress(config: Config) -> list[Callback]:
    return [TQDMProgressBar(leave=False)] if config.progress else []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's hints about workers, devices and products from the screen; errors and our own words stay."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            logger.setLevel(level)
