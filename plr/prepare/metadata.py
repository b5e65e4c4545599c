"""What is known about items: title, category path, store, and the text made of them."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
from polars.selectors import by_name

from plr.errors import DataError, listed
from plr.prepare.json_records import PlainRecords, blocks_of_lines, plain_records
from plr.prepare.readers.columns import normalise
from plr.prepare.readers.delimited import separator_of, without_bad_records
from plr.prepare.readers.kinds import refuse_other_kinds
from plr.prepare.readers.packed import DAMAGED, SUFFIXES, open_plain, packing
from plr.prepare.readers.parquet import PARQUET_ERRORS, open_parquet, unreadable_parquet
from plr.prepare.readers.source import Skipped

__all__ = ["FEATURES", "describe", "item_features", "known_items"]

FEATURES: dict[str, Any] = {"title": pl.String, "categories": pl.List(pl.String), "store": pl.String, "text": pl.String}
"""The columns beside ``item_id``; each is null where nothing is known."""
_FOUND: dict[str, Any] = {"place": pl.Int64, "item": pl.String, **FEATURES}

# Names of fields (normalised), the better ones first.
_USUAL = {
    "item": ("parentasin", "itemid", "item", "asin", "movieid", "productid", "id"),
    "title": ("title", "movietitle", "itemname", "name"),
    "categories": ("categories", "category", "genres", "genre", "class"),
    "store": ("store", "brand", "seller"),
}
_PATH = " > "

Record = dict[str, Any]
"""A record's values by role: item, title, categories, store."""
Lines = Iterator[tuple[int, Record | str | PlainRecords]]
"""1-based lines with their record, or with what is wrong with it; or the first of a block with its plain records."""


def item_features(path: Path, item_ids: pl.Series, skipped: Skipped | None = None) -> tuple[pl.DataFrame, dict]:
    """Read a file of item metadata and return what it says of the items, in their order, with counts of it.

    Formats: JSON lines (.jsonl, .json), RecBole's .item, CSV with a header, Parquet, and MovieLens' movies.dat
    (``id::title::genre|genre``); any but Parquet may be packed with gzip or Zstandard. Where an item
    has several records the last one counts. In CSV a category path is separated by ``|``, in RecBole by spaces.

    Args:
        path: The file.
        item_ids: The items, strings [V].
        skipped: Where given, lines that cannot be used are added to it instead of raising.

    Returns:
        The columns FEATURES, V rows; and {"file", "records", "repeated_records"}.

    Raises:
        DataError: naming file and line, for a record that cannot be used.
    """
    if skipped is None or _suffix(path) not in (".csv", ".tsv") or not path.is_file():
        return _features(path, path, item_ids, skipped)
    with tempfile.TemporaryDirectory(prefix="plr-") as scratch:  # a stray quote would take all lines up to the next one
        copy = Path(scratch) / path.name
        without_bad_records(path, copy, "csv", skipped)
        return _features(path, copy, item_ids, skipped)


def _features(path: Path, copy: Path, item_ids: pl.Series, skipped: Skipped | None) -> tuple[pl.DataFrame, dict]:
    """Read what ``item_features`` returns from ``copy``, the file itself or what is left of it, and name ``path``."""
    wanted = set(item_ids)
    found = [pl.DataFrame(schema=_FOUND)]  # in the order of the file
    records: list[tuple] = []
    count = 0
    line = None
    try:
        for line, record in _lines(copy, item_ids):
            if isinstance(record, str):
                if skipped is None:
                    raise DataError(record, path, line)
                skipped.add(path, line, record)
            elif isinstance(record, PlainRecords):
                count += int(record.lines.sum())
                text = pl.concat_str("title", pl.col("categories").list.join(_PATH), "store", separator=". ")
                empty = pl.col("categories").list.len() == 0
                found.append(
                    record.records.select(
                        pl.col("place").cast(pl.Int64) + line,
                        "item",
                        "title",
                        pl.when(~empty).then("categories").alias("categories"),
                        "store",
                        pl.when(empty)
                        .then(pl.concat_str("title", "store", separator=". "))
                        .otherwise(text)
                        .alias("text"),
                    )
                )
                line += len(record.lines) - 1
            else:
                count += 1
                if record["item"] in wanted:
                    values = (record["title"], record["categories"], record["store"])
                    records.append((line, record["item"], *values, describe(*values)))
    except (EOFError, *DAMAGED) as error:
        cut_off = isinstance(error, EOFError)
        problem = "ends too early: it was cut off" if cut_off else f"cannot be read from here on: {error}"
        problem = f"the {packing(path)} file {problem}; fetch it again"
        if skipped is None:
            raise DataError(problem, path, line) from None
        skipped.add(path, line, problem)
    found.append(pl.DataFrame(records, schema=_FOUND, orient="row"))
    known = pl.concat(found).sort("place")
    last = known.unique("item", keep="last", maintain_order=True)
    frame = pl.DataFrame({"item": item_ids}).join(last, on="item", how="left", maintain_order="left")
    return frame.select(*FEATURES), {
        "file": path.name,
        "records": count,
        "repeated_records": known.height - last.height,
    }


