"""Train, validate, test and save one run; resume it where it was interrupted."""

from __future__ import annotations

import contextlib
import logging
import statistics
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.distributed as distributed
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from plr.config import Config
from plr.data import SequenceDataset
from plr.errors import RunError
from plr.evaluation import Ranking, metrics, ranking_progress, save_ranking, write_metrics
from plr.files import remove_leftovers, sha256_of
from plr.inputs import load_dataset, load_item_data
from plr.items import ItemData
from plr.lock import locked
from plr.models import RecommenderModel, build_model
from plr.models.methods.lares import LARESRecommender
from plr.models.methods.lares_post_training import PostTrainedLARES
from plr.models.registry import options_of_other_methods
from plr.runs import RunFolder
from plr.signals import terminable
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
from plr.training.initial import InitialRun
from plr.training.machines import SameRun
from plr.training.memory import ReturnFreedMemory
from plr.training.module import TrainingModule, batch_order, sample_items, training_rows
from plr.training.parent import Parent
from plr.training.processes import accelerator, check_processes, cluster_environment, is_leader, process_number
from plr.training.provenance import BATCH, provenance
from plr.training.schedule import check_warmup, steps_of
from plr.training.shared_ranking import gather_rows, rank_together, share_of
from plr.training.shared_rows import load_own_weights, number_of_parameters
from plr.training.start import Start
from plr.training.torch_state import own_torch_state
from plr.training.watch import keep_children, watched
from plr.training.without_effect import warn_of_parts_without_effect

Origin = InitialRun | Start | None
"""Where the weights come from: the first phase, a run on earlier data, or, None, the seed."""


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
    with _begun(config, dataset) as (run, device):
        return _run(*run, device, handed)


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
    with _begun(config, dataset) as (run, _), _quiet():
        return _select(*run, handed).best_value


_Opened = tuple[RunFolder, Config, SequenceDataset, ItemData, Origin]


@contextlib.contextmanager
def _begun(config: Config, dataset: SequenceDataset | None) -> Iterator[tuple[_Opened, torch.device]]:
    """Check what was asked for, read the data, and hold the run's folder, begun or resumed; yields the device too."""
    if not config.out:
        raise RunError("--out is missing: name the folder for the run")
    with terminable(), own_torch_state(config.threads):
        check_processes(config)
        device = _device(config)
        if dataset is None:
            dataset = load_dataset(config)
        check_rows(config, dataset)
        if is_leader():
            warn_of_parts_without_effect(config, dataset.num_items)
        folder = RunFolder(Path(config.out))
        item_data = load_item_data(config, dataset.item_ids, folder.item_data)
        origin = _origin(folder, config, dataset, item_data)
        with _alone(folder):
            _open_folder(folder, config, dataset, item_data, origin)
            if config.shard_items and config.from_run and is_leader():
                origin = _origin(folder, config, dataset, item_data)  # it is in the folder now, to be read in parts
            with watched(config.processes):
                yield (folder, config, dataset, item_data, origin), device


def _origin(folder: RunFolder, config: Config, dataset: SequenceDataset, item_data: ItemData) -> Origin:
    """Return where the run's weights come from; an unfinished run has kept what it began with."""
    if config.from_run is None:
        return InitialRun.of(config, dataset, item_data)
    parent = _recorded_parent(folder)
    if parent is not None and folder.start_point.exists():
        try:
            return Start.load(folder.start_point, parent["start"], held=not config.shard_items)
        except RunError as error:
            raise RunError(f"{error}; delete {folder.path} to begin again from --from {config.from_run}") from error
    start = Parent.of(config).start(config, dataset, item_data)
    if parent is not None and parent["digest"] != start.parent["digest"]:
        raise RunError(
            f"{folder.path}: holds an unfinished run that began at other weights than {config.from_run} has"
        )
    return start


def _recorded_parent(folder: RunFolder) -> dict[str, Any] | None:
    """Return what the folder's run says of its parent; None where there is no unfinished run with one."""
    if folder.finished() or not folder.config.exists():
        return None
    return (Config.load(folder.config).provenance or {}).get("parent")


