"""The files that go into a data set: hashed, read and numbered."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from plr.errors import DataError, shortened
from plr.prepare.background import in_background
from plr.prepare.fingerprint import fingerprint
from plr.prepare.interactions import Block, Interactions, number, place_of, ranked
from plr.prepare.options import PrepareOptions
from plr.prepare.parts import Partitions, Parts, Whole
from plr.prepare.readers import (
    TEXT_FORMATS,
    IdVocabulary,
    Skipped,
    Source,
    detect_format,
    forbidden_in,
    is_packed,
    open_plain,
    read,
    refuse_other_format,
)
from plr.prepare.readers.delimited import header_of, record_scan, separator_of, without_bad_records
from plr.prepare.readers.huggingface import huggingface_files
from plr.prepare.readers.kinds import refuse_other_kinds
from plr.prepare.readers.source import forbidden_bytes
from plr.prepare.readers.spooled import Numbers, Spooled, blocks_of

__all__ = ["Place", "SourceFiles", "refuse_changed", "state_of"]

_CHUNK = 1 << 22
_NAMED = 10  # of the lines that are refused for their ids: each takes a pass over the file

Place = Callable[[int], tuple[Path, int]]
"""From the position of an interaction to its file and line."""


class SourceFiles:
    """Files of interactions, taken as one, and the file of item metadata where there is one.

    ``skipped`` holds the lines that were left out, None where such a line is an error.

    Raises:
        DataError: a file is missing, empty, or a folder where none belongs.
    """

    def __init__(
        self,
        paths: list[Path],
        options: PrepareOptions,
        items: Path | None = None,
        skip_bad_lines: bool = False,
        periods: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        for path in [*paths, *([] if items is None else [items])]:
            if not path.exists():
                raise DataError("no such file", path)
            if not (path.is_file() or path.is_dir()):
                raise DataError("neither a file nor a folder: it cannot be read twice", path)
            if path.is_file() and path.stat().st_size == 0:
                raise DataError("the file is empty", path)
            refuse_other_kinds(path, json=path == items)
        for place, path in enumerate(paths):
            if any(path.samefile(former) for former in paths[:place]):
                raise DataError("the file is named twice: each of its interactions would count twice", path)
        self.paths = paths
        self.items = items
        self.format = detect_format(paths[0]) if options.format == "auto" else options.format
        self.skipped = Skipped() if skip_bad_lines else None
        wanted, found = ("a folder", "a file") if self.format == "huggingface" else ("a file", "a folder")
        if paths[0].is_file() != (wanted == "a file"):
            raise DataError(f"{found}; the format {self.format!r} is {wanted}", paths[0])
        for path in filter(Path.is_file, paths):
            refuse_other_format(path, self.format)
        self._options = options
        self._periods = periods
        self._hashing: Future[list[str]] | None = None
        self._as_found = [state_of(file) for file in self._files()]
        self._scans = {path: scan for path in paths if (scan := record_scan(path, self.format)) is not None}
        self._parsed: dict[Path, int] = {}
        self.dropped_without_id = 0
        self.columns: dict[str, str] = {}
        self._scratch: tempfile.TemporaryDirectory | None = None

    def hashes(self) -> list[str]:
        """Return the SHA-256 (hex) of every file.

        Raises:
            DataError: a text file is none.
        """
        self._hashing = self._hashing or in_background(self._fingerprints)
        return self._hashing.result()

    def describe(self) -> list[dict[str, Any]]:
        """Return name, size and hash of every file; asked for when all has been read.

        Raises:
            DataError: a file has changed since this object was made, or other records were read than it holds.
        """
        hashes = self.hashes()
        self._check_unchanged()
        self.check_records()
        return [
            {"file": file.name, "bytes": as_found[0], "sha256": sha256}
            for file, sha256, as_found in zip(self._files(), hashes, self._as_found, strict=True)
        ]

    def _check_unchanged(self) -> None:
        for file, as_found in zip(self._files(), self._as_found, strict=True):
            refuse_changed(file, as_found)

    def check_records(self) -> None:
        """Compare what was parsed with an independent count of records.

        Raises:
            DataError: a quote is misplaced, or the numbers differ; names file and line.
        """
        if self.skipped is None:  # else that was done file by file
            self.hashes()
            for path, scan in self._scans.items():
                scan.check(self._parsed.get(path))

    def first_cause(self, error: DataError) -> DataError:
        """Return what to tell where ``error`` stopped the reading: it, or a misplaced quote before that line.

        Raises:
            DataError: a text file is none.
        """
        self.hashes()
        try:
            self._check_unchanged()
            self.check_records()
        except DataError as other:
            if error.line is None or (other.path == error.path and (other.line or error.line) < error.line):
                return other
        return error

    def read(self) -> tuple[Interactions, Place]:
        """Read and number the interactions while another thread hashes the files, which may go on afterwards.

        Raises:
            DataError: for anything in a file that cannot be used, naming file and line.
        """
        parts, place = self.read_parts()
        assert isinstance(parts, Whole)
        return parts.interactions, place

    def read_parts(self, partitions: int = 0, disk: Path | None = None) -> tuple[Parts, Place]:
        """Read and number the interactions, as `read` does, into so many parts on ``disk``; with 0 as one in memory."""
        self._hashing = self._hashing or in_background(self._fingerprints)
        drop = self._options.missing_ids == "drop"
        vocabulary = IdVocabulary(self._options.min_rating, drop, disk=disk if partitions else None)
        sources = self._read_all(vocabulary)
        place = place_of(sources)
        parts: Parts
        if partitions and disk is not None:
            parts = Partitions(lambda: _blocks(sources), *ranked(vocabulary), partitions, disk)
            sources.clear()
        else:
            parts = Whole(number(sources, vocabulary))
        self._leave_out_bad_ids(parts, place, vocabulary)
        self.dropped_without_id = sum(vocabulary.dropped)
        if self.format in TEXT_FORMATS and self.skipped is None and any(map(is_packed, self.paths)):
            _check_ids(parts, place, forbidden_in(self.format))
        return parts, place

    def _leave_out_bad_ids(self, parts: Parts, place: Place, vocabulary: IdVocabulary) -> None:
        """Treat ids of nothing but white space as missing ones, and refuse lines that repeat the header."""
        if not len(parts):
            return
        names = self._names_of_header(parts)
        blanks, headers = np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.uint32)  # positions
        if parts.user_ids[0] == "" or parts.item_ids[0] == "":
            blanks = np.concatenate([part.position[_blank(part)] for part in parts])
        if names:
            headers = np.concatenate([part.position[_found(part, names)] for part in parts])
        if vocabulary.drop_missing_ids:
            vocabulary.dropped.append(len(blanks))
        else:
            reason = "an id is white space alone; --missing_ids drop leaves such lines out"
            self._refuse_rows(blanks, place, reason)
        self._refuse_rows(headers, place, "the line repeats the header")
        if len(blanks) or len(headers):
            parts.keep(lambda part: ~(_blank(part) | _found(part, names)))

    def _refuse_rows(self, positions: np.ndarray, place: Place, reason: str) -> None:
        """Raise for the first of the wrong rows, or note them as lines that are left out."""
        positions = np.sort(positions)
        for position in positions[:_NAMED].tolist():
            error = DataError(reason, *place(position))
            if self.skipped is None:
                raise error
            self.skipped.add(Path(error.path or ""), error.line, reason)
        if self.skipped is not None:
            self.skipped.count += max(0, len(positions) - _NAMED)

    def _names_of_header(self, parts: Parts) -> list[str]:
        """Return the names in the header that rows may repeat, as in files put together; times would not convert."""
        if self.format not in ("csv", "recbole") or parts.has_times:
            return []
        header = header_of(self.paths[0])[1]
        separator = "\t" if self.format == "recbole" else separator_of(header)
        names = [name.strip().strip('"') for name in header.split(separator)]
        return names if _places(parts.user_ids, names) else []

    def _read_all(self, vocabulary: IdVocabulary) -> list[Source]:
        sources = [_on_disk(self._read_one(path, vocabulary), vocabulary.disk) for path in self.paths]
        if self.format in ("csv", "recbole", "parquet", "huggingface"):
            self.columns = dict(sources[0].columns)
        columns = {tuple(source.frame.columns) for source in sources}
        if len(columns) > 1:
            raise DataError(f"the files have different columns: {sorted(map(list, columns))}", self.paths[0])
        # Ratings were checked; where nobody asked which are high, nothing more is needed of them.
        name = None if self._options.min_rating is None else "positive"
        sources = [replace(source, frame=_with_rating_as(name, source.frame)) for source in sources]
        for source, (start, stop) in zip(sources, self._periods or (), strict=False):
            _check_period(source, start, stop)
        return sources

    def _read_one(self, path: Path, vocabulary: IdVocabulary) -> Source:
        columns, named = self._options.columns, self._options.format != "auto"
        if self.skipped is None:
            source = read(path, self.format, columns, vocabulary, named=named)
            self._parsed[path] = source.records
            return source
        if self.format not in TEXT_FORMATS:
            return read(path, self.format, columns, vocabulary, self.skipped)
        noted = Skipped()
        with warnings.catch_warnings(record=True) as told:  # of a file that is read again they would come twice
            warnings.simplefilter("always")
            try:
                source = read(path, self.format, columns, vocabulary, noted, named)
                self._fingerprint(path, text=True)
                if is_packed(path):
                    _check_packed(path, forbidden_in(self.format))
                if path in self._scans:
                    self._scans[path].check(source.records)
            except DataError:
                told.clear()
                source, noted = self._read_copy(path, vocabulary)
        for warning in told:
            warnings.warn(str(warning.message), warning.category, stacklevel=3)
        self.skipped.extend(noted)
        return source

    def _read_copy(self, path: Path, vocabulary: IdVocabulary) -> tuple[Source, Skipped]:
        """Read what is left of a text file when the records are left out that make it unreadable."""
        noted, more = Skipped(), Skipped()
        try:
            self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="plr-")  # lines are looked up in there
            copy = Path(self._scratch.name) / f"{len(list(Path(self._scratch.name).iterdir()))}-{path.name}"
            without_bad_records(path, copy, self.format, noted)
        except OSError as error:  # a full disk, say
            raise DataError(
                f"its copy without the lines to leave out cannot be written to {tempfile.gettempdir()} (TMPDIR names "
                f"another folder): {error.strerror or error}",
                path,
            ) from error
        try:
            named = self._options.format != "auto"
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                source = read(copy, self.format, self._options.columns, vocabulary, more, named)
            for warning in told:  # nobody knows the copy
                warnings.warn(str(warning.message).replace(str(copy), str(path)), warning.category, stacklevel=4)
            if (scan := record_scan(copy, self.format)) is not None:
                scan.feed_file()
                scan.check(source.records)
        except DataError as error:
            raise DataError(error.reason, path, error.line) from error
        for entry in more.lines:
            entry["file"] = path.name
        noted.extend(more)
        noted.lines.sort(key=lambda entry: entry["line"] or 0)
        return replace(source, path=path), noted

    def _fingerprints(self) -> list[str]:
        text = self.format in TEXT_FORMATS and self.skipped is None
        return [self._fingerprint(file, text=text and file != self.items) for file in self._files()]

    def _fingerprint(self, file: Path, *, text: bool) -> str:
        scan = self._scans.get(file) if text else None
        look = None if scan is None else scan.feed
        sha256 = fingerprint(file, text=text, forbidden=forbidden_in(self.format), look=look)
        if scan is not None and is_packed(file):
            scan.feed_file()
        return sha256

    def _files(self) -> list[Path]:
        files = [file for path in self.paths for file in ([path] if path.is_file() else huggingface_files(path))]
        return files if self.items is None else [*files, self.items]


def state_of(file: Path) -> tuple[int, int]:
    """Return what a change of the file changes: its size, and when it was last written to (ns)."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def refuse_changed(file: Path, as_found: tuple[int, int]) -> None:
    """Raise a DataError where the file is not as it was when `state_of` returned this."""
    if state_of(file) != as_found:
        raise DataError("the file changed while it was read; repeat the command when it is whole", file)


