"""Random CSV files, written by several writers' rules and damaged, read here and by Python's csv module.

    python -m bench.fuzz_readers --files 100000 --seed 0 --out fuzz.jsonl

What is read must be what Python's csv module reads, and of an undamaged file what was written; else the file must be
refused. Quotes that were escaped with backslashes may by chance be right by RFC 4180, too, with another meaning: such
files are counted by themselves. With --skip_bad_lines what is left and what is left out must be the file's lines
together. Every difference is written as a line of JSON as soon as it is found, and its file is kept; the summary counts
the outcomes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from plr.errors import DataError
from plr.prepare import PrepareOptions
from plr.prepare.readers import Skipped
from plr.prepare.sources import SourceFiles

__all__ = ["Made", "check", "main", "make", "read_here", "read_there"]

Row = tuple[str, str, int]
NAMES = ["user_id", "item_id", "timestamp", "title", "note"]
PIECES = [
    "a", "word", "plain text", '"', '""', "'", "\\", '\\"', ",", ";", "\t", " ", "\n", "\r\n", '5" disk', '"quoted"',
    "é", "日本", '",', ',"', "#", "%", "0", "-", "NULL", "\\\\", "\\n",
]  # fmt: skip
DAMAGE = ['"', ",", ";", "\t", "\n", "\r\n", "\\", '""', ' "', '" ', "x", "\ufeff", "\x00", "\r"]


@dataclass(frozen=True)
class Made:
    """A file's bytes, the separator, how it was written, and the rows that were meant (None: it was damaged)."""

    content: bytes
    separator: str
    how: str
    rows: list[Row] | None
    has_line_ends: bool  # within fields


def make(seed: int) -> Made:
    """Return the file of this number."""
    draw = random.Random(seed)
    separator = draw.choice(",,,;\t")
    count = draw.choice([0, 1, 2, 3, 5, 8, 13, 20, 30, 60]) if draw.random() < 0.998 else 60_000
    odd_ids = draw.random() < 0.15
    plain = draw.random() < 0.3

    def text(longest: int = 4) -> str:
        return "" if plain else "".join(draw.choices(PIECES, k=draw.randint(0, longest)))

    def identifier(letter: str) -> str:
        odd = text(2).strip() if odd_ids else ""
        return f"{letter}{draw.randint(0, 9)}{odd}".strip()

    rows = [(identifier("u"), identifier("i"), 1_600_000_000 + draw.randint(0, 99)) for _ in range(count)]
    order = draw.sample(range(5), 5) if draw.random() < 0.7 else list(range(5))
    fields = [[(*row, text(), text())[place] for place in order] for row in rows]
    header = [NAMES[place] for place in order]
    how, write = draw.choice(list(WRITERS.items()))
    content = write(draw, header, fields, separator)
    ends = any("\n" in str(field) for row in fields for field in row)
    if draw.random() < 0.1:
        content = "\ufeff" + content
    data = content.encode()
    if draw.random() < 0.6:
        data, how, rows = _damaged(draw, data), how + ", damaged", None
    return Made(data, separator, how, rows, ends)


def _python(draw: random.Random, header: list[str], rows: list[list], separator: str) -> str:
    out = io.StringIO(newline="")
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    writer = csv.writer(out, delimiter=separator, lineterminator=draw.choice(["\n", "\r\n"]), quoting=quoting)
    writer.writerows([header, *rows])
    return out.getvalue()


def _polars(draw: random.Random, header: list[str], rows: list[list], separator: str) -> str:
    frame = pl.DataFrame(rows, schema=header, orient="row", strict=False)
    frame = frame if rows else pl.DataFrame(schema=dict.fromkeys(header, pl.String))
    style = draw.choice(["necessary", "always", "non_numeric"])
    return frame.write_csv(separator=separator, quote_style=style, line_terminator=draw.choice(["\n", "\r\n"]))


def _escaped(draw: random.Random, header: list[str], rows: list[list], separator: str) -> str:
    """As Spark writes by default: quotes within a quoted field behind a backslash, which itself is doubled or not."""
    doubled = draw.random() < 0.5

    def field(value: object) -> str:
        text = str(value).replace("\\", "\\\\") if doubled else str(value)
        needs = any(letter in text for letter in (separator, '"', "\n", "\r")) or not text
        return '"' + text.replace('"', '\\"') + '"' if needs else text

    return "".join(separator.join(map(field, row)) + "\n" for row in [header, *rows])


