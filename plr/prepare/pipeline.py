"""Preparation: read, filter, order and split; write_folder: files -> a prepared folder."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from plr.errors import DataError, shortened
from plr.prepare.filters import duplicates, k_core, min_interactions
from plr.prepare.folder import (
    FORMAT_VERSION,
    Prepared,
    has_blank_around_ids,
    is_of_something_else,
    is_prepared,
    read_manifest,
    save_prepared,
)
from plr.prepare.id_checks import described, without_missing, words_for_missing
from plr.prepare.interactions import Interactions
from plr.prepare.metadata import item_features, known_items
from plr.prepare.options import PrepareOptions
from plr.prepare.parts import Parts
from plr.prepare.readers import find_interactions
from plr.prepare.readers.kinds import refuse_odd_name
from plr.prepare.sequences import Sequences, split_all
from plr.prepare.sources import Place, SourceFiles
from plr.prepare.split import Rule, default_cuts, held_out_users, leave_out, time_split
from plr.prepare.timestamps import firsts_of_units, outside_of, unit_of

__all__ = ["MOST_PARTITIONS", "Preparation", "warn_about", "write_folder"]

MOST_PARTITIONS = 512
"""Each is an open file for a while, and a process may mostly open 1,024."""


def write_folder(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    options: PrepareOptions,
    *,
    items: str | os.PathLike[str] | None = None,
    skip_bad_lines: bool = False,
    protocol: str | None = None,
    periods: Sequence[tuple[float, float]] | None = None,
    partitions: int = 0,
) -> dict[str, Any]:
    """Prepare files of interactions, taken as one, and write the result as a folder, without PyTorch.

    Args:
        sources: The files (or one folder, of Hugging Face), all of one format.
        out: The folder to write. One that already holds the same is left as it is.
        options: The filters and the split.
        items: A file of item metadata; it makes the columns title, categories, store and text of items.parquet.
        skip_bad_lines: Leave out lines that cannot be used, and list them in the report, instead of raising.
        protocol: The name of the published protocol that the options follow, for the report.
        periods: For files that are the parts of a split by time: from when (inclusive) to when (exclusive) the
            interactions of each must be.
        partitions: Into how many parts of consecutive users the interactions are put on disk, beside ``out``, so that
            one of them at a time is in memory; with 0 all are. What is written is the same.

    Returns:
        The folder's report; where it was written now also ``columns``, the names of those that were read.

    Raises:
        DataError: as ``plr.data.prepare``; when ``out`` is another folder; for an interaction outside its file's
            period; when the disk is full.
        ValueError: for a number of partitions that is not in 0..512.

    Warns:
        UserWarning: as ``plr.data.prepare``.
    """
    if not 0 <= partitions <= MOST_PARTITIONS:
        raise ValueError(f"partitions must be in 0..{MOST_PARTITIONS} (0: all in memory); found {partitions}")
    if isinstance(sources, (str, os.PathLike)):
        raise TypeError(f"sources must be a list of files; found {str(sources)!r}")
    paths, out = [find_interactions(Path(source)) for source in sources], Path(out)
    metadata = None if items is None else Path(items)
    job = Preparation(SourceFiles(paths, options, metadata, skip_bad_lines, periods), options, protocol)
    report = _already_there(out, job)
    if report is None:
        damaged = is_prepared(out)
        prepared = job.build(partitions, _nearest(out))
        warn_about(prepared.report, paths[0])
        report = prepared.report
        try:
            save_prepared(prepared, out, job.features, replace=damaged)
        except FileExistsError:  # another process was faster
            report = _already_there(out, job) or report
        report = {**report, "columns": job.sources.columns}
    return report


def _already_there(out: Path, job: Preparation) -> dict[str, Any] | None:
    """Return the report of ``out`` where it holds what the job makes, None where it can be written."""
    refuse_odd_name(out)
    if out.is_symlink() and not out.exists():
        raise DataError("a link that leads nowhere; delete it, or choose another --out", out)
    if out.exists() and not out.is_dir():
        raise DataError("a file, where a folder is to be written; choose another --out", out)
    if not out.exists():
        parent = _nearest(out)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise DataError("the folder cannot be written to; choose another --out", parent)
        return None
    if not is_prepared(out) or is_of_something_else(out):
        if any(out.iterdir()):
            raise DataError("the folder is not empty and is not a prepared data set; choose another --out", out)
        return None
    try:
        there = read_manifest(out, verify=True)
    except DataError:
        return None  # of another version or damaged: rewritten
    if there["content_hash"] != job.content_hash():
        raise DataError("holds a data set of other files or options; choose another --out or delete it", out)
    job.sources.check_records()
    return None if has_blank_around_ids(out) else there["report"]


def _nearest(out: Path) -> Path:
    """Return the folder that ``out`` will stand in, or the nearest above it that is there."""
    return next(parent for parent in out.absolute().parents if parent.exists())


class Preparation:
    """One preparation: what goes in, and the steps."""

    def __init__(
        self, sources: SourceFiles, options: PrepareOptions, protocol: str | None = None, *, keeps_times: bool = False
    ) -> None:
        self.sources = sources
        self.options = options
        self.protocol = protocol
        self.features: pl.DataFrame | None = None
        self.times: np.ndarray | None = None  # int64 [N] of what was built, where they are kept
        self._keeps_times = keeps_times
        self._report: dict[str, Any] = {}

    def content_hash(self) -> str:
        """Return the SHA-256 (hex) of what decides the result: the sources' bytes and the options."""
        chosen = {**self.options.as_json(), "format": self.sources.format}
        decisive = [self.sources.hashes(), FORMAT_VERSION, chosen]
        if self.sources.skipped is not None:
            decisive.append("skip_bad_lines")
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def build(self, partitions: int = 0, disk: Path | None = None) -> Prepared:
        """Read, filter, order and split; ``features`` holds what is known about the items then.

        Args:
            partitions: Into how many parts on disk the interactions are put; with 0 all are in memory.
            disk: A folder on that disk.
        """
        try:
            return self._build(partitions, disk)
        except DataError as error:
            raise self.sources.first_cause(error) from error.__cause__

    def _build(self, partitions: int, disk: Path | None) -> Prepared:
        parts, place = self.sources.read_parts(partitions, disk)
        if not len(parts):
            raise DataError("the file holds no interaction", self.sources.paths[0])
        report = self._report
        report.update(
            format=self.sources.format,
            options=self.options.as_json(),
            protocol=self.protocol,
            read=_size(parts),
            filters=[],
        )
        self._filter(parts, place)
        report["order"] = "timestamp" if parts.has_times else "file"
        report["single_interaction_users"] = alone = _single_interaction_users(parts, place)
        if len(self.sources.paths) == 1:
            alone.pop("file", None)
        report["filtered"] = _size(parts)
        features, sources = None, self.sources
        if sources.items is not None:
            features, report["metadata"] = item_features(sources.items, parts.item_ids, sources.skipped)
        untitled = None if features is None else features["title"].is_null().to_numpy()
        vocabulary = parts.item_ids
        made = split_all(parts, self._rule(parts, untitled), disk)
        del parts
        if not made.rows["train"]:
            raise DataError(_nothing_left(made, report), self.sources.paths[0])
        self.times = made.timestamp if self._keeps_times else None
        sizes = {"users": len(made.user_ids), "items": len(made.item_ids), "interactions": len(made)}
        report |= made.report | sizes
        report["rows"] = made.rows
        if made.times is not None:
            report["times"] = made.times
        if features is not None:
            self.features = features.filter(vocabulary.is_in(made.item_ids.implode()))
            report["metadata"] |= known_items(self.features)
        report["sources"] = self.sources.describe()
        if (skipped := self.sources.skipped) is not None:
            report["skipped_lines"] = {"count": skipped.count, "first": skipped.lines}
        return Prepared(
            items=made.items,
            offsets=made.offsets,
            roles=made.roles,
            training_stop=made.training_stop,
            user_ids=made.user_ids.rename("user_id"),
            item_ids=made.item_ids.rename("item_id"),
            split=report["split"],
            report=report,
            content_hash=self.content_hash(),
        )

    def _filter(self, parts: Parts, place: Place) -> None:
        """Apply the filters."""
        options, report = self.options, self._report

        def drop(name: str, value: Any, keep: Callable[[], None]) -> None:
            old = _size(parts)
            keep()
            new = _size(parts)
            dropped = {key: old[key] - new[key] for key in old}
            report["filters"].append({"filter": name, "value": value, "dropped": dropped})

        words = words_for_missing(parts)
        if words and options.missing_ids == "keep":
            warnings.warn(f"{self.sources.paths[0]}: {described(words)}", stacklevel=3)
        if options.missing_ids == "drop":
            if words:
                drop("missing_ids", "drop", lambda: parts.keep(without_missing))
            report["without_id"] = self.sources.dropped_without_id
        if parts.has_times and len(parts):
            report["time_unit"] = _one_unit(parts, place)
        if options.duplicates == "drop":
            if not parts.has_times:
                raise DataError("duplicates='drop' needs timestamps, and the file has none", self.sources.paths[0])
            drop("duplicates", "drop", lambda: parts.keep(lambda part: ~duplicates(part)))
        if options.min_rating is not None:
            if not parts.has_ratings:
                raise DataError(
                    "min_rating needs a rating column, and the file has none (name it with rating_column)",
                    self.sources.paths[0],
                )
            if options.low_rated == "drop":
                drop("min_rating", options.min_rating, lambda: parts.keep(_taken_ratings))
                parts.forget_ratings()
        if (least := options.min_interactions) > 1:
            drop("min_interactions", least, lambda: parts.keep(lambda part: min_interactions(part, least)))
        if options.core > 1:
            drop("core", options.core, lambda: k_core(parts, options.core))
        if not len(parts):
            raise DataError(f"no interaction is left after the filters{_dropped(report)}", self.sources.paths[0])
        if parts.has_times:
            report["duplicates_kept"] = sum(int(duplicates(part).sum()) for part in parts)

    def _rule(self, parts: Parts, untitled: np.ndarray | None) -> Rule:
        """Return what splits a part, once the options are known to make sense."""
        options, path = self.options, self.sources.paths[0]
        if options.split == "leave-k-out":
            return lambda part: leave_out(part, options.leave_k, "leave-k-out")
        if options.split == "users":
            shares = (options.valid_users, options.test_users)
            return lambda part: held_out_users(part, *shares, options.split_seed, options.leave_k)
        if not parts.has_times:
            if options.needs_time_split:
                raise DataError(
                    "the time split needs a timestamp column, and the file has none (name it with timestamp_column)",
                    path,
                )
            return leave_out
        if options.split == "leave-one-out":
            return leave_out
        for name in ("train_time", "valid_time", "test_time"):
            given, unit = getattr(options, name), self._report["time_unit"]
            if given is not None and unit is not None and unit_of(given) not in (None, unit):
                earliest, latest = _span(parts)
                raise DataError(
                    f"{name} {given:g} looks like {unit_of(given)}, the file's timestamps look like {unit} "
                    f"({earliest} to {latest}); give it in {unit}",
                    path,
                )
        cuts = (0, 0) if None not in (options.valid_time, options.test_time) else default_cuts(parts)
        values = options.as_json()
        valid_time = cuts[0] if options.valid_time is None else values["valid_time"]
        test_time = cuts[1] if options.test_time is None else values["test_time"]
        if test_time < valid_time:
            usual = [name for name in ("valid_time", "test_time") if getattr(options, name) is None]
            default = f"; {usual[0]} is the default, give it too" if usual else ""
            raise DataError(f"test_time {test_time} is before valid_time {valid_time}{default}", path)
        train_time = values.get("train_time")
        if train_time is not None and train_time >= valid_time:
            raise DataError(f"train_time {train_time} is not before valid_time {valid_time}", path)
        if options.untitled == "drop-rows" and untitled is None:
            raise DataError("untitled='drop-rows' needs item metadata: name the file with --items", path)
        return lambda part: time_split(
            part,
            valid_time,
            test_time,
            train_time=train_time,
            positive=part.positive,
            min_history=options.min_history,
            unseen=options.unseen,
            untitled=untitled if options.untitled == "drop-rows" else None,
        )