def _run(
    folder: RunFolder,
    config: Config,
    dataset: SequenceDataset,
    item_data: ItemData,
    origin: Origin,
    device: torch.device,
    handed: Handed,
) -> dict[str, Any]:
    """Train, and refit where that is wanted; then measure and complete the folder."""
    with _quiet():
        selection = _select(folder, config, dataset, item_data, origin, handed)
        refitted = None
        if config.refit:
            refitted = _refit(folder, config, dataset, item_data, origin, selection.best_epoch + 1)
    rankings = {
        split: _ranking(model.to(device), split, config, dataset)
        for split, model in (("valid", selection.model), ("test", refitted or selection.model))
    }
    tested = refitted or selection.model
    if _is_first() or tested.items.part is not None:
        save_weights(tested, folder.weights)
    result = {}
    if _is_first():
        result = _finish(folder, config, dataset, item_data, selection, refitted, rankings, origin)
        folder.start_point.unlink(missing_ok=True)  # of no use any more, and three times as large as the weights
    if config.processes > 1 and distributed.is_initialized():
        gather_rows(torch.zeros(1))  # what a program does next in another process may need the finished run
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


@contextlib.contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Keep other processes from the folder; those of the same run but the first belong to that."""
    if not is_leader():
        yield
        return
    _refuse_finished(folder)  # first, for a finished run may lie where nobody may write
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"--out {folder.path}: cannot create the folder: a file of that name exists") from error
    with locked(folder.path):
        yield


def _device(config: Config) -> torch.device:
    """Return this process's device; refuse devices that are not there before anything is written."""
    try:
        with _quiet():
            trainer = lightning.Trainer(
                accelerator=accelerator(config), devices=config.devices, num_nodes=config.nodes, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                plugins=[cluster_environment()],
            )  # fmt: skip
            device = trainer.strategy.root_device
    except MisconfigurationException as error:
        asked = f"--accelerator {config.accelerator} --devices {config.devices}"
        raise RunError(f"{asked} is not available: {' '.join(str(error).split())}") from error
    if config.precision == "bf16" and device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            name = torch.cuda.get_device_name(device)
            raise RunError(
                f"--precision bf16 needs a GPU of compute capability 8.0 or more; {name} has {major}.{minor}: leave "
                "--precision out, which is 32"
            )
    averaged = config.processes > 1 and not config.shard_items  # gradients of the table
    if averaged and device.type == "cuda" and config.loss != "softmax" and config.sparse_adam:
        raise RunError(
            f"sparse_adam must be false with {config.processes} processes on GPUs: NCCL adds no sparse gradients up"
        )
    return device


def check_rows(config: Config, dataset: SequenceDataset) -> None:
    """Refuse data too small to choose an epoch, to measure or to end a warm-up, before anything is written.

    Raises:
        RunError: they are too few.
    """
    needed = {"valid": config.processes, "test": 1}
    found = {split: len(dataset.target_positions(split)) for split in needed}
    if config.processes > 1:  # every process takes a share of these
        needed["train"] = config.processes
        found["train"] = len(training_rows(dataset, config))
        if config.shard_items and dataset.num_items < config.processes:
            raise RunError(
                f"{config.data}: has {dataset.num_items} items; with --shard_items true each of the {config.processes} "
                "devices has at least one"
            )
    for split, least in needed.items():
        if found[split] < least:
            required = f"{least} are required for {config.processes} devices" if least > 1 else "1 is required"
            raise RunError(
                f"{config.data}: the {dataset.split} split leaves {found[split]} rows for {split}; "
                f"at least {required}"
            )
    if config.warmup_steps:
        order = batch_order(training_rows(dataset, config), config)
        check_warmup(config, steps_of(config, len(order)))


@dataclass(frozen=True)
class _Selection:
    """The outcome of training with validation: the model with its best weights, and how it was found."""

    model: RecommenderModel
    best_epoch: int  # from 0
    epochs: int
    best_value: float  # of MONITOR, after that epoch
    train_seconds: float  # the median of the epochs


def _untrained(config: Config, item_data: ItemData, origin: Origin) -> RecommenderModel:
    """The model before its first step: with drawn weights, with a parent's, or with those of the first phase."""
    part = (process_number(), config.processes) if config.shard_items else None
    model = build_model(config, item_data, part=part)
    if isinstance(origin, Start):
        origin.set_weights(model)
    elif origin is not None:
        first = origin.load(item_data)
        assert isinstance(model, PostTrainedLARES)
        assert isinstance(first, LARESRecommender)
        model.start_from(first)
    return model