def _unescaped(draw: random.Random, header: list[str], rows: list[list], separator: str) -> str:
    """As hand-written exporters do: every text between quotes, and the quotes within as they are."""
    some = draw.random() < 0.5

    def field(value: object) -> str:
        return f'"{value}"' if not some or separator in str(value) or "\n" in str(value) else str(value)

    return "".join(separator.join(map(field, row)) + "\n" for row in [header, *rows])


def _unquoted(draw: random.Random, header: list[str], rows: list[list], separator: str) -> str:
    """Without any rule for quotes."""
    return "".join(separator.join(map(str, row)) + "\n" for row in [header, *rows])


WRITERS = {
    "Python's csv": _python, "polars": _polars, "backslashes": _escaped, "not escaped": _unescaped,
    "not quoted": _unquoted,
}  # fmt: skip
_LAST_LINE = re.compile(r"\(the record ends on line (\d+)\)")
_RETURN = re.compile("\r(?!\n)")  # is white space here, the end of a line for Python
TRUSTED = ("Python's csv", "polars")
"""Writers whose undamaged files must be read, not refused."""
OTHERWISE = "read otherwise than written, as RFC 4180 has it"
AMBIGUOUS = ("not escaped", "not quoted")
"""Writers of whose files some mean another thing than was written, whoever reads them."""


def _damaged(draw: random.Random, data: bytes) -> bytes:
    for _ in range(draw.choice([1, 1, 1, 2, 2, 3, 5])):
        at, length = draw.randint(0, len(data)), draw.choice([1, 1, 1, 2, 5, 20])
        piece = draw.choice(DAMAGE).encode()
        kind = draw.choice(["insert", "insert", "replace", "delete", "repeat", "cut", "twice"])
        if kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "replace":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "delete":
            data = data[:at] + data[at + length :]
        elif kind == "repeat":
            data = data[: at + length] + data[at:]
        elif kind == "twice":  # the same damage in two places, which hides from whoever counts quotes
            other = draw.randint(at, len(data))
            data = data[:at] + piece + data[at:other] + piece + data[other:]
        elif draw.random() < 0.3:
            data = data[:at]
    return data


def read_here(path: Path, skip_bad_lines: bool = False) -> tuple[list[Row], int]:
    """Return the rows as this project reads them, in the order of the file, and how many lines were left out.

    Raises:
        DataError: it refuses the file.
    """
    columns = {f"{role}_column": f"{name}" for role, name in zip(("user", "item", "timestamp"), NAMES, strict=False)}
    sources = SourceFiles([path], PrepareOptions(format="csv", **columns), skip_bad_lines=skip_bad_lines)
    interactions, _ = sources.read()
    sources.describe()
    if not len(interactions):
        return [], 0 if sources.skipped is None else _lines_left_out(sources.skipped)
    order = np.argsort(interactions.position)
    users, items = interactions.user_ids.to_list(), interactions.item_ids.to_list()
    columns = (interactions.user()[order], interactions.item[order], interactions.timestamp[order])
    numbers = zip(*(each.tolist() for each in columns), strict=True)
    rows = [(users[user], items[item], when) for user, item, when in numbers]
    return rows, 0 if sources.skipped is None else _lines_left_out(sources.skipped)


def _lines_left_out(skipped: Skipped) -> int:
    ends = (_LAST_LINE.search(entry["reason"]) for entry in skipped.lines)
    return skipped.count + sum(
        int(end[1]) - entry["line"] for entry, end in zip(skipped.lines, ends, strict=True) if end
    )