def known_items(features: pl.DataFrame) -> dict[str, int]:
    """Count the items of which each thing is known: {"items_with_title", ...}."""
    return {f"items_with_{name}": features.height - features[name].null_count() for name in FEATURES}


def describe(title: str | None, categories: list[str] | None, store: str | None) -> str | None:
    """Return title, category path and store as one line of text; None where nothing is known."""
    parts = [title, _PATH.join(categories) if categories else None, store]
    return ". ".join(" ".join(part.split()) for part in parts if part) or None


def _suffix(path: Path) -> str:
    return next((suffix.lower() for suffix in reversed(path.suffixes) if suffix.lower() not in SUFFIXES), "")


def _lines(path: Path, item_ids: pl.Series) -> Lines:
    suffix = _suffix(path)
    json_lines = partial(_json_lines, item_ids=item_ids)
    readers: dict[str, Callable[[BinaryIO], Lines]] = {
        ".jsonl": json_lines, ".json": json_lines, ".csv": _csv, ".tsv": _csv, ".item": _recbole, ".dat": _movielens,
    }  # fmt: skip
    if suffix in (".parquet", ".pq"):
        return _parquet(path)
    if suffix not in readers:
        raise DataError(f"metadata with the extension {suffix!r}; accepted: {', '.join([*readers, '.parquet'])}", path)
    if not path.is_file():
        raise DataError("no such file", path)
    refuse_other_kinds(path, json=suffix in (".jsonl", ".json"))
    return _closing(path, readers[suffix])


def _closing(path: Path, read: Callable[[BinaryIO], Lines]) -> Lines:
    with open_plain(path) as file:
        yield from read(file)


def _json_lines(file: BinaryIO, item_ids: pl.Series) -> Lines:
    roles = _Roles()
    together = True
    for first, lines in blocks_of_lines(file):
        decoded = plain_records(lines, item_ids) if together else None
        if decoded is None:
            yield from _json_one_by_one(enumerate(lines, start=first), roles)
        else:
            yield first, decoded
            others = (~decoded.lines).arg_true().to_list()
            yield from _json_one_by_one(((first + place, lines[place]) for place in others), roles)
            together = 2 * len(others) < len(lines)  # else that costs more than it saves


