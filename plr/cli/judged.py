"""What `plr evaluate` shows and saves beside the metrics of all rows: by segment, of lists, among sampled items."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from plr.cli.tables import items_ranked
from plr.evaluation import write_metrics
from plr.files import atomic_path
from plr.formats import rendered
from plr.serving.evaluate import Evaluation

__all__ = ["SAMPLED_WARNING", "judged_tables", "save_judged"]

SAMPLED_WARNING = (
    "metrics among sampled items mislead: they can order systems otherwise than the ranking of all items does; "
    "use them to compare with an old table, and nothing else"
)


def judged_tables(outcome: Evaluation) -> list[Table | str]:
    """Return a table for each thing measured, with how rows were cut behind it; what misleads is for stderr to say."""
    parts: list[Table | str] = []
    for title, rows, note in _cells(outcome):
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(rows[0]):
            table.add_column(name, justify="right" if number else "left")
        for row in rows[1:]:
            table.add_row(*row)
        parts += [table] if note == SAMPLED_WARNING else [table, note]
    return parts


def save_judged(run: Path, outcome: Evaluation, sampled: int | None, seed: int) -> Path:
    """Write evaluation.json and evaluation.md into the run's folder, each aside, then renamed; return the former."""
    values = {
        "data": outcome.data,
        "rows": outcome.rows,
        "items": outcome.items,
        "exclude_seen": outcome.exclude_seen,
        "ks": list(outcome.ks),
        "test": outcome.metrics,
        "segments": {
            name: {
                "rule": rule,
                "segments": {
                    each.name: {"rows": each.rows, "metrics": each.metrics, "intervals": each.intervals}
                    for each in segments
                },
            }
            for name, (rule, segments) in outcome.segments.items()
        },
        "lists": outcome.lists,
        "sampled": {"items": sampled, "seed": seed, "metrics": outcome.sampled, "warning": SAMPLED_WARNING}
        if outcome.sampled
        else {},
        "notes": outcome.notes,
    }
    path = run / "evaluation.json"
    write_metrics(path, values)
    ranked = items_ranked(outcome.exclude_seen, outcome.items)
    sections = [f"# Test rows of {outcome.data}\n\n{outcome.rows} rows, {ranked} ranked\n"]
    every = [["metric", "value"], *([name, f"{value:.4f}"] for name, value in outcome.metrics.items())]
    sections.append(rendered(every, "", "markdown"))
    sections += [f"## {title}\n\n{rendered(rows, note, 'markdown')}" for title, rows, note in _cells(outcome)]
    with atomic_path(path.with_suffix(".md")) as aside:
        aside.write_text("\n".join(sections), encoding="utf-8")
    return path


def _cells(outcome: Evaluation) -> list[tuple[str, list[list[str]], str]]:
    """Return title, rows of cells with the header first, and a note, for each thing measured."""
    tables = []
    shown = [f"{kind}@{k}" for k in outcome.ks for kind in ("recall", "ndcg")]
    for name, (rule, segments) in outcome.segments.items():
        rows = [[name, "rows", *shown]]
        for each in segments:
            cells = []
            for metric in shown:
                interval = each.intervals.get(metric)
                between = "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"
                cells.append(f"{each.metrics[metric]:.4f}{between}")
            rows.append([each.name, str(each.rows), *cells])
        tables.append((f"By {name}", rows, f"{rule}; in brackets 95 % intervals over users"))
    if outcome.lists:
        kinds = list(dict.fromkeys(name.partition("@")[0] for name in outcome.lists))
        rows = [["metric", *(f"@{k}" for k in outcome.ks)]]
        for kind in kinds:
            values = [outcome.lists.get(f"{kind}@{k}") for k in outcome.ks]
            rows.append([kind, *("–" if value is None else f"{value:.4f}" for value in values)])
        tables.append(("Lists", rows, "map is mrr where a row has one target"))
    if outcome.sampled:
        rows = [["metric", "value"], *([name, f"{value:.4f}"] for name, value in outcome.sampled.items())]
        tables.append(("Among sampled items", rows, SAMPLED_WARNING))
    return tables