def _check_packed(path: Path, forbidden: bytes) -> None:
    """Refuse a packed file with forbidden bytes, which ``fingerprint`` looks for in plain ones."""
    with open_plain(path) as file:
        while chunk := file.read(_CHUNK):
            if forbidden_bytes(chunk, forbidden):
                raise DataError("it holds bytes that do not belong in a text file", path)


def _check_ids(parts: Parts, place: Place, forbidden: bytes) -> None:
    """Refuse ids with forbidden bytes: looking through those of packed files costs less than unpacking them twice."""
    letters = "".join(f"\\x{byte:02x}" for byte in forbidden)
    for of_users, ids in ((True, parts.user_ids), (False, parts.item_ids)):
        if not ids.str.contains(f"[{letters}]").any():
            continue
        found = []  # the first of each part in the file: position and id
        for part in parts:
            here = part.user_ids if of_users else part.item_ids
            numbers = part.user() if of_users else part.item
            rows = np.flatnonzero(here.str.contains(f"[{letters}]").to_numpy()[numbers])
            if len(rows):
                row = int(rows[part.position[rows].argmin()])
                found.append((int(part.position[row]), here[int(numbers[row])]))
        position, odd = min(found)
        raise DataError(f"the id {shortened(odd)} holds a byte that does not belong in a text file", *place(position))