def _taken_ratings(part: Interactions) -> np.ndarray:
    """Return which interactions are rated high enough; the part gives that up, for it is true of all that are kept."""
    chosen, part.positive = part.positive, None
    assert chosen is not None
    return chosen


def _nothing_left(made: Sequences, report: dict[str, Any]) -> str:
    """Say why there is no training row, and what to do."""
    reasons = made.report["dropped_rows"].get("train", {})
    counts = {name.replace("_", " "): count for name, count in reasons.items() if count and name != "share"}
    gone = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    why = f"all targets were dropped ({gone})" if gone else "none of whom has two in training"
    text = (
        f"no training row is left: {len(made)} interactions of {len(made.offsets) - 1} users, {why}"
        f"{_dropped(report)}"
    )
    if made.report["split"] == "users":
        return f"{text}. {sum(made.report['held_out_users'].values())} users are held out: give smaller shares"
    if made.report["split"] == "leave-k-out":
        return f"{text}. Leave-k-out needs users with at least 2k + 2 interactions, or with two and fewer than 2k + 1"
    if "valid_time" not in made.report:
        return f"{text}. Leave-one-out needs users with at least four interactions"
    if reasons.get("short_history"):
        return f"{text}. Give a smaller --min_history"
    if "train_time" in made.report:
        text += f"; training targets begin at train_time {made.report['train_time']}"
    if made.report["valid_time"] == made.report["test_time"]:
        text += "; validation and test begin at one time, as they do where most timestamps are equal"
    return (
        f"{text}. Training ends at valid_time {made.report['valid_time']}: give a later --valid_time and --test_time, "
        "or --split leave-one-out"
    )


