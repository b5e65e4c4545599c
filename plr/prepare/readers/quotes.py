"""Quotes in delimited text, as RFC 4180 has them: where a record ends, and the first quote that breaks the rule.

A field that begins with a quote ends with the next one that is not doubled, and then comes a separator or the end of
the line. In any other field quotes are letters. There must be an even number of them in a field: the parser takes what
is between two for quoted, a separator too.
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np

from plr.errors import DataError
from plr.prepare.compiled import _cpp
from plr.prepare.readers.packed import UNREADABLE, open_plain

__all__ = ["CLOSED_EARLY", "LONGEST", "NEVER_CLOSED", "REMEDY", "TOO_LONG", "WITHIN", "RecordScan", "follow"]

LONGEST = 1000
"""Lines that a quoted field may span; a quote that is not closed within is taken for a stray one."""
NEVER_CLOSED = 'a quote (") is opened and never closed'
CLOSED_EARLY = 'a quote (") is opened, and closed before the end of its field'
TOO_LONG = f'a quote (") is opened and not closed within {LONGEST:,} lines'
WITHIN = 'a quote (") stands within a field that does not begin with one'

REMEDY = '; write a quote within a quoted field twice (""), or leave such lines out with plr prepare --skip_bad_lines'
_PROBLEMS = ("", CLOSED_EARLY, NEVER_CLOSED, TOO_LONG, WITHIN)  # by the number that a scan has for each
_BLOCK = 1 << 22
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_Compiled = getattr(_cpp, "RecordScan", None)  # of an extension that was built before there was one: None


def follow(line: bytes, separator: bytes, inside: bool) -> tuple[bool, str | None, bool]:
    """Follow the quotes of a line, which may begin inside a quoted field.

    Returns:
        Whether it ends inside one; what is wrong or None; whether the last quoted field in it begins on this line.
    """
    at, here = 0, False
    while True:  # inside a quoted field, or where a field begins
        if not inside and line.startswith(b'"', at):
            inside, at, here = True, at + 1, True
        if inside:
            at = line.find(b'"', at) + 1
            if not at:
                return True, None, here
            if line.startswith(b'"', at):
                at += 1
                continue
            inside = False
            if line[at:] in (b"", b"\n", b"\r\n", b"\r"):
                return False, None, here
            if not line.startswith(separator, at):
                return False, CLOSED_EARLY, here
            at += 1
        else:
            end = line.find(separator, at)
            if line.count(b'"', at, len(line) if end < 0 else end) % 2:
                return False, WITHIN, True
            if end < 0:
                return False, None, here
            at = end + 1


class RecordScan:
    """Counts the records of delimited text without parsing it, fed with blocks of any size; finds a misplaced quote.

    Args:
        path: the file, for the message.
        separator: of its fields.
        quoted: whether fields may be quoted; else every line is a record.
    """

    def __init__(self, path: Path, separator: str, quoted: bool) -> None:
        self._path = path
        self._scan = (_Compiled or _Scan)(separator, quoted, LONGEST)
        self._blank: bytes | None = b""  # the text's beginning, while it is blank lines, which come before the header
        self._leading = 0
        self._finished = False

    def feed(self, text: bytes) -> None:
        """Take the next block."""
        if self._blank is not None:
            self._blank += text
            rest = self._blank.removeprefix(_BYTE_ORDER_MARK).lstrip(b"\r\n")
            part_of_mark = len(rest) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(self._blank)
            if (rest and not part_of_mark) or len(self._blank) > _BLOCK:
                self._leading = self._blank[: len(self._blank) - len(rest)].count(b"\n")
                self._blank = None
        self._scan.feed(text)

    def feed_file(self) -> None:
        """Take the whole file, which may be compressed; where that is damaged, what comes before."""
        with suppress(*UNREADABLE), open_plain(self._path) as file:
            while block := file.read(_BLOCK):
                self.feed(block)

    def check(self, parsed: int | None) -> None:
        """Compare with the number of records that were parsed (None: none were), without header and blank lines before.

        Raises:
            DataError: a quote is misplaced, or the numbers differ.
        """
        scan = self._scan
        if not self._finished:
            self._finished = True
            scan.finish()
        if scan.problem:
            elsewhere = scan.problem == 1 and scan.line != scan.opened
            beyond = f" (on line {scan.line})" if elsewhere else ""
            raise DataError(_PROBLEMS[scan.problem] + beyond + REMEDY, self._path, scan.opened)
        records = max(scan.records - self._leading - 1, 0)
        if parsed is not None and records != parsed:
            raise DataError(
                f"the file has {records:,} records, but {parsed:,} were read; a misplaced quote can do that: quote "
                'fields with quotes in them whole, and write the quotes within twice ("")',
                self._path,
            )


class _Scan:
    """What csrc/data/record_scan.h does, slower."""

    def __init__(self, separator: str, quoted: bool, longest: int) -> None:
        self._separator, self._quoted, self._longest = separator.encode(), quoted, longest
        self._rest = b""  # of a line that has not ended
        self._inside, self._first = False, True
        self.line = 1
        self.records = self.problem = self.opened = 0

    def feed(self, text: bytes) -> None:
        text = self._rest + text
        if self._first:
            if _BYTE_ORDER_MARK.startswith(text) and text != _BYTE_ORDER_MARK:
                self._rest = text  # of a mark that may come in parts
                return
            text, self._first = text.removeprefix(_BYTE_ORDER_MARK), False
        end = text.rfind(b"\n") + 1
        self._rest = text[end:]
        self._lines(text[:end])

    def finish(self) -> None:
        self._lines(self._rest)
        if self._inside and not self.problem:
            self.problem = 2

    def _lines(self, text: bytes) -> None:
        if self.problem:
            return
        plain = not self._quoted or (not self._inside and b'"' not in text)
        if plain or self._closed_one_by_one(text):
            newlines = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == _NEWLINE)
            quotes = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == _QUOTE) if not plain else newlines[:0]
            self.records += int(np.count_nonzero(np.searchsorted(quotes, newlines) % 2 == 0))
            self.line += len(newlines)
            if text and not text.endswith(b"\n"):
                self.records += 1
            return
        for line in io.BytesIO(text):
            self._inside, wrong, here = follow(line, self._separator, self._inside)
            if here:
                self.opened = self.line
            ended = self.line - self.opened + line.endswith(b"\n")
            if wrong or (self._inside and ended >= self._longest):
                self.problem = _PROBLEMS.index(wrong or TOO_LONG)
                return
            self.records += not self._inside
            self.line += 1

    def _closed_one_by_one(self, text: bytes) -> bool:
        """Return whether fields are quoted as it is usual in these lines: every other quote opens one of few lines."""
        padded = np.frombuffer(b"\n" + text + b"\n\n", dtype=np.uint8)
        quotes = np.flatnonzero(padded == _QUOTE)
        if self._inside or len(quotes) % 2:
            return False
        opening, closing = quotes[::2], quotes[1::2]
        before, after = padded[opening - 1], padded[closing + 1]
        around = (ord(self._separator), _NEWLINE, _QUOTE)  # a quote beside another one: they are one, written twice
        ended = np.isin(after, around) | ((after == _RETURN) & (padded[closing + 2] == _NEWLINE))
        if not (np.isin(before, around).all() and ended.all()):
            return False
        newlines = np.flatnonzero(padded[:-1] == _NEWLINE)
        ends = np.flatnonzero(np.searchsorted(quotes, newlines) % 2 == 0)  # of records, counted in lines
        return int(np.diff(ends).max(initial=0)) < self._longest
