"""Text with a header: CSV (comma, semicolon or tab) and RecBole's atomic ``.inter`` files."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl

from plr.errors import DataError
from plr.prepare.readers.columns import Columns, find_columns, look_at_others, read_columns
from plr.prepare.readers.lines import CONTROL_BYTES
from plr.prepare.readers.packed import DAMAGED, UNREADABLE, open_plain, packing
from plr.prepare.readers.quotes import CLOSED_EARLY, LONGEST, NEVER_CLOSED, REMEDY, TOO_LONG, WITHIN, RecordScan, follow
from plr.prepare.readers.source import (
    MARKS,
    IdVocabulary,
    Skipped,
    Source,
    about_comment,
    forbidden_bytes,
    unreadable,
)

__all__ = ["read_csv", "read_recbole", "records", "separator_of", "without_bad_records"]

ENDS = " (the record ends on line {})"
_BLOCK = 1 << 22


def read_csv(path: Path, columns: Columns, vocabulary: IdVocabulary, skipped: Skipped | None = None) -> Source:
    """Read a CSV with a header, separated by whichever of comma, semicolon and tab the header has most of.

    Fields may be quoted with ``"``. A line whose every field is empty is left out.

    Raises:
        DataError: as ``find_columns`` and ``read_columns``, and for a line with more fields than the header.
    """
    line, header = header_of(path)
    if problem := _misquoted(header.encode(), separator_of(header)):
        raise DataError(problem + REMEDY, path, line)
    if _ends_with_opening(path, separator_of(header)):
        raise _malformed(path, separator_of(header), True, ValueError(NEVER_CLOSED))
    return _read(path, columns, separator_of(header), True, vocabulary, skipped)


def read_recbole(path: Path, columns: Columns, vocabulary: IdVocabulary, skipped: Skipped | None = None) -> Source:
    """Read a tab separated file with a header like ``user_id:token``, ``item_id:token``, ``rating:float``.

    Raises:
        DataError: as ``find_columns`` and ``read_columns``, and for a line with more fields than the header.
    """
    return _read(path, columns, "\t", False, vocabulary, skipped)


def _ends_with_opening(path: Path, separator: str) -> bool:
    """Return whether a file that is not packed ends with a quote that begins a field, at which polars panics."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2))
        return file.read() in (separator.encode() + b'"', b'\n"')


def separator_of(header: str) -> str:
    """Return the separator of a CSV with this header line: what stands in quoted names parts nothing."""
    return max(",;\t", key=re.sub(r'"(?:[^"]|"")*"', "", header).count)


def header_of(path: Path) -> tuple[int, str]:
    """Return line and text of a CSV's header: the first line that is not blank, and those that its quotes join."""
    with io.TextIOWrapper(open_plain(path), encoding="utf-8-sig", newline="\n") as file:
        start, header = 1, ""
        for number, line in enumerate(file, start=1):
            start, header = (start, header + line) if header else (number, line)
            if header.strip() and header.count('"') % 2 == 0:
                break
            header = header if header.strip() else ""
            if number - start >= LONGEST:
                break
        return start, header.rstrip("\r\n")


def record_scan(path: Path, file_format: str) -> RecordScan | None:
    """Return what counts the records of a file independently of the parser; None for formats that need none."""
    if file_format == "recbole":
        return RecordScan(path, "\t", False)
    if file_format != "csv":
        return None
    try:
        return RecordScan(path, separator_of(header_of(path)[1]), True)
    except (*UNREADABLE, UnicodeDecodeError):
        return None  # what stops reading, too


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
        lines = next(records(path, separator, quoted))[0] + 1 + rows
        if not quoted or not _has_quotes(path, int(lines[-1])):  # every line is a record
            return lines.tolist()
        wanted, found = set((rows + 1).tolist()), []  # record 0 is the header
        for record, (line, _) in enumerate(records(path, separator, quoted)):
            if record in wanted:
                found.append(line)
                if len(found) == len(wanted):
                    break
        return found

    try:
        table = scan()
        names = table.collect_schema().names()
        found = _find_columns(names, columns, path)
        for name in found.values():
            if f"{name}_duplicated_0" in names:  # so polars calls the second one
                line, _ = next(records(path, separator, quoted))
                raise DataError(f"the header has the column {name!r} more than once", path, line)
        look_at_others(path, table, found, columns, header_of(path)[0])
        noted = 0 if skipped is None else len(skipped.lines)
        source = read_columns(path, table, found, lines_of, vocabulary, True, skipped, scan)
        if quoted and skipped is not None:
            _note_ends(path, separator, skipped.lines[noted:])
        return source
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _malformed(path, separator, quoted, error) from error


def _find_columns(names: list[str], columns: Columns, path: Path) -> dict[str, str]:
    """Find the columns in the header; where it has none, say whether the first line is a header at all."""
    with open_plain(path) as file:
        numbered = enumerate((line.decode("utf-8-sig", errors="replace") for line in file), start=1)
        line, first = next(((number, text.strip()) for number, text in numbered if text.strip("\r\n")), (1, ""))
    try:
        return find_columns(names, columns, path, line)
    except DataError:
        if not first.strip(",;\t \""):
            raise DataError("the line is blank, where the header should be; delete it", path, line) from None
        if first[0] in MARKS:
            raise DataError(
                f"the line begins with {first[0]!r}, as comments do, where the header should be; delete it", path, line
            ) from None
        raise


