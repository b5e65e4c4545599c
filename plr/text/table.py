"""Files of item texts: TSV, CSV, JSON lines and Parquet with an item column and text columns."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plr.errors import DataError, listed, shortened
from plr.options import is_text
from plr.prepare.fingerprint import fingerprint
from plr.prepare.readers.kinds import refuse_other_kinds
from plr.prepare.readers.parquet import PARQUET_ERRORS, open_parquet, unreadable_parquet

__all__ = ["TextTable", "read_texts"]

_ITEM_COLUMNS = ("item_id", "item", "parent_asin", "asin")
_TEXT_COLUMNS = ("text", "title")
_SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")

_Row = tuple[int, dict[str, Any]]  # the line (the row of a Parquet file), the values by column


@dataclass(frozen=True)
class TextTable:
    """The text of each item of a file, in its order.

    Attributes:
        item_ids: external ids, different ones.
        texts: one per item, with HTML entities resolved and single spaces; empty where there is none.
        item_column: which column the ids are from.
        text_columns: which columns the text is from, joined by a space.
        sha256: of the file.
    """

    item_ids: list[str]
    texts: list[str]
    item_column: str
    text_columns: tuple[str, ...]
    sha256: str


def read_texts(path: Path, item_column: str | None = None, text_columns: Sequence[str] | None = None) -> TextTable:
    """Read every item's text.

    Args:
        path: .tsv (no quoting) or .csv with a header line, .jsonl with an object per line, or .parquet.
        item_column: the ids; None takes the first there is of item_id, item, parent_asin, asin.
        text_columns: the texts, strings or lists of strings; None takes the first there is of text, title.

    Raises:
        DataError: naming file and line, for anything that cannot be used.
    """
    if not path.is_file():
        raise DataError("no such file of item texts", path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise DataError(f"texts are read from {', '.join(_SUFFIXES)}; found {path.suffix or 'no suffix'}", path)
    refuse_other_kinds(path, json=suffix == ".jsonl")
    sha256 = fingerprint(path, text=suffix != ".parquet")
    if suffix == ".parquet":
        columns, rows = _parquet(path)
    elif suffix == ".jsonl":
        columns, rows = _json_lines(path)
    else:
        columns, rows = _delimited(path, "\t" if suffix == ".tsv" else ",")
    item = _choose(path, "item_column", columns, item_column, _ITEM_COLUMNS)
    wanted: Sequence[str | None] = text_columns or [None]
    chosen = [_choose(path, "text_columns", columns, name, _TEXT_COLUMNS) for name in wanted]

    texts: dict[str, str] = {}
    for line, row in rows:
        item_id = row.get(item)
        if not isinstance(item_id, str | int) or isinstance(item_id, bool) or not str(item_id).strip():
            raise DataError(f"expected an item id in {item!r}; found {shortened(item_id)}", path, line)
        item_id = str(item_id).strip()
        if not is_text(item_id):  # JSON may write one down
            raise DataError(f"half a character (a surrogate that stands alone) in item {item_id!r}", path, line)
        if item_id in texts:
            raise DataError(f"item {shortened(item_id)} occurs a second time", path, line)
        texts[item_id] = " ".join(filter(None, (_clean(path, line, name, row.get(name)) for name in chosen)))
    if not texts:
        raise DataError("the file holds no item", path)
    return TextTable(list(texts), list(texts.values()), item, tuple(chosen), sha256)


def _choose(path: Path, option: str, columns: Sequence[str], asked: str | None, usual: Sequence[str]) -> str:
    found = next((name for name in ((asked,) if asked else usual) if name in columns), None)
    if found is None:
        wanted = shortened(asked) if asked else " or ".join(map(repr, usual))
        raise DataError(f"no column {wanted}; name it with {option}; the file has {listed(columns)}", path)
    return found


def _clean(path: Path, line: int, column: str, value: Any) -> str:
    parts = [] if value is None else value if isinstance(value, list) else [value]
    for part in parts:
        if part is not None and not isinstance(part, str):
            raise DataError(f"expected a text or a list of texts in {column!r}; found {shortened(part)}", path, line)
    return " ".join(html.unescape(" ".join(part for part in parts if part)).split())


def _delimited(path: Path, separator: str) -> tuple[list[str], Iterator[_Row]]:
    def rows() -> Iterator[tuple[int, list[str]]]:
        quoting: Any = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, row
            except csv.Error as error:
                raise DataError(str(error), path, reader.line_num) from error

    lines = rows()
    _, header = next(lines)
    if len(set(header)) != len(header):
        raise DataError("a column's name occurs twice in the header", path, 1)

    def named() -> Iterator[_Row]:
        for line, row in lines:
            if len(row) != len(header):
                raise DataError(f"expected {len(header)} fields, as in the header; found {len(row)}", path, line)
            yield line, dict(zip(header, row, strict=True))

    return header, named()


class _Ambiguous(dict):
    """An object of JSON in which a name, `twice`, occurs a second time; within a line it may be of no interest."""

    twice: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) == len(pairs):
        return mapping
    ambiguous, names = _Ambiguous(mapping), [name for name, _ in pairs]
    ambiguous.twice = next(name for name in names if names.count(name) > 1)
    return ambiguous


def _json_lines(path: Path) -> tuple[list[str], Iterator[_Row]]:
    rows: list[_Row] = []
    with open(path, encoding="utf-8-sig") as file:
        for line, content in enumerate(file, start=1):
            if not content.strip():
                continue
            try:
                row = json.loads(content, object_pairs_hook=_object)
            except json.JSONDecodeError as error:
                raise DataError(f"not JSON: {error.msg} (column {error.colno})", path, line) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
                raise DataError(f"not usable JSON: {error}", path, line) from error
            if not isinstance(row, dict):
                raise DataError("expected an object", path, line)
            if isinstance(row, _Ambiguous):
                raise DataError(f"{shortened(row.twice)} occurs twice", path, line)
            rows.append((line, row))
    return list(dict.fromkeys(name for _, row in rows for name in row)), iter(rows)


def _parquet(path: Path) -> tuple[list[str], Iterator[_Row]]:
    try:
        frame = open_parquet(path).collect()
    except PARQUET_ERRORS as error:
        raise unreadable_parquet(path, error) from None
    return frame.columns, enumerate(frame.iter_rows(named=True), start=1)