def _dropped(report: dict[str, Any]) -> str:
    """Say what each filter dropped."""
    dropped = (f"{each['filter']} {each['dropped']['interactions']:,}" for each in report["filters"])
    listed = ", ".join(dropped)
    return f" (interactions dropped by {listed})" if listed else ""


def _size(parts: Parts) -> dict[str, int]:
    return {"users": len(parts.user_ids), "items": len(parts.item_ids), "interactions": len(parts)}


def _span(parts: Parts) -> tuple[int, int]:
    """Return the earliest and the latest timestamp."""
    ends = [(part.timestamp.min(), part.timestamp.max()) for part in parts if part.timestamp is not None and len(part)]
    return int(min(first for first, _ in ends)), int(max(last for _, last in ends))


def _one_unit(parts: Parts, place: Place) -> str | None:
    """Return the unit of the timestamps, None for one that is not recognised; refuse a mixture."""
    earliest, latest = _span(parts)
    if unit_of(earliest) == unit_of(latest) is not None:
        return unit_of(latest)
    firsts: dict[str, tuple[int, int]] = {}
    for part in parts:
        assert part.timestamp is not None
        for unit, first in firsts_of_units(part.timestamp, part.position).items():
            firsts[unit] = min(first, firsts.get(unit, first))
    if len(firsts) > 1:
        (one_at, one), (other_at, other) = sorted(firsts.values())[:2]
        (former_path, former), (path, line) = place(one_at), place(other_at)
        where = f"line {former}" if former_path == path else f"{former_path}:{former}"
        raise DataError(
            f"timestamp {other} looks like {unit_of(other)}, but {one} on {where} like {unit_of(one)}; "
            "bring them to one unit",
            path,
            line,
        )
    if not firsts:
        return None
    (unit,) = firsts
    # Else rather a counter, some of whose numbers look like times.
    return unit if _warn_of_odd_times(parts, place, unit) else unit_of(latest)


