"""What every reader hands over."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from plr.errors import DataError
from plr.prepare.readers.id_encoder import CompiledIdEncoder, IdEncoder, new_id_encoder
from plr.prepare.readers.packed import UNREADABLE, open_plain, packing
from plr.prepare.readers.spooled import Numbers, Spooled

__all__ = [
    "LISTED",
    "MARKS",
    "IdVocabulary",
    "LinesOf",
    "Skipped",
    "Source",
    "about_comment",
    "collect",
    "forbidden_bytes",
    "one_to_one",
    "panics_unprinted",
    "unreadable",
]

_ALL_BYTES = bytes(range(256))
_BLOCK = 1 << 19  # rows: their numbers fill a huge page
_UNDER_WAY = 2  # blocks that may wait for their numbers while others are read
LISTED = 100
"""How many of the skipped lines are listed."""
MARKS = "#%"
"""What comments begin with."""

LinesOf = Callable[[np.ndarray], list[int]]
"""From ascending record numbers (0-based) of a file to their 1-based lines, in one pass over the file."""


@dataclass(frozen=True)
class IdVocabulary:
    """How values are kept while files are read: ids in 4 bytes each with one string per id, ratings in a bit.

    Files read into the same vocabulary can be put one after the other. ``min_rating`` is the least rating that is high
    enough; with None every rating is. With ``drop_missing_ids`` records without a user or item are left out, and their
    number added to ``dropped``. With ``disk`` the numbers are written there, to files without a name: memory holds the
    ids alone.
    """

    min_rating: float | None = None
    drop_missing_ids: bool = False
    dropped: list[int] = field(default_factory=list)
    user: IdEncoder | CompiledIdEncoder = field(default_factory=new_id_encoder)
    item: IdEncoder | CompiledIdEncoder = field(default_factory=new_id_encoder)
    disk: Path | None = None

    def collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        """Run ``frame`` on the streaming engine; where it has the columns ``user`` and ``item``, number their strings.

        That is done block by block, each column in a thread of its own, while the engine reads on.
        """
        return pl.concat(list(self._numbered(frame)), rechunk=False)

    def collect_columns(self, frame: pl.LazyFrame, names: Sequence[str]) -> Numbers:
        """Do the same with all columns; returns those of the ``names``: in memory, or on ``disk`` where it is given."""
        if self.disk is None:
            whole = self.collect(frame)
            return pl.DataFrame([whole[name] for name in names])  # whole.select would copy all of it into one chunk
        spooled = None
        with closing(self._numbered(frame)) as blocks:
            for block in blocks:
                block = pl.DataFrame([block[name] for name in names])
                spooled = spooled or Spooled(self.disk, block)
                spooled.append(block)
        assert spooled is not None  # there is one block at least, without a row
        return spooled

    def _numbered(self, frame: pl.LazyFrame) -> Generator[pl.DataFrame, None, None]:
        """Yield what ``frame`` holds block by block, its ids as numbers; the first block has no row."""
        schema = frame.collect_schema()
        numberings = {name: of for name, of in (("user", self.user), ("item", self.item)) if name in schema}
        under_way: deque[list[pl.Series | Future]] = deque()

        def finish() -> pl.DataFrame:  # a frame's own methods would wait for the threads that read
            columns = [column.result() if isinstance(column, Future) else column for column in under_way.popleft()]
            return pl.DataFrame(columns)

        with ExitStack() as stack:
            threads = {name: stack.enter_context(ThreadPoolExecutor(1)) for name in numberings}

            def numbered(ids: pl.Series) -> pl.Series:
                return numberings[ids.name].numbers(ids).alias(ids.name)

            blocks = frame.collect_batches(chunk_size=_BLOCK, maintain_order=True, engine="streaming")
            for block in chain([schema.to_frame()], blocks):
                under_way.append(
                    [threads[each.name].submit(numbered, each) if each.name in threads else each for each in block]
                )
                del block
                if len(under_way) > _UNDER_WAY:
                    yield finish()
            while under_way:
                yield finish()


@dataclass
class Skipped:
    """The lines that were left out because they cannot be used: all counted, the first hundred listed."""

    count: int = 0
    lines: list[dict] = field(default_factory=list)

    def add(self, path: Path, line: int | None, reason: str) -> None:
        """Count a line, and list it while there is room."""
        self.count += 1
        if len(self.lines) < LISTED:
            self.lines.append({"file": path.name, "line": line, "reason": reason})

    def extend(self, others: Skipped) -> None:
        """Count and list what others hold, too."""
        self.count += others.count
        self.lines += others.lines[: max(0, LISTED - len(self.lines))]


@dataclass(frozen=True)
class Source:
    """The interactions of one file, in file order.

    ``frame`` has the columns ``user`` and ``item`` (uint32, the numbers of an IdVocabulary, never null), and
    where the file has them ``rating`` (bool: high enough) and ``timestamp`` (int64); it is on disk where the vocabulary
    says so. ``rows`` says which record of the file each is (ascending); with None every record is one but those that
    ``left_out`` lists (ascending). ``lines_of(rows)`` gives the
    1-based lines (for Parquet: rows) to name in a message; it may read the file again. ``records`` is the number of
    records that were parsed, blank ones too; 0 where nobody needs it. ``columns`` says which column is which where
    they have names: {role: name}.
    """

    path: Path
    frame: Numbers
    lines_of: LinesOf
    rows: np.ndarray | None = None
    records: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    left_out: np.ndarray | None = None

    def place(self, position: int) -> tuple[Path, int]:
        """Return the file and line of the interaction at ``position``."""
        row = position if self.rows is None else int(self.rows[position])
        if self.left_out is not None:  # before the k-th of them stand left_out[k] - k others
            before = self.left_out - np.arange(len(self.left_out))
            row += int(np.searchsorted(before, row, side="right"))
        return self.path, self.lines_of(np.array([row]))[0]


def one_to_one(rows: np.ndarray) -> list[int]:
    """Return the lines of records where every line is one, without a header."""
    return (rows + 1).tolist()


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Run ``frame`` on the streaming engine: text is turned into numbers block by block."""
    return frame.collect(engine="streaming")