def _blank(part: Interactions) -> np.ndarray:
    """Return which rows (bool [N]) have an id of nothing but white space, which sorts first."""
    blank = np.zeros(len(part), dtype=bool)
    if len(part) and part.user_ids[0] == "":
        blank[: part.offsets[1]] = True
    if part.item_ids[0] == "":
        blank |= part.item == 0
    return blank


def _found(part: Interactions, names: list[str]) -> np.ndarray:
    """Return which rows (bool [N]) have both ids among the names."""
    found = np.zeros(len(part), dtype=bool)
    for user in _places(part.user_ids, names):
        those = slice(int(part.offsets[user]), int(part.offsets[user + 1]))
        found[those] = part.item_ids.gather(part.item[those]).is_in(names).to_numpy()
    return found


def _places(ids: pl.Series, names: list[str]) -> list[int]:
    """Return where the names stand among the sorted ids."""
    places = sorted(set(ids.search_sorted(pl.Series(names, dtype=pl.String)).to_list()))
    return [place for place in places if place < len(ids) and ids[place] in names]


def _on_disk(source: Source, disk: Path | None) -> Source:
    """Put the frame of a source on disk where one is given; its reader may have done so."""
    frame = source.frame
    if disk is None or isinstance(frame, Spooled):
        return source
    return replace(source, frame=Spooled.of(disk, frame))


def _blocks(sources: list[Source]) -> Iterator[Block]:
    """Yield the blocks of sources on disk."""
    for source in sources:
        assert isinstance(source.frame, Spooled)
        for block in source.frame.blocks():
            yield block["user"], block["item"], block.get("timestamp"), block.get("positive")


def _with_rating_as(name: str | None, frame: Numbers) -> Numbers:
    """Return the frame with its column ``rating`` renamed, or with None without it; no column is copied."""
    if isinstance(frame, Spooled):
        return frame.with_rating_as(name)
    columns = [column.alias(name or "rating") if column.name == "rating" else column for column in frame]
    return pl.DataFrame([column for column in columns if column.name != "rating"])


def _check_period(source: Source, start: float, stop: float) -> None:
    before = 0
    for times in blocks_of(source.frame, "timestamp"):
        outside = (times < start) | (times >= stop)
        if outside.any():
            first = int(outside.arg_max() or 0)
            path, line = source.place(before + first)
            raise DataError(f"timestamp {times[first]} is outside this file's period, {start} to {stop}", path, line)
        before += len(times)
