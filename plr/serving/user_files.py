"""Files of users as histories, a block of users after the other."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from plr.config import Config
from plr.data import open_prepared
from plr.errors import ConfigError, DataError, shortened
from plr.files import sha256_of
from plr.items.features import without_duplicates
from plr.options import is_text
from plr.prepare.folder import is_prepared
from plr.prepare.options import PrepareOptions
from plr.prepare.readers import Columns, detect_format, find_interactions, open_plain
from plr.prepare.readers.columns import NO_TIMES, find_columns
from plr.prepare.readers.delimited import header_of, separator_of
from plr.prepare.readers.kinds import refuse_other_kinds
from plr.prepare.readers.packed import SUFFIXES, UNREADABLE
from plr.prepare.readers.parquet import PARQUET_ERRORS, open_parquet, unreadable_parquet
from plr.prepare.readers.source import unreadable
from plr.prepare.sources import SourceFiles, refuse_changed, state_of
from plr.serving.histories import HISTORY, UserHistories, histories_of, split_history
from plr.serving.item_numbers import ItemNumbers, is_id

__all__ = ["UserFile", "open_user_file"]

_NOTHING: Mapping[str, str | None] = {}
_ROLES = ("user", "item", "rating", "timestamp")
_COLUMNS = tuple(f"{role}_column" for role in _ROLES)
_NO_VALUE = ("auto", NO_TIMES)  # which say what is so anyway
_NAMED = ("csv", "recbole", "parquet", "huggingface")
_JSON_LINES = (".jsonl", ".ndjson")
_UNREADABLE = (*UNREADABLE, UnicodeDecodeError)
_PARQUET_ROWS = 1 << 16  # read together
_LONGEST_FIELD = 2**31 - 1  # of a CSV file, in characters; Python's own limit is 131,072

Row = tuple[str, list[str]]
"""A user and a history."""


class UserFile(NamedTuple):
    """Users and their histories.

    Attributes:
        total: how many there are, None where reading alone tells.
        blocks: called with the number of users to leave out and with that of a block: yields the blocks that follow,
            all but the last of that size.
        content_hash: SHA-256 (hex) of what was read.
    """

    total: int | None
    blocks: Callable[[int, int], Iterator[UserHistories]]
    content_hash: str


def open_user_file(
    path: Path, numbers: ItemNumbers, config: Config | None = None, given: Mapping[str, str | None] = _NOTHING
) -> UserFile:
    """Open a file of users.

    A file of histories is read block by block: rows of user and `history` in Parquet, in CSV with a header, or a JSON
    object a line. A file of interactions, in any format of `plr prepare`, is read whole, as numbers. A prepared folder
    is mapped.

    Args:
        path: the file, or a prepared folder.
        numbers: of the run's items.
        config: the run's; its names of columns count where none are given, and ratings below its `min_rating` are
            left out.
        given: format, user_column, item_column, rating_column, timestamp_column.

    Raises:
        ConfigError: a format or names of columns are given for what has none.
        DataError: it cannot be used; says why, and where.
    """
    if is_prepared(path):
        _refuse(path, "a prepared folder has", given, "format", *_COLUMNS)
        return _prepared(path, numbers)
    path = find_interactions(path)
    if not path.exists():
        raise DataError("no such file", path)
    if path.is_file():
        refuse_other_kinds(path, json=_suffix(path) in _JSON_LINES)
    if path.is_file() and _suffix(path) in _JSON_LINES:
        _refuse(path, "JSON lines of histories have", given, "format", *_COLUMNS[1:])
        return _lines(path, numbers, lambda: _json_rows(path, given.get("user_column")))
    file_format = given.get("format") or "auto"
    if file_format == "auto":
        file_format = detect_format(path)
    names = [given.get(f"{role}_column") for role in _ROLES]
    if config is not None and file_format in _NAMED:
        names = [name or getattr(config, f"{role}_column") for role, name in zip(_ROLES, names, strict=True)]
    columns = Columns(*names)
    if columns.item in (None, HISTORY):
        of_lists = Columns(columns.user, HISTORY)
        if file_format == "parquet" and HISTORY in open_parquet(path).collect_schema().names():
            _refuse(path, "rows of histories have", given, *_COLUMNS[2:])
            return _parquet(path, of_lists, numbers)
        if file_format == "csv" and HISTORY in _header(path)[1]:
            _refuse(path, "rows of histories have", given, *_COLUMNS[2:])
            return _lines(path, numbers, lambda: _csv_rows(path, of_lists))
    return _interactions(path, file_format, columns, None if config is None else config.min_rating, numbers)


def _refuse(path: Path, what_has: str, given: Mapping[str, str | None], *names: str) -> None:
    """Raise a ConfigError where one of these is given, which would be ignored."""
    found = [f"{name} {value!r}" for name, value in given.items() if name in names and value not in (None, *_NO_VALUE)]
    if found:
        raise ConfigError(f"{path}: {what_has} no {', '.join(names)}; found {', '.join(found)}")


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in SUFFIXES]
    return suffixes[-1] if suffixes else ""


def _prepared(folder: Path, numbers: ItemNumbers) -> UserFile:
    dataset = open_prepared(folder)
    return UserFile(
        dataset.num_users,
        _slices(dataset.user_ids, dataset.offsets.numpy(), dataset.items.numpy(), numbers.of(dataset.item_ids)),
        dataset.content_hash,
    )


def _interactions(
    path: Path, file_format: str, columns: Columns, min_rating: float | None, numbers: ItemNumbers
) -> UserFile:
    options = PrepareOptions(
        file_format, columns.user, columns.item, columns.rating, columns.timestamp, min_rating=min_rating
    )
    sources = SourceFiles([path], options)
    try:
        interactions, _ = sources.read()
        digest = hashlib.sha256(json.dumps([each["sha256"] for each in sources.describe()]).encode()).hexdigest()
    except DataError as error:
        raise sources.first_cause(error) from error.__cause__
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    offsets, items, users = interactions.offsets, interactions.item, interactions.user_ids
    if interactions.positive is not None:  # a user may have none that is, and is answered all the same
        lengths = np.add.reduceat(interactions.positive, offsets[:-1], dtype=np.int64)
        offsets, items = np.concatenate([[0], np.cumsum(lengths)]), items[interactions.positive]
    return UserFile(len(users), _slices(users, offsets, items, numbers.of(interactions.item_ids)), digest)


def _slices(
    users: pl.Series, offsets: np.ndarray, items: np.ndarray, of_items: np.ndarray
) -> Callable[[int, int], Iterator[UserHistories]]:
    """Return the blocks of histories whose numbers are those of another file; `of_items` are the run's."""

    def blocks(skip: int, size: int) -> Iterator[UserHistories]:
        for first in range(skip, len(users), size):
            bounds = offsets[first : first + size + 1]
            found = of_items[items[bounds[0] : bounds[-1]]]
            yield UserHistories.of(users[first : first + size].alias("user"), found, np.diff(bounds))

    return blocks


