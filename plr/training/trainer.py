"""Train, validate, test and save one run; resume it where it was interrupted."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.distributed as distributed
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from plr.config import Config
from plr.data import SequenceDataset
from plr.errors import RunError
from plr.evaluation import Ranking, metrics, ranking_progress, save_ranking, write_metrics
from plr.files import sha256_of
from plr.models import RecommenderModel, build_model
from plr.models.methods.lares import LARESRecommender
from plr.models.methods.lares_post_training import PostTrainedLARES
from plr.training.callbacks import (
    MONITOR,
    BestWeights,
    FiguresTogether,
    OwnSignals,
    ResumePoint,
    Validation,
    save_weights,
)
from plr.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from plr.training.epoch_lines import EpochLines, draws_bars
from plr.training.handed import Handed
from plr.training.machines import SameRun
from plr.training.memory import ReturnFreedMemory
from plr.training.module import TrainingModule, sample_items, training_rows
from plr.training.opened import OpenedRun, opened
from plr.training.processes import accelerator, cluster_environment, process_number
from plr.training.quiet import quiet
from plr.training.shared_ranking import gather_rows, rank_together, share_of
from plr.training.shared_rows import load_own_weights, number_of_parameters
from plr.training.start import Start
from plr.training.watch import keep_children
from plr.training.weight_average import set_average


def train(
    config: Config,
    dataset: SequenceDataset | None = None,
    *,
    callbacks: Callback | Iterable[Callback] = (),
    logger: Logger | Iterable[Logger] | None = None,
) -> dict[str, Any]:
    """Train the configured recommender and write its run folder.

    A folder that holds an unfinished run of the same configuration is resumed after its last finished epoch, and
    ends with the metrics of an uninterrupted run.

    Args:
        config: where from, what, how and where to.
        dataset: the prepared data, where the caller already has them; otherwise they are read from config.data.
        callbacks: Lightning's or the caller's own, of the training whose epochs are validated (not of a refit). At the
            end of an epoch they find its validation metrics in `trainer.callback_metrics`. Their state is kept for
            resuming, and has to consist of tensors and plain values.
        logger: loggers of Lightning beside the run's own CSV and TensorBoard logs, which get the run's options as
            hyperparameters and the same figures.

    Returns:
        The content of metrics.json.

    Raises:
        ConfigError: callbacks or logger are something else.
        RunError: the folder holds a finished run or one of another configuration, there is no such device, or the data
            have too few rows.
        NonFiniteLossError: a loss term became NaN or infinite.
        KeyboardInterrupt: on SIGINT, as everywhere; SystemExit: on SIGTERM, with status 143.
    """
    handed = Handed.of(callbacks, logger)
    with opened(config, dataset) as run:
        return _run(run, handed)


def train_without_test(
    config: Config, dataset: SequenceDataset | None = None, *, callbacks: Callback | Iterable[Callback] = ()
) -> float:
    """Train as `train` does until the best epoch is known: no refit, no test row is looked at, no result is written.

    Args:
        config, dataset, callbacks: as for `train`. A folder that holds such a run is resumed, also by `train`.

    Returns:
        NDCG@10 on the validation rows after the best epoch.

    Raises:
        As `train`.
    """
    handed = Handed.of(callbacks, None)
    with opened(config, dataset) as run, quiet():
        return _select(run, handed).best_value


def _run(run: OpenedRun, handed: Handed) -> dict[str, Any]:
    """Train, and refit where that is wanted; then measure and complete the folder."""
    config, folder = run.config, run.folder
    with quiet():
        selection = _select(run, handed)
        refitted = _refit(run, selection.best_epoch + 1) if config.refit else None
    tested = refitted or selection.model
    rankings = {
        split: _ranking(model.to(run.device), split, config, run.dataset)
        for split, model in (("valid", selection.model), ("test", tested))
    }
    if _is_first() or tested.items.part is not None:
        save_weights(tested, folder.weights)
    result = {}
    if _is_first():
        result = _finish(run, selection, refitted, rankings)
        folder.start_point.unlink(missing_ok=True)  # of no use any more, and three times as large as the weights
    if config.processes > 1 and distributed.is_initialized():
        gather_rows(torch.zeros(1))  # all wait: what a program does next in another may need the finished run
    return result


def _is_first() -> bool:
    """Whether this is the first process of the run, once there are others."""
    return getattr(rank_zero_only, "rank", None) in (None, 0)


def _ranking(model: RecommenderModel, split: str, config: Config, dataset: SequenceDataset) -> Ranking:
    """Rank a split's rows, shared among the run's processes, on the model's device."""
    rows = dataset.rows(split, config.max_length)
    rank, world_size = share_of(len(rows))
    if world_size == 1 and not _is_first() and model.items.part is None:  # nobody to share with: the first does it
        return Ranking(*(torch.empty(0) for _ in range(3)))
    own = len(range(rank, len(rows), world_size))
    with ranking_progress(f"Ranking {split}", own, shown=config.progress and _is_first()) as advance:
        return rank_together(
            model, rows, config.eval_batch_size, exclude_seen=config.exclude_seen, rank_with=config.rank_with,
            on_batch=advance,
        )  # fmt: skip


