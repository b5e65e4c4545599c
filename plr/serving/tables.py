"""Tables that are written in parts, and joined to one file: Parquet, CSV, JSON lines."""

from __future__ import annotations

import gzip
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import polars as pl

from plr.errors import ConfigError, shortened

__all__ = ["TableFormat", "table_format"]


class TableFormat(NamedTuple):
    """How a table is written.

    Attributes:
        suffix: of the file's name.
        write_part: write some rows to a new file.
        join: make a file of the parts in their order; memory does not grow with them.
    """

    suffix: str
    write_part: Callable[[pl.DataFrame, Path], None]
    join: Callable[[Sequence[Path], Path], None]


def table_format(path: Path) -> TableFormat:
    """Return the format that a file's name asks for.

    Raises:
        ConfigError: it asks for none that is known.
    """
    for suffix, known in _FORMATS.items():
        if path.name.lower().endswith(suffix) and path.name.lower() != suffix:
            return known
    raise ConfigError(f"--out must end in {', '.join(_FORMATS)}; found {shortened(path.name)}")


def _join_parquet(parts: Sequence[Path], path: Path) -> None:
    pl.scan_parquet(list(parts), glob=False).sink_parquet(path, maintain_order=True)


def _text(suffix: str, write: Callable[[pl.DataFrame, BinaryIO], None], header: bool) -> TableFormat:
    """A format of lines: parts are joined as they are, packed ones too, since gzip's members may follow each other."""
    packed = suffix.endswith(".gz")

    def write_part(frame: pl.DataFrame, path: Path) -> None:
        buffer = io.BytesIO()
        write(frame, buffer)
        _write(buffer.getvalue(), path)

    def _write(content: bytes, path: Path) -> None:
        path.write_bytes(gzip.compress(content, compresslevel=6, mtime=0) if packed else content)

    def join(parts: Sequence[Path], path: Path) -> None:
        first = b""
        if header:
            first = ",".join(_COLUMNS).encode() + b"\n"
        _write(first, path)
        with open(path, "ab") as out:
            for part in parts:
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)

    return TableFormat(suffix, write_part, join)


def _write_csv(frame: pl.DataFrame, file: BinaryIO) -> None:
    frame.write_csv(file, include_header=False)


def _write_json_lines(frame: pl.DataFrame, file: BinaryIO) -> None:
    frame.write_ndjson(file)


_COLUMNS = ("user", "item", "rank", "score", "source")
_FORMATS = {
    ".parquet": TableFormat(".parquet", lambda frame, path: frame.write_parquet(path), _join_parquet),
    ".csv": _text(".csv", _write_csv, header=True),
    ".csv.gz": _text(".csv.gz", _write_csv, header=True),
    ".jsonl": _text(".jsonl", _write_json_lines, header=False),
    ".jsonl.gz": _text(".jsonl.gz", _write_json_lines, header=False),
}
