"""What a run is before its first step: checked, its data read, its folder held, begun or resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plr.config import Config
from plr.data import SequenceDataset
from plr.errors import RunError
from plr.inputs import load_dataset, load_item_data
from plr.items import ItemData
from plr.runs import RunFolder
from plr.signals import terminable
from plr.training.device import device_of
from plr.training.initial import InitialRun
from plr.training.module import batch_order, training_rows
from plr.training.parent import Parent
from plr.training.processes import check_processes, is_leader
from plr.training.run_folder import Origin, held_alone, open_folder
from plr.training.schedule import check_warmup, steps_of
from plr.training.start import Start
from plr.training.torch_state import own_torch_state
from plr.training.watch import watched
from plr.training.without_effect import warn_of_parts_without_effect

__all__ = ["OpenedRun", "check_rows", "opened"]


@dataclass(frozen=True)
class OpenedRun:
    """A run that may take its first step.

    Attributes:
        folder: which this process, or the first of its run, holds alone.
        config: what was asked for.
        dataset: the data.
        item_data: what is known about the items.
        origin: where the weights come from.
        device: this process's, where the rows are ranked at the end.
    """

    folder: RunFolder
    config: Config
    dataset: SequenceDataset
    item_data: ItemData
    origin: Origin
    device: torch.device


@contextlib.contextmanager
def opened(config: Config, dataset: SequenceDataset | None) -> Iterator[OpenedRun]:
    """Check what was asked for, read the data, and hold the run's folder, begun or resumed."""
    if not config.out:
        raise RunError("--out is missing: name the folder for the run")
    with terminable(), own_torch_state(config.threads):
        check_processes(config)
        device = device_of(config)
        if dataset is None:
            dataset = load_dataset(config)
        check_rows(config, dataset)
        if is_leader():
            warn_of_parts_without_effect(config, dataset.num_items)
        folder = RunFolder(Path(config.out))
        item_data = load_item_data(config, dataset.item_ids, folder.item_data)
        origin = _origin(folder, config, dataset, item_data)
        with held_alone(folder):
            open_folder(folder, config, dataset, item_data, origin)
            if config.shard_items and config.from_run and is_leader():
                origin = _origin(folder, config, dataset, item_data)  # it is in the folder now, to be read in parts
            with watched(config.processes):
                yield OpenedRun(folder, config, dataset, item_data, origin, device)


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