@dataclass(frozen=True)
class _Selection:
    """The outcome of training with validation: the model with its best weights, and how it was found."""

    model: RecommenderModel
    best_epoch: int  # from 0
    epochs: int
    best_value: float  # of MONITOR, after that epoch
    train_seconds: float  # the median of the epochs


def _untrained(run: OpenedRun, *, whole: bool = False) -> RecommenderModel:
    """The model before its first step: with drawn weights, with a parent's, or with those of the first phase.

    With `whole` it has all rows of the item table, though the run's processes share them.
    """
    config = replace(run.config, shard_items=False) if whole else run.config
    part = (process_number(), config.processes) if config.shard_items else None
    model = build_model(config, run.item_data, part=part)
    if isinstance(run.origin, Start):
        run.origin.set_weights(model)
    elif run.origin is not None:
        first = run.origin.load(run.item_data)
        assert isinstance(model, PostTrainedLARES)
        assert isinstance(first, LARESRecommender)
        model.start_from(first)
    return model


def _select(run: OpenedRun, handed: Handed) -> _Selection:
    """Train with early stopping on the validation rows."""
    config, folder = run.config, run.folder
    validation = Validation(
        run.dataset.rows("valid", config.max_length), config.eval_batch_size, config.ks, config.exclude_seen,
        config.rank_with,
    )  # fmt: skip
    best = BestWeights(folder.best_so_far)
    stopping = EarlyStopping(MONITOR, mode="max", patience=config.patience, check_on_train_epoch_end=True)
    # What was handed in sees an epoch's metrics, and is kept in its resume point.
    callbacks = [validation, stopping, *handed.callbacks, best, ResumePoint(folder.resume_point)]
    if _over(folder.resume_point, config.epochs, stopping):
        # Lightning does not keep that a run has stopped: it would train one epoch more.
        model = _untrained(run, whole=True)  # for there may be no other process
        state = read_checkpoint(folder.resume_point)
        for callback in (validation, best):
            callback.load_state_dict(_state_of(callback, state, folder.resume_point))
        for other in handed.callbacks:
            if other.state_key in state["callbacks"]:
                other.load_state_dict(state["callbacks"][other.state_key])
        epochs = state["epoch"] + 1
    else:
        model = _untrained(run)
        trainer = _trainer(run, folder.logs, config.epochs, callbacks, handed.loggers)
        handed.log_options(config)
        _fit(trainer, model, run, run.dataset, folder.resume_point)
        epochs = trainer.current_epoch
    try:
        load_own_weights(model.cpu(), folder.best_so_far)
        if best.best_hash not in (None, sha256_of(folder.best_so_far)):
            raise RunError(f"{folder.best_so_far}: not as the run wrote it: its SHA-256 is another")
    except RunError as error:
        raise RunError(f"{error}; delete {folder.resume_point.parent} to train from the start") from error
    return _Selection(model, best.best_epoch, epochs, best.best_value, statistics.median(validation.train_seconds))


def _refit(run: OpenedRun, epochs: int) -> RecommenderModel:
    """Retrain on training and validation rows, for as many epochs as were best without the latter."""
    model = _untrained(run)
    point = run.folder.refit_point
    trainer = _trainer(run, run.folder.logs / "refit", epochs, [ResumePoint(point)])
    _fit(trainer, model, run, run.dataset.with_validation_in_training(), point)
    set_average(trainer.optimizers[0])
    return model.cpu()


