"""A table of text cells as plain text, Markdown, LaTeX or HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path

from plr.errors import ConfigError

__all__ = ["FORMATS", "format_of", "html_table", "rendered"]

Rows = Sequence[Sequence[str]]  # the first one is the header

_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def _text(rows: Rows, note: str) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:], "", note, ""])


def _markdown(rows: Rows, note: str) -> str:
    head, *body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body, "", note, ""])


def _latex(rows: Rows, note: str) -> str:
    def escaped(text: str) -> str:
        return "".join(_LATEX.get(letter, letter) for letter in text)

    head, *body = [" & ".join(map(escaped, row)) + r" \\" for row in rows]
    columns = "l" * len(rows[0])
    begin = [f"% {line}" for line in note.splitlines()] + [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    return "\n".join([*begin, head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def _html(rows: Rows, note: str) -> str:
    return "\n".join(
        [
            '<!doctype html>\n<meta charset="utf-8">\n<title>Comparison</title>',
            "<style>body{font:15px sans-serif}td,th{padding:.3em .7em;text-align:left}"
            "table{border-collapse:collapse}tr{border-bottom:1px solid #ccc}</style>",
            html_table(rows),
            f"<p>{html.escape(note)}</p>",
            "",
        ]
    )


def html_table(rows: Rows) -> str:
    """Return rows of cells, the first of them the header, as an HTML table."""

    def line(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    head, *body = rows
    rows_of_body = (line(row, "td") for row in body)
    return "\n".join([f"<table>\n<thead>{line(head, 'th')}</thead>\n<tbody>", *rows_of_body, "</tbody>\n</table>"])


FORMATS: dict[str, Callable[[Rows, str], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
    "html": _html,
}
_ENDINGS = {".md": "markdown", ".tex": "latex", ".html": "html", ".txt": "text"}


def format_of(name: str | None, out: str | None) -> str:
    """Return the format that is named, else what the file's ending says, else text.

    Raises:
        ConfigError: the ending says none.
    """
    if name is not None:
        return name
    if out is None:
        return "text"
    ending = Path(out).suffix.lower()
    if ending not in _ENDINGS:
        raise ConfigError(f"out must end in {', '.join(_ENDINGS)}, or --format say what to write; found {out!r}")
    return _ENDINGS[ending]


def rendered(rows: Rows, note: str, chosen: str) -> str:
    """Return rows of cells, the first of them the header, and a note, in one of FORMATS."""
    return FORMATS[chosen](rows, note)