def _warn_of_odd_times(parts: Parts, place: Place, unit: str) -> bool:
    """Warn of the few times that are not of 1980 to 2100 where most are: zeros for missing ones, cut off numbers.

    Returns whether most are.
    """
    counts = []
    for part in parts:
        assert part.timestamp is not None
        counts.append(outside_of(unit, part.timestamp, part.position))
    odd = sum(count for count, _ in counts)
    if 2 * odd > len(parts):
        return False
    position, time = min(first for _, first in counts if first is not None)
    path, line = place(position)
    warnings.warn(
        f"{path}:{line}: timestamp {time} is not between 1980 and 2100 in {unit}, as most are; such interactions "
        f"({odd:,}) come first or last in their histories and in the split. Correct the times, or leave the lines out",
        stacklevel=5,
    )
    return True


def _single_interaction_users(parts: Parts, place: Place) -> dict:
    count, firsts = 0, []  # of each part: position and user of the first in the file
    for part in parts:
        alone = np.flatnonzero(np.diff(part.offsets) == 1)
        count += len(alone)
        if len(alone):
            positions = part.position[part.offsets[alone]]
            first = int(np.argmin(positions))
            firsts.append((int(positions[first]), part.user_ids[int(alone[first])]))
    if not count:
        return {"count": 0}
    position, user = min(firsts)
    path, line = place(position)
    return {"count": count, "user": user, "line": line, "file": path.name}


def warn_about(report: dict, path: Path) -> None:
    """Warn about users who make no row and splits without one."""
    alone = report["single_interaction_users"]
    if alone["count"]:
        warnings.warn(
            f"{path.with_name(alone.get('file', path.name))}:{alone['line']}: user {shortened(alone['user'])} has a "
            f"single interaction and so makes no row ({alone['count']} such users)",
            stacklevel=3,
        )
    for part in ("valid", "test"):
        if not report["rows"][part]:
            warnings.warn(f"{path}: no row for {part} in the {report['split']} split", stacklevel=3)
