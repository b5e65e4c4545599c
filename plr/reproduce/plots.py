"""How the report's plots look: SVG, colours that colour-blind readers tell apart, a marker for each besides."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plr.reproduce.presets import REINFORCED

__all__ = ["PALETTE", "STYLES", "canvas", "integers", "legend_below", "line", "panels", "style_of", "svg_of"]

# Okabe and Ito's palette, in an order in which neighbours differ in lightness too.
PALETTE = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#999999")
MARKERS = "os^DvXP"
STYLES = {
    method: (PALETTE[place], MARKERS[place])
    for place, method in enumerate(("base", "erl", "prl", "lares", "plr-states", "plr", REINFORCED))
}
_RC: dict[Any, Any] = {
    "svg.hashsalt": "plr",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def style_of(method: str) -> dict[str, Any]:
    """Return a method's colour and marker, the same in all plots."""
    color, marker = STYLES[method]
    return {"color": color, "marker": marker}


@contextmanager
def canvas() -> Iterator[None]:
    """Make the plots of the body in the report's style."""
    with matplotlib.rc_context(_RC):
        yield


def panels(
    rows: int, columns: int, *, width: float = 3.2, height: float = 2.7, **sharing: Any
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of rows × columns panels, each of that size in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing).tolist()


def line(
    axes: Axes, x: Sequence[float], means: Sequence[float], deviations: Sequence[float | None], label: str, method: str
) -> None:
    """Draw means with a standard deviation to both sides, where there are several runs."""
    known = [each for each in deviations if each is not None]
    errors = known if len(known) == len(means) else None
    axes.errorbar(x, means, yerr=errors, capsize=3, markersize=5.5, linewidth=1.2, label=label, **style_of(method))


def integers(axes: Axes) -> None:
    """Let the ticks of the x axis be whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_below(figure: Figure, axes: Iterable[Axes]) -> None:
    """Put one legend of all panels below them, where it hides nothing."""
    entries: dict[str, Any] = {}
    for panel in axes:
        handles, labels = panel.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def svg_of(figure: Figure) -> str:
    """Return the figure as SVG, the same text for the same figure."""
    out = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