def forbidden_bytes(text: bytes, forbidden: bytes) -> bytes:
    """Return those bytes of ``text`` that are among the ``forbidden``, in their order."""
    return text.translate(None, _ALL_BYTES.translate(None, forbidden))


@contextmanager
def panics_unprinted() -> Iterator[None]:
    """Turn away what a panic writes to the process's standard error: dozens of lines, before it is an exception."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def about_comment(line: str) -> str:
    """Return what to add to what is wrong with a line that begins as comments do."""
    if line.lstrip()[:1] not in tuple(MARKS):
        return ""
    return (
        f"; the line begins with {line.lstrip()[0]!r}, as comments do: delete it, or leave such lines out with "
        "plr prepare --skip_bad_lines"
    )


def unreadable(path: Path, error: BaseException, forbidden: bytes = b"") -> DataError:
    """Return the error to raise where ``error`` stopped the reading of a text file; finds the line again."""
    line = 0
    try:
        with open_plain(path) as file:
            for text in file:
                line += 1
                text.decode("utf-8")
                for byte in forbidden_bytes(text, forbidden)[:1]:
                    return DataError(f"byte 0x{byte:02x} does not belong in a text file; is it binary?", path, line)
    except EOFError:
        return DataError(f"the {packing(path)} file ends too early: it was cut off; fetch it again", path, line or None)
    except UnicodeDecodeError as bad:
        byte = bad.object[bad.start]
        return DataError(
            f"byte 0x{byte:02x} at column {bad.start + 1} is not UTF-8; save the file as UTF-8", path, line
        )
    except UNREADABLE as broken:
        return DataError(f"cannot be read: {broken}", path, line or None)
    return DataError(f"cannot be read: {str(error).splitlines()[0]}", path)
