"""The folder of a run that begins or goes on: whose it is, and what it has before the first step."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import asdict

from plr.config import Config
from plr.data import SequenceDataset
from plr.errors import RunError
from plr.files import remove_leftovers, sha256_of
from plr.items import ItemData
from plr.lock import locked
from plr.models.registry import options_of_other_methods
from plr.runs import RunFolder
from plr.training.initial import InitialRun
from plr.training.processes import is_leader
from plr.training.provenance import BATCH, provenance
from plr.training.start import Start

__all__ = ["Origin", "held_alone", "open_folder"]

Origin = InitialRun | Start | None
"""Where the weights come from: the first phase, a run on earlier data, or, None, the seed."""


@contextlib.contextmanager
def held_alone(folder: RunFolder) -> Iterator[None]:
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


def open_folder(
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


def _refuse_finished(folder: RunFolder) -> None:
    if folder.config.exists() and folder.finished():
        raise RunError(f"{folder.path}: holds a finished run; choose another --out or delete the folder")