def read_there(data: bytes, separator: str) -> list[Row] | str:
    """Return the rows as Python's csv module reads them, or what stops it; ids without blanks around."""
    try:
        lines = io.StringIO(_RETURN.sub("\v", data.decode("utf-8-sig")), newline="")
        rows = [row for row in csv.reader(lines, delimiter=separator) if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        return str(error)
    try:
        places = [[name.strip() for name in rows[0]].index(name) for name in NAMES[:3]]
        chosen = ([row[place].strip() for place in places] for row in rows[1:])
        return [(user, item, _whole(when)) for user, item, when in chosen]
    except (ValueError, IndexError, OverflowError) as error:
        return str(error)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(float(text))


def check(seed: int, folder: Path) -> tuple[str, str | None]:
    """Make the file of a number in the folder and read it; returns the outcome, and what is wrong or None."""
    made = make(seed)
    packed = random.Random(seed).random() < 0.1
    path = folder / f"{seed}.csv"
    path.write_bytes(gzip.compress(made.content, 1) if packed else made.content)
    there = read_there(made.content, made.separator)
    outcome, problem = _compare(made, path, there)
    by_line = made.rows is not None and not made.has_line_ends and len(made.rows) < 100  # all left out are listed
    if problem is None and by_line and made.how not in AMBIGUOUS and outcome != OTHERWISE:
        problem = _with_lines_left_out(made, path, there)
    if problem is None:
        path.unlink()
    return f"{made.how}: {outcome}", problem


def _compare(made: Made, path: Path, there: list[Row] | str) -> tuple[str, str | None]:
    try:
        here, _ = read_here(path)
    except DataError as error:
        trusted = made.rows is not None and made.how in TRUSTED
        return "refused", f"refused though well formed: {error}" if trusted else None
    other = made.rows is not None and made.how not in AMBIGUOUS and _bare(here) != _bare(made.rows)
    if other and (made.how in TRUSTED or here != there):
        return "read", f"other rows than were written, the first difference {_difference(here, made.rows or [])}"
    outcome = OTHERWISE if other else "read"
    here = [(_RETURN.sub("\v", user), _RETURN.sub("\v", item), when) for user, item, when in here]
    if here != there:
        return outcome, f"other rows than Python reads: {there if isinstance(there, str) else _difference(here, there)}"
    return outcome, None


def _bare(rows: list[Row]) -> list[Row]:
    """Return rows without backslashes, which some writers double."""
    return [(user.replace("\\", ""), item.replace("\\", ""), when) for user, item, when in rows]


def _with_lines_left_out(made: Made, path: Path, there: list[Row] | str) -> str | None:
    """Read with --skip_bad_lines a file with a row a line: nothing but what was written, all accounted for."""
    try:
        here, skipped = read_here(path, skip_bad_lines=True)
    except DataError:
        return None
    more = Counter(_bare(here)) - Counter(_bare(made.rows))
    if more and not isinstance(there, str) and not more - Counter(_bare(there)):
        return None  # what was escaped means another thing by the rule, to Python too
    if more:
        return f"--skip_bad_lines invents {list(more)[:3]}"
    if len(here) + skipped != len(made.rows):
        return f"--skip_bad_lines: {len(here)} read and {skipped} left out of {len(made.rows)}"
    return None


def _difference(one: list[Row], other: list[Row]) -> str:
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{place}: {one[place : place + 1]} for {other[place : place + 1]} ({len(one)} rows for {len(other)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first file")
    parser.add_argument("--out", type=Path, default=Path("fuzz-readers.jsonl"), help="differences, then a summary")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-readers"), help="folder for the files that differ")
    arguments = parser.parse_args()
    arguments.keep.mkdir(parents=True, exist_ok=True)
    outcomes: Counter[str] = Counter()
    found, start, done = 0, time.perf_counter(), 0
    with open(arguments.out, "w", encoding="utf-8") as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def say(entry: dict) -> None:
            out.write(json.dumps(entry) + "\n")
            out.flush()

        try:
            with tempfile.TemporaryDirectory(prefix="plr-fuzz-") as scratch:
                for done, seed in enumerate(range(arguments.seed, arguments.seed + arguments.files), start=1):
                    try:
                        outcome, problem = check(seed, Path(scratch))
                    except Exception as error:  # whatever it is, it should have been a DataError
                        outcome, problem = "failed", f"{type(error).__name__}: {str(error)[:300]}"
                    outcomes[outcome] += 1
                    if problem is not None:
                        found += 1
                        (arguments.keep / f"{seed}.csv").write_bytes((Path(scratch) / f"{seed}.csv").read_bytes())
                        say({"seed": seed, "how": outcome, "problem": problem})
                    if done % 1000 == 0:
                        seconds = time.perf_counter() - start
                        print(f"{done:,} files, {found} differences, {seconds:.0f} s", file=sys.stderr, flush=True)
        finally:
            say({"files": done, "differences": found, "outcomes": dict(outcomes.most_common())})
    print(json.dumps({"files": done, "differences": found, "outcomes": dict(outcomes.most_common())}, indent=2))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
