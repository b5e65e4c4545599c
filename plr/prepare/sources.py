"""The files that go into a data set: hashed, read and numbered."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from plr.errors import DataError, shortened
from plr.prepare.background import in_background
from plr.prepare.fingerprint import fingerprint
from plr.prepare.interactions import Interactions, number
from plr.prepare.options import PrepareOptions
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
)
from plr.prepare.readers.delimited import header_of, record_scan, separator_of, without_bad_records
from plr.prepare.readers.huggingface import huggingface_files
from plr.prepare.readers.kinds import refuse_other_kinds
from plr.prepare.readers.source import forbidden_bytes

__all__ = ["Place", "SourceFiles"]

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
        self.paths = paths
        self.items = items
        self.format = detect_format(paths[0]) if options.format == "auto" else options.format
        self.skipped = Skipped() if skip_bad_lines else None
        wanted, found = ("a folder", "a file") if self.format == "huggingface" else ("a file", "a folder")
        if paths[0].is_file() != (wanted == "a file"):
            raise DataError(f"{found}; the format {self.format!r} is {wanted}", paths[0])
        self._options = options
        self._periods = periods
        self._hashing: Future[list[str]] | None = None
        self._as_found = [_state(file) for file in self._files()]
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
            if _state(file) != as_found:
                raise DataError("the file changed while it was read; repeat the command when it is whole", file)

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
        self._hashing = self._hashing or in_background(self._fingerprints)
        vocabulary = IdVocabulary(self._options.min_rating, self._options.missing_ids == "drop")
        interactions, place = number(self._read_all(vocabulary), vocabulary)
        interactions = self._without_bad_ids(interactions, place, vocabulary)
        self.dropped_without_id = sum(vocabulary.dropped)
        if self.format in TEXT_FORMATS and self.skipped is None and any(map(is_packed, self.paths)):
            _check_ids(interactions, place, forbidden_in(self.format))
        return interactions, place

    def _without_bad_ids(self, interactions: Interactions, place: Place, vocabulary: IdVocabulary) -> Interactions:
        """Treat ids of nothing but white space as missing ones, and refuse lines that repeat the header."""
        if not len(interactions):
            return interactions
        blank = np.zeros(len(interactions), dtype=bool)
        if interactions.user_ids[0] == "":
            blank[: interactions.offsets[1]] = True
        if interactions.item_ids[0] == "":
            blank |= interactions.item == 0
        if vocabulary.drop_missing_ids:
            vocabulary.dropped.append(int(np.count_nonzero(blank)))
        else:
            reason = "an id is white space alone; --missing_ids drop leaves such lines out"
            self._refuse_rows(interactions, blank, place, reason)
        headers = self._repeated_headers(interactions)
        self._refuse_rows(interactions, headers, place, "the line repeats the header")
        wrong = blank | headers
        return interactions.take(~wrong) if wrong.any() else interactions

    def _refuse_rows(self, interactions: Interactions, wrong: np.ndarray, place: Place, reason: str) -> None:
        """Raise for the first of the wrong rows, or note them as lines that are left out."""
        positions = np.sort(interactions.position[wrong])
        for position in positions[:_NAMED].tolist():
            error = DataError(reason, *place(position))
            if self.skipped is None:
                raise error
            self.skipped.add(Path(error.path or ""), error.line, reason)
        if self.skipped is not None:
            self.skipped.count += max(0, len(positions) - _NAMED)

    def _repeated_headers(self, interactions: Interactions) -> np.ndarray:
        """Return which rows (bool [N]) are the header again, as in files put together; times would not convert."""
        found = np.zeros(len(interactions), dtype=bool)
        if self.format not in ("csv", "recbole") or interactions.timestamp is not None:
            return found
        header = header_of(self.paths[0])[1]
        separator = "\t" if self.format == "recbole" else separator_of(header)
        names = [name.strip().strip('"') for name in header.split(separator)]
        known = interactions.user_ids
        places = set(known.search_sorted(pl.Series(names, dtype=pl.String)).to_list())
        for user in (place for place in places if place < len(known) and known[place] in names):
            part = slice(int(interactions.offsets[user]), int(interactions.offsets[user + 1]))
            items = interactions.item_ids.gather(interactions.item[part])
            found[part] = items.is_in(names).to_numpy()
        return found

    def _read_all(self, vocabulary: IdVocabulary) -> list[Source]:
        sources = [self._read_one(path, vocabulary) for path in self.paths]
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
        try:
            source = read(path, self.format, columns, vocabulary, noted, named)
            self._fingerprint(path, text=True)
            if is_packed(path):
                _check_packed(path, forbidden_in(self.format))
            if path in self._scans:
                self._scans[path].check(source.records)
        except DataError:
            source, noted = self._read_copy(path, vocabulary)
        self.skipped.extend(noted)
        return source

    def _read_copy(self, path: Path, vocabulary: IdVocabulary) -> tuple[Source, Skipped]:
        """Read what is left of a text file when the records are left out that make it unreadable."""
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="plr-")  # lines are looked up in the copy
        copy = Path(self._scratch.name) / f"{len(list(Path(self._scratch.name).iterdir()))}-{path.name}"
        noted, more = Skipped(), Skipped()
        without_bad_records(path, copy, self.format, noted)
        try:
            named = self._options.format != "auto"
            source = read(copy, self.format, self._options.columns, vocabulary, more, named)
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


def _state(file: Path) -> tuple[int, int]:
    """Return what a change of the file changes: its size, and when it was last written to (ns)."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _check_packed(path: Path, forbidden: bytes) -> None:
    """Refuse a packed file with forbidden bytes, which ``fingerprint`` looks for in plain ones."""
    with open_plain(path) as file:
        while chunk := file.read(_CHUNK):
            if forbidden_bytes(chunk, forbidden):
                raise DataError("it holds bytes that do not belong in a text file", path)


def _check_ids(interactions: Interactions, place: Place, forbidden: bytes) -> None:
    """Refuse ids with forbidden bytes: looking through those of packed files costs less than unpacking them twice."""
    letters = "".join(f"\\x{byte:02x}" for byte in forbidden)
    for index, ids in ((interactions.user, interactions.user_ids), (lambda: interactions.item, interactions.item_ids)):
        odd = ids.str.contains(f"[{letters}]").to_numpy()
        if odd.any():
            numbers = index()
            rows = np.flatnonzero(odd[numbers])
            row = int(rows[interactions.position[rows].argmin()])  # the first in the file
            path, line = place(int(interactions.position[row]))
            found = shortened(ids[int(numbers[row])])
            raise DataError(f"the id {found} holds a byte that does not belong in a text file", path, line)


def _with_rating_as(name: str | None, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with its column ``rating`` renamed, or with None without it; no column is copied."""
    columns = [column.alias(name or "rating") if column.name == "rating" else column for column in frame]
    return pl.DataFrame([column for column in columns if column.name != "rating"])


def _check_period(source: Source, start: float, stop: float) -> None:
    times = source.frame["timestamp"]
    outside = (times < start) | (times >= stop)
    if outside.any():
        position = int(outside.arg_max() or 0)
        path, line = source.place(position)
        raise DataError(f"timestamp {times[position]} is outside this file's period, {start} to {stop}", path, line)