def _select(
    folder: RunFolder,
    config: Config,
    dataset: SequenceDataset,
    item_data: ItemData,
    origin: Origin,
    handed: Handed,
) -> _Selection:
    """Train with early stopping on the validation rows."""
    validation = Validation(
        dataset.rows("valid", config.max_length), config.eval_batch_size, config.ks, config.exclude_seen,
        config.rank_with,
    )  # fmt: skip
    best = BestWeights(folder.best_so_far)
    stopping = EarlyStopping(MONITOR, mode="max", patience=config.patience, check_on_train_epoch_end=True)
    # What was handed in sees an epoch's metrics, and is kept in its resume point.
    callbacks = [validation, stopping, *handed.callbacks, best, ResumePoint(folder.resume_point)]
    if _over(folder.resume_point, config.epochs, stopping):
        # Lightning does not keep that a run has stopped: it would train one epoch more.
        # The item table is whole, for there may be no other process.
        model = _untrained(replace(config, shard_items=False), item_data, origin)
        state = read_checkpoint(folder.resume_point)
        for callback in (validation, best):
            callback.load_state_dict(_state_of(callback, state, folder.resume_point))
        for other in handed.callbacks:
            if other.state_key in state["callbacks"]:
                other.load_state_dict(state["callbacks"][other.state_key])
        epochs = state["epoch"] + 1
    else:
        model = _untrained(config, item_data, origin)
        trainer = _trainer(folder.logs, config, dataset.content_hash, config.epochs, callbacks, handed.loggers)
        handed.log_options(config)
        _fit(trainer, model, config, dataset, folder.resume_point, origin)
        epochs = trainer.current_epoch
    try:
        load_own_weights(model.cpu(), folder.best_so_far)
        if best.best_hash not in (None, sha256_of(folder.best_so_far)):
            raise RunError(f"{folder.best_so_far}: not as the run wrote it: its SHA-256 is another")
    except RunError as error:
        raise RunError(f"{error}; delete {folder.resume_point.parent} to train from the start") from error
    return _Selection(model, best.best_epoch, epochs, best.best_value, statistics.median(validation.train_seconds))


def _refit(
    folder: RunFolder,
    config: Config,
    dataset: SequenceDataset,
    item_data: ItemData,
    origin: Origin,
    epochs: int,
) -> RecommenderModel:
    """Retrain on training and validation rows, for as many epochs as were best without the latter."""
    model = _untrained(config, item_data, origin)
    trainer = _trainer(folder.logs / "refit", config, dataset.content_hash, epochs, [ResumePoint(folder.refit_point)])
    _fit(trainer, model, config, dataset.with_validation_in_training(), folder.refit_point, origin)
    return model.cpu()


def _trainer(
    logs: Path,
    config: Config,
    content_hash: str,
    epochs: int,
    callbacks: list[Callback],
    loggers: Iterable[Logger] = (),
) -> lightning.Trainer:
    precision: Any = {"32": "32-true", "bf16": "bf16-mixed"}[config.precision]
    shown = any(isinstance(each, ProgressBar) for each in callbacks)  # the caller's own progress bar
    bars = draws_bars()
    together = [SameRun(Path(config.out), config, content_hash)] if config.nodes > 1 else []
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
    trainer: lightning.Trainer,
    model: RecommenderModel,
    config: Config,
    dataset: SequenceDataset,
    resume_point: Path,
    origin: Origin,
) -> None:
    """Train on the data set's training rows, from the resume point if there is one."""
    start = origin if isinstance(origin, Start) else None
    sample_items(model, config, dataset)
    module = TrainingModule(model, training_rows(dataset, config), config, start, resume_point)
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
    folder: RunFolder,
    config: Config,
    dataset: SequenceDataset,
    item_data: ItemData,
    selection: _Selection,
    refitted: RecommenderModel | None,
    rankings: dict[str, Ranking],
    origin: Origin,
) -> dict[str, Any]:
    """Complete the folder, whose weights are written, with the ranks of both held-out splits, metrics.json last."""
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
    result["items"] = item_data.report()
    if isinstance(origin, Start):
        result["from"] = {**origin.parent, "items": origin.counts}
    result["files"] = folder.hashes()
    write_metrics(folder.metrics, result)
    return result