def _trainer(
    run: OpenedRun, logs: Path, epochs: int, callbacks: list[Callback], loggers: Iterable[Logger] = ()
) -> lightning.Trainer:
    config = run.config
    precision: Any = {"32": "32-true", "bf16": "bf16-mixed"}[config.precision]
    shown = any(isinstance(each, ProgressBar) for each in callbacks)  # the caller's own progress bar
    bars = draws_bars()
    together = [SameRun(Path(config.out), config, run.dataset.content_hash)] if config.nodes > 1 else []
    own: list[Callback] = [TQDMProgressBar() if bars else EpochLines()] if config.progress and not shown else []
    return lightning.Trainer(
        accelerator=accelerator(config),
        devices=config.devices,
        num_nodes=config.nodes,
        max_epochs=epochs,
        accumulate_grad_batches=config.accumulate_batches,
        precision=precision,
        gradient_clip_val=config.clip or None,
        callbacks=[FiguresTogether(), *callbacks, *own, ReturnFreedMemory(), OwnSignals(), *together],
        plugins=[AtomicCheckpointIO(), cluster_environment()],
        default_root_dir=logs,  # else checkpoints that Slurm's jobs left in the working folder would be taken
        logger=[CSVLogger(logs, name="csv"), TensorBoardLogger(logs, name="tensorboard"), *loggers],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=(config.progress and bars) or shown,
        use_distributed_sampler=False,
    )


def _fit(
    trainer: lightning.Trainer, model: RecommenderModel, run: OpenedRun, dataset: SequenceDataset, resume_point: Path
) -> None:
    """Train on a data set's training rows, from the resume point if there is one."""
    start = run.origin if isinstance(run.origin, Start) else None
    sample_items(model, run.config, dataset)
    module = TrainingModule(model, training_rows(dataset, run.config), run.config, start, resume_point)
    keep_children(trainer)
    trainer.fit(module, ckpt_path=resume_point if resume_point.exists() else None)


def _over(resume_point: Path, epochs: int, stopping: EarlyStopping) -> bool:
    """Whether the run whose resume point this is had come to its end."""
    if not resume_point.exists():
        return False
    state = read_checkpoint(resume_point)
    stopped = _state_of(stopping, state, resume_point)["wait_count"] >= stopping.patience
    by_another = state["callbacks"].get(ResumePoint.__name__, {}).get("stopped", False)  # an earlier plr did not say
    return stopped or by_another or state["epoch"] + 1 >= epochs


def _state_of(callback: Callback, state: dict[str, Any], resume_point: Path) -> dict[str, Any]:
    """Return what a checkpoint holds of a callback.

    Raises:
        RunError: nothing, for another version of plr or of Lightning wrote it.
    """
    try:
        return state["callbacks"][callback.state_key]
    except KeyError as error:
        raise RunError(
            f"{resume_point}: holds nothing of {type(callback).__name__}, for another version of plr or of Lightning "
            "wrote it; resume with that version, or delete it to train from the start"
        ) from error


def _finish(
    run: OpenedRun, selection: _Selection, refitted: RecommenderModel | None, rankings: dict[str, Ranking]
) -> dict[str, Any]:
    """Complete the folder, whose weights are written, with the ranks of both held-out splits, metrics.json last."""
    config, dataset, folder = run.config, run.dataset, run.folder
    result: dict[str, Any] = {
        "epochs": selection.epochs,
        "best_epoch": selection.best_epoch + 1,
        "refit": config.refit,
        "parameters": number_of_parameters(refitted or selection.model),
        "train_seconds_per_epoch": selection.train_seconds,
    }
    for split, ranking in rankings.items():
        save_ranking(folder.ranks(split), ranking, dataset.user_ids, dataset.item_ids)
        result[split] = {**metrics(ranking.ranks, config.ks), "rows": len(ranking)}
    result["data"] = {"split": dataset.split, **dataset.report}
    result["items"] = run.item_data.report()
    if isinstance(run.origin, Start):
        result["from"] = {**run.origin.parent, "items": run.origin.counts}
    result["files"] = folder.hashes()
    write_metrics(folder.metrics, result)
    return result