def _as_found(
    path: Path, found: tuple[int, int], blocks: Callable[[int, int], Iterator[UserHistories]]
) -> Callable[[int, int], Iterator[UserHistories]]:
    """Return blocks that refuse a file which is another one by their end: they would be of both."""

    def checked(skip: int, size: int) -> Iterator[UserHistories]:
        try:
            yield from blocks(skip, size)
        except DataError:
            refuse_changed(path, found)  # which says more than that half of it cannot be read
            raise
        refuse_changed(path, found)

    return checked


def _parquet(path: Path, wanted: Columns, numbers: ItemNumbers) -> UserFile:
    as_found = state_of(path)
    table = open_parquet(path)
    found = find_columns(table.collect_schema().names(), wanted, path, None)
    table = table.select(pl.col(found["user"]).alias("user"), pl.col(found["item"]).alias(HISTORY))

    def blocks(skip: int, size: int) -> Iterator[UserHistories]:
        together = max(1, _PARQUET_ROWS // size) * size
        for first in range(skip, total, together):
            try:
                frame = table.slice(first, together).collect(engine="streaming")
            except PARQUET_ERRORS as error:
                raise unreadable_parquet(path, error) from None
            for start in range(0, len(frame), size):
                try:
                    users = histories_of(frame[start : start + size], Columns(user="user"), numbers)
                except DataError as error:
                    raise DataError(f"{error.reason} in rows {first + start + 1} and those after it", path) from error
                ids = users.users.cast(pl.String).str.strip_chars()
                missing = (ids == "").to_numpy()
                if missing.any():
                    raise DataError(f"the user is missing in row {first + start + int(missing.argmax()) + 1}", path)
                yield UserHistories(ids, users.items, users.interactions, users.unknown)

    total = int(table.select(pl.len()).collect().item())
    return UserFile(total, _as_found(path, as_found, blocks), sha256_of(path))


def _lines(path: Path, numbers: ItemNumbers, rows: Callable[[], Iterator[Row]]) -> UserFile:
    as_found = state_of(path)

    def blocks(skip: int, size: int) -> Iterator[UserHistories]:
        users: list[str] = []
        items: list[str] = []
        lengths: list[int] = []
        for place, (user, history) in enumerate(_readable(path, rows())):
            if place < skip:
                continue
            users.append(user)
            items += history
            lengths.append(len(history))
            if len(users) == size:
                yield _block(users, items, lengths, numbers)
                users, items, lengths = [], [], []
        if users:
            yield _block(users, items, lengths, numbers)

    return UserFile(None, _as_found(path, as_found, blocks), sha256_of(path))


def _block(users: list[str], items: list[str], lengths: list[int], numbers: ItemNumbers) -> UserHistories:
    found = numbers.of(pl.Series(items, dtype=pl.String).str.strip_chars())
    return UserHistories.of(pl.Series("user", users, dtype=pl.String), found, np.array(lengths, dtype=np.int64))


def _readable(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except _UNREADABLE as error:
        raise unreadable(path, error) from error


def _header(path: Path) -> tuple[int, list[str]]:
    try:
        line, header = header_of(path)
    except _UNREADABLE as error:
        raise unreadable(path, error) from error
    return line, next(csv.reader([header], delimiter=separator_of(header)), [])


def _csv_rows(path: Path, wanted: Columns) -> Iterator[Row]:
    start, names = _header(path)
    found = find_columns(names, wanted, path, start)
    user, history = names.index(found["user"]), names.index(found["item"])
    csv.field_size_limit(_LONGEST_FIELD)
    with io.TextIOWrapper(open_plain(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator_of(header_of(path)[1]), strict=True)
        try:
            for fields in reader:
                if reader.line_num <= start or not any(fields):
                    continue
                if len(fields) != len(names):
                    raise DataError(f"{len(fields)} fields; the header has {len(names)}", path, reader.line_num)
                yield _user(fields[user], path, reader.line_num), list(split_history(fields[history]))
        except csv.Error as error:
            raise DataError(f"cannot be read: {error}", path, reader.line_num) from error


def _json_rows(path: Path, user_column: str | None) -> Iterator[Row]:
    user = None
    with io.TextIOWrapper(open_plain(path), encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                record = json.loads(text, object_pairs_hook=without_duplicates)
            except json.JSONDecodeError as error:
                raise DataError(f"not JSON: {error}", path, line) from error
            except (ValueError, RecursionError) as error:  # a name twice, huge numbers, lists in lists in lists
                raise DataError(f"not usable JSON: {error}", path, line) from error
            if not isinstance(record, dict):
                raise DataError(f"must be an object with a user and a history; found {shortened(text)}", path, line)
            if user is None:
                user = find_columns(list(record), Columns(user_column, HISTORY), path, line)["user"]
            history = record.get(HISTORY)
            if not isinstance(history, list) or not all(map(is_id, history)):
                raise DataError(f"history must be a list of item ids; found {shortened(history)}", path, line)
            if not is_id(record.get(user)):
                raise DataError(f"{user} must be an id; found {shortened(record.get(user))}", path, line)
            half = next((each for each in (record[user], *history) if not is_text(str(each))), None)
            if half is not None:  # JSON may write one down
                raise DataError(f"half a character (a surrogate that stands alone) in {half!r}", path, line)
            yield _user(str(record[user]), path, line), [str(item) for item in history]


def _user(text: str, path: Path, line: int) -> str:
    if not text.strip():
        raise DataError("the user is missing", path, line)
    return text.strip()