def _json_one_by_one(lines: Iterable[tuple[int, bytes]], roles: _Roles) -> Lines:
    for line, text in lines:
        if not text.strip():
            continue
        try:
            values = json.loads(text.decode("utf-8-sig" if line == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield line, f"byte 0x{text[error.start]:02x} at column {error.start + 1} is not UTF-8"
        except (ValueError, RecursionError) as error:
            yield line, f"not JSON: {error}"
        else:
            record = roles.record(values) if isinstance(values, dict) else "not a JSON object"
            half = isinstance(record, dict) and any(map(_has_surrogate, _texts(record)))
            yield line, "half a character (a surrogate that stands alone)" if half else record


def _csv(file: BinaryIO) -> Lines:
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        lines, header = 1, text.readline()
        while header and not header.strip():
            lines, header = lines + 1, text.readline()
        separator = separator_of(header)
        names = next(csv.reader([header], delimiter=separator), [])
        yield from _table(csv.reader(text, delimiter=separator, strict=True), lines, names, "|")


def _recbole(file: BinaryIO) -> Lines:
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as text:
        names = text.readline().rstrip("\r\n").split("\t")
        yield from _table(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE), 1, names, " ")


def _table(rows: Any, lines: int, header: Sequence[str], path_separator: str) -> Lines:
    """Yield the records of a csv.reader that begins after ``lines`` lines."""
    roles = _Roles()
    start = lines + 1
    while True:
        line, problem = start, None
        try:
            row = next(rows, None)
        except csv.Error as error:
            row, problem = [], str(error).replace("unexpected end of data", 'a quote (") is opened and never closed')
        start = lines + rows.line_num + 1
        if row is None:
            return
        if problem is None and not any(row):
            continue
        if problem is not None:
            yield line, problem
        elif len(row) != len(header):  # fewer where a record was cut off
            yield line, f"{len(row)} fields; the header has {len(header)}"
        elif any(map(_has_surrogate, row)):
            yield line, "bytes that are not UTF-8"
        else:
            yield line, roles.record(dict(zip(header, row, strict=True)), path_separator)


def _movielens(file: BinaryIO) -> Lines:
    for line, raw in enumerate(file, start=1):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")  # as these files were published
        parts = text.rstrip("\r\n").split("::")
        if not text.strip():
            continue
        if len(parts) != 3:
            yield line, f"{len(parts)} fields; expected 'id::title::genre|genre'"
        else:
            yield line, _record({"item": parts[0], "title": parts[1], "categories": parts[2]}, "|")


def _parquet(path: Path) -> Lines:
    table = open_parquet(path)
    known = [
        name for name in table.collect_schema().names() if any(normalise(name) in usual for usual in _USUAL.values())
    ]
    try:
        records = (table.select(by_name(known)) if known else table).collect()
    except PARQUET_ERRORS as error:
        raise unreadable_parquet(path, error) from None
    roles = _Roles()
    for row, values in enumerate(records.iter_rows(named=True), start=1):
        yield row, roles.record(values)


class _Roles:
    """Finds the fields of records by their usual names; remembers what it found for the same fields."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], dict[str, str]] = {}

    def record(self, values: dict, path_separator: str = "|") -> Record | str:
        """Return the record by roles, or what is wrong with it."""
        fields = tuple(values)
        if fields not in self._known:
            names: dict[str, str] = {}
            for name in fields:
                names.setdefault(normalise(name), name)
            self._known[fields] = {
                role: next(names[name] for name in usual if name in names)
                for role, usual in _USUAL.items()
                if not names.keys().isdisjoint(usual)
            }
        known = self._known[fields]
        if "item" not in known:
            return f"no item id; the fields are {listed(fields)}"
        return _record({role: values[name] for role, name in known.items()}, path_separator)


def _record(values: Record, path_separator: str) -> Record | str:
    record: Record = {}
    for role in ("item", "title", "store"):
        value = values.get(role)
        if isinstance(value, (list, dict, bool)) or (role == "item" and isinstance(value, float)):
            return f"the {role} is a {type(value).__name__}; expected text"
        text = "" if value is None or value != value else str(value)  # what is missing may be written NaN
        record[role] = text.strip() or None
    if record["item"] is None:
        return "the item id is empty"
    path = values.get("categories")
    if isinstance(path, str):
        path = path.split(path_separator)
    if path and isinstance(path, list) and isinstance(path[0], list):
        path = path[0]  # several paths: the first
    if path is not None and not (isinstance(path, list) and all(isinstance(part, str) for part in path)):
        return "the categories are not a list of texts"
    record["categories"] = [part.strip() for part in path or () if part.strip()] or None
    return record


def _texts(record: Record) -> list[str]:
    return [text for text in (record["item"], record["title"], record["store"], *(record["categories"] or ())) if text]


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