def _open_folder(
    folder: RunFolder, config: Config, dataset: SequenceDataset, item_data: ItemData, origin: Origin
) -> None:
    """Start a run folder or accept the unfinished run of the same configuration in it."""
    init_hash = origin.weights_hash if isinstance(origin, InitialRun) else None
    leader = is_leader()
    if folder.config.exists():
        earlier = Config.load(folder.config)
        _refuse_finished(folder)
        before, now = earlier.decisive(), config.decisive()
        ignored = options_of_other_methods(config) if earlier.system is config.system else set()
        compared = [name for name in now if name not in ignored]
        changed = [f"{name}: {before[name]!r} -> {now[name]!r}" for name in compared if before[name] != now[name]]
        if changed:
            raise RunError(
                f"{folder.path}: holds an unfinished run of another configuration ({'; '.join(changed)}); give "
                f"--config {folder.config}, or repeat its own command, to resume it; or choose another --out, or "
                "delete the folder"
            )
        if earlier.devices > 1 and not BATCH.items() <= (earlier.provenance or {}).items():
            raise RunError(
                f"{folder.path}: holds an unfinished run of an earlier version of plr on {earlier.devices} devices, "
                "each of which had batches of batch_size rows; now all together have. Choose another --out, or delete "
                "the folder"
            )
        if (earlier.provenance or {}).get("data_hash") != dataset.content_hash:
            raise RunError(f"{folder.path}: holds an unfinished run on other data; {config.data} has changed since")
        if folder.items.exists() and folder.read_item_ids() != dataset.item_ids.to_list():
            raise RunError(
                f"{folder.path}: holds an unfinished run on other items: those of {config.data} are read otherwise "
                "than when it began (white space around ids is left out now); choose another --out or delete the folder"
            )
        if (earlier.provenance or {}).get("item_data_hash") != item_data.content_hash:
            raise RunError(
                f"{folder.path}: holds an unfinished run with other item features or text vectors; "
                f"{config.features or config.text_vectors} has changed since"
            )
        if (earlier.provenance or {}).get("init_hash") != init_hash:
            raise RunError(f"{folder.path}: holds an unfinished run that began at other weights than {config.init} has")
        if leader:
            _repair(folder, config, dataset, item_data, origin)
        return
    left = [path for path in (folder.metrics, folder.resume_point, folder.refit_point) if path.exists()]
    if left:
        raise RunError(
            f"{folder.path}: holds {left[0].relative_to(folder.path)} of a run whose config.yaml is missing; choose "
            "another --out or delete the folder"
        )
    if not leader:
        return
    folder.resume_point.parent.mkdir(exist_ok=True)
    folder.save_item_ids(dataset.item_ids)
    folder.save_popularity(dataset.training_popularity(config.refit))
    folder.save_item_data(item_data)
    parent = None
    if isinstance(origin, Start):
        origin.save(folder.start_point)
        parent = {**origin.parent, "start": sha256_of(folder.start_point)}
        warnings.warn(origin.note(config.new_items), stacklevel=2)
    recorded = provenance(dataset.content_hash, item_data.content_hash, init_hash, parent)
    Config(**{**asdict(config), "provenance": recorded}).save(folder.config)


def _refuse_finished(folder: RunFolder) -> None:
    if folder.config.exists() and folder.finished():
        raise RunError(f"{folder.path}: holds a finished run; choose another --out or delete the folder")


def _repair(folder: RunFolder, config: Config, dataset: SequenceDataset, item_data: ItemData, origin: Origin) -> None:
    """Write what the folder of an unfinished run has lost, and remove what a killed process left half-written."""
    for place in (folder.path, folder.resume_point.parent):
        place.mkdir(exist_ok=True)
        remove_leftovers(place)
    if not folder.items.exists():
        folder.save_item_ids(dataset.item_ids)
    if not folder.popularity.exists():
        folder.save_popularity(dataset.training_popularity(config.refit))
    if not folder.item_data.exists():
        folder.save_item_data(item_data)
    if isinstance(origin, Start) and not folder.start_point.exists():
        origin.save(folder.start_point)  # the same bytes: the parent's digest is


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
