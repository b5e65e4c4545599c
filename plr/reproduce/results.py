"""What a table or figure is: cells, plots and words, which go to JSON and back, to Markdown, HTML and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Cell", "Estimate", "Part", "Plot", "Section", "Table", "shown", "signed"]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs, and their standard deviation where there are several."""

    mean: float
    sd: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the mean and the standard deviation of the runs' values."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        mean = shown(self.mean)
        if self.sd is None:
            return mean
        if "e" in mean:
            return f"{mean} ± {shown(self.sd)}"
        return f"{mean} ± {self.sd:.{len(mean.partition('.')[2])}f}"  # to the mean's place: .0563 ± .0003


Cell = str | int | float | Estimate | None


def shown(value: Cell) -> str:
    """Return a cell as a reader sees it: four decimals, four digits from 10 on, three of the very large or small."""
    if value is None:
        return ""
    if isinstance(value, float):
        if value != value:
            return "undefined"
        if abs(value) >= 1e6 or 0 < abs(value) < 5e-4:
            return f"{value:.2e}"
        return f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def signed(value: float) -> str:
    """Return a difference as `shown` shows it, with its sign."""
    return shown(value) if value < 0 else f"+{shown(value)}"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; one that is `folded` is shown when asked for."""

    name: str
    caption: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""
    folded: bool = False

    def text(self) -> list[list[str]]:
        """Return header and rows as a reader sees them."""
        return [self.header, *([shown(cell) for cell in row] for row in self.rows)]

    def csv(self) -> str:
        """Return the table with all digits; a column of estimates has one of standard deviations beside it."""
        wide = [any(isinstance(row[place], Estimate) for row in self.rows) for place in range(len(self.header))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            _joined([name, f"{name} sd"] if two else [name] for name, two in zip(self.header, wide, strict=True))
        )
        for row in self.rows:
            writer.writerow(_joined(_raw(cell, two) for cell, two in zip(row, wide, strict=True)))
        return out.getvalue()


def _joined(parts: Iterable[list[Any]]) -> list[Any]:
    return [each for part in parts for each in part]


def _raw(cell: Cell, two: bool) -> list[Any]:
    first = cell.mean if isinstance(cell, Estimate) else cell
    second = [cell.sd if isinstance(cell, Estimate) else None] if two else []
    return ["" if each is None else each for each in (first, *second)]


@dataclass(frozen=True)
class Plot:
    """A plot as SVG, and the table of what it shows."""

    name: str
    caption: str
    svg: str
    data: Table


Part = str | Table | Plot


@dataclass
class Section:
    """All of one table or figure of the paper.

    Attributes:
        name: table1, …
        title: as the report names it.
        parts: paragraphs, tables and plots, in order.
    """

    name: str
    title: str
    parts: list[Part] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"name": self.name, "title": self.title, "parts": [_part_to_json(part) for part in self.parts]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Section:
        """Return the section that `to_json` was called of."""
        return cls(value["name"], value["title"], [_part_from_json(part) for part in value["parts"]])


def _part_to_json(part: Part) -> Any:
    if isinstance(part, str):
        return part
    if isinstance(part, Plot):
        return {"plot": part.name, "caption": part.caption, "svg": part.svg, "data": _part_to_json(part.data)}
    rows = [[[cell.mean, cell.sd] if isinstance(cell, Estimate) else cell for cell in row] for row in part.rows]
    return {
        "table": part.name,
        "caption": part.caption,
        "header": part.header,
        "rows": rows,
        "note": part.note,
        "folded": part.folded,
    }


def _part_from_json(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if "plot" in value:
        return Plot(value["plot"], value["caption"], value["svg"], _part_from_json(value["data"]))
    rows = [[Estimate(*cell) if isinstance(cell, list) else cell for cell in row] for row in value["rows"]]
    return Table(value["table"], value["caption"], value["header"], rows, value["note"], value["folded"])
