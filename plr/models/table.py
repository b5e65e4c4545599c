"""What can be trained, as tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from plr.models.registry import BACKBONES, METHODS, REFUSALS


def systems_tables() -> list[Table]:
    """Return the backbones, the methods and the pairs that are refused, each with its sentence."""
    refused: dict[tuple[str, str], list[str]] = {}
    for (backbone, method), reason in REFUSALS.items():
        refused.setdefault((backbone, reason), []).append(method)
    rows = {
        "Backbones": [(name, backbone.description) for name, backbone in BACKBONES.items()],
        "Methods": [(name, method.description) for name, method in METHODS.items()],
        "Not together": [
            (f"{backbone} with {', '.join(methods)}", reason) for (backbone, reason), methods in refused.items()
        ],
    }
    tables = []
    for title, entries in rows.items():
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column(max_width=32)
        table.add_column()
        for entry in entries:
            table.add_row(*entry)
        tables.append(table)
    return tables
