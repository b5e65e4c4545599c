"""Which format a file or folder has: by its name, and for other names by its first lines."""

from __future__ import annotations

import re
from pathlib import Path

from plr.errors import DataError
from plr.prepare.readers.columns import Columns, find_columns
from plr.prepare.readers.delimited import separator_of
from plr.prepare.readers.movielens import is_movielens
from plr.prepare.readers.packed import PARQUET, SUFFIXES, UNREADABLE, is_parquet, open_plain
from plr.prepare.readers.source import MARKS, unreadable
from plr.prepare.timestamps import unit_of

__all__ = ["detect_format", "find_interactions"]

_EXTENSIONS = {".inter": "recbole", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
_HEAD = 1 << 16
_TYPED = re.compile(r".+:(token|float)(_seq)?")


_USUAL_FILES = ("ratings.dat", "u.data", "ratings.csv", "ratings.csv.gz", "ratings.csv.zst", "*.inter")
_FOLDERS = ("state.json", "dataset_dict.json")


def find_interactions(path: Path) -> Path:
    """Return the file of interactions that ``path`` means: itself, or in a folder the one with a usual name.

    Raises:
        DataError: there is none, or several.
    """
    if not path.is_dir() or any((path / name).is_file() for name in _FOLDERS):
        return path
    found = sorted({file for name in _USUAL_FILES for file in path.glob(name)})
    if len(found) == 1:
        return found[0]
    listed = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "nothing"
    problem = f"several files of interactions ({', '.join(file.name for file in found)})" if found else "not a file"
    raise DataError(
        f"{problem}; name one. A folder is accepted when it is a prepared set, a data set of Hugging Face or holds one "
        f"of {', '.join(_USUAL_FILES)}; it holds {listed}",
        path,
    )


def detect_format(path: Path) -> str:
    """Return one of FORMATS, of a file by its name and its first lines, of a folder by the files in it.

    What begins as Parquet does is Parquet whatever its name. A text file is RecBole's when its first line holds
    ``name:type``; MovieLens' when it holds ``user::item::rating::timestamp``; CSV when that line names a user and an
    item column or is a comma separated line without spaces; pairs when every one of its first lines (64 KiB) has two
    fields; else sequences.

    Raises:
        DataError: it cannot be read, or what parts its columns is none of these.
    """
    if path.is_dir():
        return "huggingface"
    if is_parquet(path):
        return "parquet"
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in SUFFIXES]
    if suffixes and (known := _EXTENSIONS.get(suffixes[-1])) is not None:
        return known
    try:
        with open_plain(path) as file:
            head = file.read(_HEAD)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if head.startswith(PARQUET):
        return "parquet"  # packed: refused when it is read
    lines = [line for line in head.decode("utf-8-sig", errors="replace").split("\n") if line.strip()]
    if not lines:
        return "sequences"
    if len(head) == _HEAD and len(lines) > 1:
        lines.pop()  # cut in the middle
    lines = [line for line in lines if line.lstrip()[0] not in MARKS] or lines  # those of comments are refused later
    first = lines[0]
    if any(_TYPED.fullmatch(name) for name in first.split()):
        return "recbole"
    if is_movielens(path, first):
        return "movielens"
    if _is_header(first) or ("," in first and len(first.split()) == 1):
        return "csv"
    if len(head) == _HEAD and len(lines) == 1:
        return "sequences"  # no two ids are that long
    if all(_is_rated(line.split()) for line in lines):
        raise DataError(
            "four columns without a header, which look like user, item, rating and time. Where tabs part them, give "
            "--format movielens; else add a header such as user_id,item_id,rating,timestamp and part them by commas",
            path,
        )
    if all(_is_parted_by_more(line.split()) for line in lines):
        raise DataError(
            "the ids of each line end with commas or semicolons, which would count as part of them: of `user item item "
            "…` ids are parted by white space alone, and a table of interactions has a header such as user_id,item_id. "
            "Where they are part of the ids, name the format with --format",
            path,
        )
    return "pairs" if all(len(line.split()) == 2 for line in lines) else "sequences"


def _is_parted_by_more(fields: list[str]) -> bool:
    """Return whether the ids of a line are parted by commas or semicolons and white space: ``u, a, b``, ``u: a, b``."""
    middle = fields[1:-1] or fields[:-1]
    return bool(middle) and all(field[-1] in ",;" for field in middle)


def _is_rated(fields: list[str]) -> bool:
    """Return whether a line has four fields, of which the third may be a rating and the fourth a time."""
    if len(fields) != 4:
        return False
    try:
        return 0 <= float(fields[2]) <= 10 and unit_of(float(fields[3])) is not None
    except ValueError:
        return False


def _is_header(line: str) -> bool:
    try:
        find_columns([name.strip('"') for name in line.split(separator_of(line))], Columns(), Path())
    except DataError:
        return False
    return True
