"""Text with a header: CSV (comma, semicolon or tab) and RecBole's atomic ``.inter`` files."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from plr.errors import DataError
from plr.prepare.readers.columns import Columns, find_columns, read_columns
from plr.prepare.readers.lines import CONTROL_BYTES
from plr.prepare.readers.source import IdVocabulary, Skipped, Source, forbidden_bytes, open_plain, unreadable

__all__ = ["read_csv", "read_recbole", "records", "separator_of", "without_bad_records"]

_BLOCK = 1 << 22
_LONGEST_RECORD = 1000  # lines; a quote that is not closed within is taken for a stray one
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_NEVER_CLOSED = 'a quote (") is opened and never closed'
_CLOSED_EARLY = 'a quote (") is opened, and closed before the end of its field'
_WITHIN = 'a quote (") stands within a field that does not begin with one'


def read_csv(path: Path, columns: Columns, vocabulary: IdVocabulary, skipped: Skipped | None = None) -> Source:
    """Read a CSV with a header, separated by whichever of comma, semicolon and tab the header has most of.

    Fields may be quoted with ``"``. A line whose every field is empty is left out.

    Raises:
        DataError: as ``find_columns`` and ``read_columns``, and for a line with more fields than the header.
    """
    line, header = next(records(path, quoted=True), (1, ""))
    if header.count('"') % 2:
        raise DataError(_NEVER_CLOSED, path, line)
    return _read(path, columns, separator_of(header), True, vocabulary, skipped)


def read_recbole(path: Path, columns: Columns, vocabulary: IdVocabulary, skipped: Skipped | None = None) -> Source:
    """Read a tab separated file with a header like ``user_id:token``, ``item_id:token``, ``rating:float``.

    Raises:
        DataError: as ``find_columns`` and ``read_columns``, and for a line with more fields than the header.
    """
    return _read(path, columns, "\t", False, vocabulary, skipped)


def separator_of(header: str) -> str:
    """Return the separator of a CSV with this header line."""
    return max(",;\t", key=header.count)


def _read(
    path: Path, columns: Columns, separator: str, quoted: bool, vocabulary: IdVocabulary, skipped: Skipped | None
) -> Source:
    def scan(types: Mapping[str, pl.DataType] | None = None) -> pl.LazyFrame:
        return pl.scan_csv(
            path,
            separator=separator,
            quote_char='"' if quoted else None,
            infer_schema=False,
            schema_overrides=types,
            glob=False,
        )

    def lines_of(rows: np.ndarray) -> list[int]:
        lines = next(records(path, quoted))[0] + 1 + rows
        if not quoted or not _has_quotes(path, int(lines[-1])):  # every line is a record
            return lines.tolist()
        wanted, found = set((rows + 1).tolist()), []  # record 0 is the header
        for record, (line, _) in enumerate(records(path, quoted)):
            if record in wanted:
                found.append(line)
                if len(found) == len(wanted):
                    break
        return found

    try:
        table = scan()
        names = table.collect_schema().names()
        found = find_columns(names, columns, path)
        for name in found.values():
            if f"{name}_duplicated_0" in names:  # so polars calls the second one
                line, _ = next(records(path, quoted))
                raise DataError(f"the header has the column {name!r} more than once", path, line)
        return read_columns(path, table, found, lines_of, vocabulary, True, skipped, scan)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _malformed(path, separator, quoted, error) from error


def records(path: Path, quoted: bool) -> Iterator[tuple[int, str]]:
    """Yield (first line, text) of the header and of every record after it, blank ones too.

    A quoted field may span lines; blank lines before the header are left out.
    """
    with io.TextIOWrapper(open_plain(path), encoding="utf-8-sig", newline="\n") as file:
        start, parts, open_quote, seen = 1, [], False, False
        for number, line in enumerate(file, start=1):
            start = start if parts else number
            parts.append(line)
            open_quote ^= quoted and line.count('"') % 2 == 1
            if open_quote:
                continue
            record = "".join(parts).rstrip("\r\n")
            parts.clear()
            seen = seen or bool(record.strip())
            if seen:
                yield start, record
        if parts:
            yield start, "".join(parts).rstrip("\r\n")


def _has_quotes(path: Path, last_line: int) -> bool:
    """Return whether there is a quote in the blocks that hold the lines up to ``last_line`` (1-based)."""
    ended = 0
    with open_plain(path) as file:
        while ended < last_line and (block := file.read(_BLOCK)):
            if b'"' in block:
                return True
            ended += int(np.count_nonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")))
    return False


def fields_of(record: str, separator: str, quoted: bool) -> int:
    """Return how many fields a record has."""
    return (re.sub(r'"[^"]*"', "", record) if quoted else record).count(separator) + 1


def _misquoted(record: str, separator: str) -> str | None:
    """Return what is wrong with the quotes of a record that ends with all of them closed, or None."""
    place = 0
    while place < len(record):  # a field begins here
        if record[place] == '"':
            closed = _QUOTED.match(record, place)
            place = len(record) if closed is None else closed.end()
            if place < len(record) and record[place] != separator:
                return _CLOSED_EARLY
        else:
            end = record.find(separator, place)
            end = len(record) if end < 0 else end
            if record.find("\n", place, end) >= 0:  # only a quote takes the record beyond its line
                return _WITHIN
            place = end
        place += 1
    return None


def _malformed(path: Path, separator: str, quoted: bool, error: Exception) -> DataError:
    """Find the line that polars could not read: slow, but only for a file that is refused anyway."""
    expected = None
    try:
        for line, record in records(path, quoted):
            if quoted and record.count('"') % 2:
                return DataError(_NEVER_CLOSED, path, line)
            if quoted and (problem := _misquoted(record, separator)):
                return DataError(problem, path, line)
            fields = fields_of(record, separator, quoted)
            if expected is None:
                expected = fields
            elif fields > expected:
                return DataError(f"{fields} fields; the header has {expected}", path, line)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return unreadable(path, error)
    return DataError(f"cannot be read: {str(error).splitlines()[0]}", path)


def without_bad_records(source: Path, target: Path, file_format: str, skipped: Skipped) -> None:
    """Copy a text file, leaving out the records that make the whole file unreadable.

    Those are: bytes that are not UTF-8, a zero byte (without a header: any of CONTROL_BYTES), more fields than the
    header, a quote that is never closed, closed before its field ends, or opened within a field (the line where it is
    opened alone is left out), and what follows where a compressed file is damaged or cut off. In the copy every record
    stands on the line it had.

    Raises:
        DataError: it is the header that is unreadable.
    """
    judge = _Judge(file_format)
    with open_plain(source) as file, open(target, "wb") as copy:
        lines = _lines(source, file, skipped)
        ahead: deque[bytes] = deque()  # lines that were read in search of the end of a quote
        number = 1
        while True:
            record: list[bytes] = []
            while (line := ahead.popleft() if ahead else next(lines, None)) is not None:
                record.append(line)
                if not judge.is_open(record) or len(record) == _LONGEST_RECORD:
                    break
            if not record:
                return
            reason = judge.reason(record)
            if reason is None:
                copy.writelines(record)
            elif judge.needs_header:
                raise DataError(reason, source, number)
            else:
                if reason in (_NEVER_CLOSED, _CLOSED_EARLY, _WITHIN):
                    ahead.extendleft(reversed(record[1:]))
                    del record[1:]
                skipped.add(source, number, reason)
                copy.write(b"\n" * len(record))
            number += len(record)


class _Judge:
    """Says of the records of one file, header first where it has one, whether they can be read."""

    def __init__(self, file_format: str) -> None:
        self.quoted = file_format == "csv"
        self.needs_header = file_format in ("csv", "recbole")
        self._forbidden = b"\0" if self.needs_header else CONTROL_BYTES
        self._separator = "\t"
        self._fields: int | None = None  # of the header
        self._first = True

    def is_open(self, record: list[bytes]) -> bool:
        """Return whether a quote is open at the end."""
        return self.quoted and sum(line.count(b'"') for line in record) % 2 == 1

    def reason(self, record: list[bytes]) -> str | None:
        """Return what is wrong with a record, or None."""
        whole, first = b"".join(record), self._first
        self._first = False
        try:
            text = whole.decode("utf-8-sig" if first else "utf-8")
        except UnicodeDecodeError as error:
            return f"byte 0x{whole[error.start]:02x} is not UTF-8"
        for byte in forbidden_bytes(whole, self._forbidden)[:1]:
            return f"byte 0x{byte:02x} does not belong in a text file"
        text = text.rstrip("\r\n")
        if self.quoted and text.count('"') % 2:
            return _NEVER_CLOSED
        if not text.strip() or not (self.needs_header or self._fields):
            return None
        if self.needs_header and self.quoted:
            self._separator = separator_of(text)
        if self.quoted and (problem := _misquoted(text, self._separator)):
            return problem
        fields = fields_of(text, self._separator, self.quoted)
        if self.needs_header:
            self._fields, self.needs_header = fields, False
        return f"{fields} fields; the header has {self._fields}" if fields > self._fields else None


def _lines(path: Path, file: BinaryIO, skipped: Skipped) -> Iterator[bytes]:
    """Yield the lines; where a compressed file is damaged or cut off, end with a note."""
    number = 0
    try:
        for line in file:
            number += 1
            yield line
    except EOFError:
        skipped.add(path, number + 1, "the gzip file ends here: it was cut off")
    except (zlib.error, gzip.BadGzipFile) as error:
        skipped.add(path, number + 1, f"the gzip file cannot be read from here on: {error}")
