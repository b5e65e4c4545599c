"""Feature files -> FeatureFields of the data's items."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from plr.errors import DataError, listed, shortened
from plr.items.item_data import FeatureField
from plr.prepare.readers.parquet import PARQUET_ERRORS, open_parquet, unreadable_parquet

__all__ = ["read_features"]

_NOT_BY_DEFAULT = ("title", "text")
_ONLY_FIELD = "attributes"  # the name of the field of a file that names none

_Values = dict[str, list[str]]  # item id -> its values


def read_features(
    path: Path, item_ids: Sequence[str] | pl.Series, fields: Iterable[str] | None = None
) -> tuple[FeatureField, ...]:
    """Read the values of each field for the items with these ids.

    Values are compared as stripped strings; an item's equal values count once, empty ones not at all. An item that is
    not in the file has no value in any field. Values are numbered in sorted order, those of the items asked for only.

    Args:
        path: JSON, {item: [value ...]} (one field, named "attributes") or {item: {field: value or [value ...]}}; or
            Parquet with a column item_id and columns of strings or lists of strings; or a folder with such a file
            called items.parquet.
        item_ids: of items 0..V-1.
        fields: which fields, in the order of the result; None takes all but title and text, in the file's order, of
            Parquet those of strings or lists of strings.

    Raises:
        DataError: the file cannot be used, holds none of the items, or has no value of theirs in a field.

    Warns:
        UserWarning: naming the columns of Parquet that None does not take for their type.
    """
    path = path / "items.parquet" if path.is_dir() else path
    if not path.is_file():
        raise DataError("no such file of item features", path)
    read = {".json": _read_json, ".parquet": _read_parquet}.get(path.suffix.lower())
    if read is None:
        raise DataError(f"item features are read from .json and .parquet; found {path.suffix or 'no suffix'}", path)
    in_file, table = read(path, None if fields is None else list(fields))
    if not in_file.intersection(item_ids):
        raise DataError(
            f"none of the data's {len(item_ids)} items is in the file; the data have items like "
            f"{_examples(item_ids)}, the file {_examples(sorted(in_file))}",
            path,
        )
    return tuple(_field(path, name, values, item_ids) for name, values in table.items())


def _field(path: Path, name: str, values_of: _Values, item_ids: Sequence[str] | pl.Series) -> FeatureField:
    of_items = [sorted({value.strip() for value in values_of.get(item, [])} - {""}) for item in item_ids]
    number_of = {value: number for number, value in enumerate(sorted({v for values in of_items for v in values}))}
    if not number_of:
        raise DataError(f"no item of the data has a value in field {name!r}", path)
    counts = torch.tensor([len(values) for values in of_items])
    return FeatureField(
        name,
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        values=torch.tensor([number_of[value] for values in of_items for value in values]),
        value_names=tuple(number_of),
    )


def _read_json(path: Path, chosen: list[str] | None) -> tuple[set[str], dict[str, _Values]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} (column {error.colno})", path, error.lineno) from error
    except (ValueError, RecursionError) as error:  # a name twice, not UTF-8, huge numbers, lists in lists in lists
        raise DataError(f"not usable JSON: {error}", path) from error
    if not isinstance(content, dict) or not content:
        raise DataError("expected an object {item: values}, not empty", path)
    bare = {item.strip(): entry for item, entry in content.items()}
    if len(bare) != len(content):
        twice = next(item for item, count in Counter(item.strip() for item in content).items() if count > 1)
        raise DataError(f"item {shortened(twice)} occurs twice, but for white space around it", path)
    content = bare
    kinds = {type(entry) for entry in content.values()}
    if kinds == {list}:
        content = {item: {_ONLY_FIELD: values} for item, values in content.items()}
    elif kinds != {dict}:
        odd = next((i for i, entry in content.items() if not isinstance(entry, list | dict)), None)
        found = "lists and objects mixed" if odd is None else f"{shortened(content[odd])} for item {shortened(odd)}"
        raise DataError(f"expected a list for every item, or an object of fields for every item; found {found}", path)
    known = list(dict.fromkeys(field for entry in content.values() for field in entry))
    fields = _choose(path, chosen, known, [name for name in known if name not in _NOT_BY_DEFAULT])
    table = {
        field: {item: _strings(path, item, field, entry.get(field)) for item, entry in content.items()}
        for field in fields
    }
    return set(content), table


def _read_parquet(path: Path, chosen: list[str] | None) -> tuple[set[str], dict[str, _Values]]:
    try:
        frame = open_parquet(path).collect()
    except PARQUET_ERRORS as error:
        raise unreadable_parquet(path, error) from None
    if "item_id" not in frame.columns:
        raise DataError(f"no column 'item_id'; the file has {listed(frame.columns)}", path)
    items = frame["item_id"].cast(pl.String).str.strip_chars()
    if items.null_count():
        raise DataError("no item_id", path, int(items.is_null().arg_max() or 0) + 1)
    if not items.is_unique().all():
        twice = items.filter(items.is_duplicated())[0]
        raise DataError(f"item {twice!r} has several rows; one row per item is expected", path)
    textual = (pl.String, pl.Categorical, pl.Enum)
    usable = [
        name
        for name, dtype in frame.schema.items()
        if name not in ("item_id", *_NOT_BY_DEFAULT)
        and (isinstance(dtype, textual) or (isinstance(dtype, pl.List) and isinstance(dtype.inner, textual)))
    ]
    odd = [name for name in frame.columns if name not in ("item_id", *_NOT_BY_DEFAULT, *usable)]
    if chosen is None and usable and odd:
        warnings.warn(
            f"{path}: left out as item features, for they hold no strings: {listed(odd)}; feature_fields takes those "
            "of whole numbers, too",
            stacklevel=2,
        )
    table: dict[str, _Values] = {}
    for field in _choose(path, chosen, [name for name in frame.columns if name != "item_id"], usable):
        column = frame[field]
        plain = column.dtype.inner if isinstance(column.dtype, pl.List) else column.dtype
        if not (isinstance(plain, textual) or plain.is_integer()):
            raise DataError(f"field {field!r} must hold strings, whole numbers or lists of them; it is {column.dtype}",
                            path)  # fmt: skip
        table[field] = {
            item: _strings(path, item, field, value) for item, value in zip(items, column.to_list(), strict=True)
        }
    return set(items), table


def _choose(path: Path, chosen: list[str] | None, known: list[str], default: list[str]) -> list[str]:
    for field in chosen or []:
        if field not in known:
            raise DataError(f"no field {field!r}; the file has {listed(known) or 'none'}", path)
    fields = default if chosen is None else list(dict.fromkeys(chosen))
    if not fields:
        raise DataError(f"no field to use; the file has {listed(known) or 'none'}", path)
    return fields


def _strings(path: Path, item: str, field: str, value: Any) -> list[str]:
    values = [] if value is None else value if isinstance(value, list) else [value]
    for each in values:
        if each is not None and (not isinstance(each, str | int) or isinstance(each, bool)):
            raise DataError(f"item {item!r}, field {field!r}: expected strings or whole numbers; found {each!r}", path)
    return [str(each) for each in values if each is not None]


class DuplicateKeyError(ValueError):
    pass


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a mapping, as `object_pairs_hook` of json.

    Raises:
        DuplicateKeyError: a name occurs twice; JSON would take the last of its values.
    """
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKeyError(f"{next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return mapping


def _examples(names: Sequence[str] | pl.Series) -> str:
    return ", ".join(map(repr, names[:3]))