def records(path: Path, separator: str, quoted: bool) -> Iterator[tuple[int, str]]:
    """Yield (first line, text) of the header and of every record after it, blank ones too.

    A quoted field may span lines; blank lines before the header are left out. Where a quote is misplaced the record
    ends with that line.
    """
    with open_plain(path) as file:
        parts: list[bytes] = []
        start, inside, seen = 1, False, False
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            start = start if parts else number
            parts.append(line)
            if quoted:
                inside, wrong, _ = follow(line, separator.encode(), inside)
                if inside and not wrong:
                    continue
            record = b"".join(parts).decode().rstrip("\r\n")
            parts.clear()
            seen = seen or bool(record.strip())
            if seen:
                yield start, record
        if parts:
            yield start, b"".join(parts).decode().rstrip("\r\n")


def _note_ends(path: Path, separator: str, left_out: list[dict[str, Any]]) -> None:
    """Add to what is said of records that are left out where they end, of those of several lines."""
    of_line = {entry["line"]: entry for entry in left_out if entry["line"] is not None}
    if not of_line or not _has_quotes(path, max(of_line)):
        return
    for line, record in records(path, separator, True):
        if (entry := of_line.pop(line, None)) is not None and "\n" in record:
            entry["reason"] += ENDS.format(line + record.count("\n"))
        if not of_line:
            return


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
    whole = rf'(^|{separator})"(?:[^"]|"")*"'
    return (re.sub(whole, r"\1", record) if quoted else record).count(separator) + 1


def _misquoted(record: bytes, separator: str) -> str | None:
    """Return what is wrong with the quotes of a record, or None."""
    inside, wrong, _ = follow(record, separator.encode(), False)
    return NEVER_CLOSED if wrong is None and inside else wrong


def _malformed(path: Path, separator: str, quoted: bool, error: Exception) -> DataError:
    """Find the line that polars could not read: slow, but only for a file that is refused anyway."""
    expected = None
    try:
        for line, record in records(path, separator, quoted):
            if quoted and (problem := _misquoted(record.encode(), separator)):
                return DataError(problem + REMEDY, path, line)
            fields = fields_of(record, separator, quoted)
            if expected is None:
                expected = fields
            elif fields > expected:
                comment = about_comment(record)
                return DataError(f"{fields} fields; the header has {expected}{comment}", path, line)
    except (*UNREADABLE, UnicodeDecodeError):
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
            inside, wrong = False, None
            while (line := ahead.popleft() if ahead else next(lines, None)) is not None:
                record.append(line)
                inside, wrong = judge.follow(line, inside)
                if wrong or not inside:
                    break
                if len(record) > LONGEST:
                    wrong = TOO_LONG
                    break
            if not record:
                return
            reason = wrong or (NEVER_CLOSED if inside else judge.reason(b"".join(record)))
            if reason is None:
                copy.writelines(record)
            elif judge.needs_header:
                raise DataError(reason, source, number)
            else:
                if reason in (NEVER_CLOSED, CLOSED_EARLY, TOO_LONG, WITHIN):
                    ahead.extendleft(reversed(record[1:]))
                    del record[1:]
                beyond = "" if len(record) == 1 else ENDS.format(number + len(record) - 1)
                skipped.add(source, number, reason + beyond)
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

    def follow(self, line: bytes, inside: bool) -> tuple[bool, str | None]:
        """Return whether a quote is open at the end of a line, and what is wrong with its quotes or None."""
        if not self.quoted:
            return False, None
        if self.needs_header:  # which tells the separator
            return inside ^ (line.count(b'"') % 2 == 1), None
        return follow(line, self._separator.encode(), inside)[:2]

    def reason(self, record: bytes) -> str | None:
        """Return what is wrong with a record, or None."""
        first, self._first = self._first, False
        try:
            text = record.decode("utf-8-sig" if first else "utf-8")
        except UnicodeDecodeError as error:
            return f"byte 0x{record[error.start]:02x} is not UTF-8"
        for byte in forbidden_bytes(record, self._forbidden)[:1]:
            return f"byte 0x{byte:02x} does not belong in a text file"
        text = text.rstrip("\r\n")
        if not text.strip() or not (self.needs_header or self._fields):
            return None
        if self.needs_header and self.quoted:
            self._separator = separator_of(text)
        if self.quoted and (problem := _misquoted(text.encode(), self._separator)):
            return problem
        fields = fields_of(text, self._separator, self.quoted)
        if self.needs_header or self._fields is None:
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
        skipped.add(path, number + 1, f"the {packing(path)} file ends here: it was cut off")
    except DAMAGED as error:
        skipped.add(path, number + 1, f"the {packing(path)} file cannot be read from here on: {error}")
