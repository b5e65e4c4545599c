"""The report: one HTML file that opens without a network, Markdown beside it, a CSV file for each table and plot."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

from plr.errors import RunError
from plr.files import atomic_path
from plr.formats import html_table, rendered
from plr.reproduce import EXPERIMENTS
from plr.reproduce.results import Part, Plot, Section, Table

__all__ = ["keep_section", "kept_sections", "refuse_foreign_report", "write_report"]

_FILES = "sections/files.json"  # the tables and figures that reports in the folder have written

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #1a1a1a; }
h1 { font-size: 1.6em } h2 { font-size: 1.25em; margin-top: 2.2em; border-top: 1px solid #ccc; padding-top: .8em }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; margin: .4em 0 }
td, th { padding: .25em .7em; text-align: left; white-space: nowrap; font-variant-numeric: tabular-nums }
th { white-space: normal; vertical-align: bottom } td:last-child { white-space: normal }
thead { border-bottom: 2px solid #555 } tbody tr { border-bottom: 1px solid #ddd }
figure { margin: 1em 0 } figcaption, .caption { font-weight: 600; margin-top: 1em }
.note { color: #444; font-size: 13px }
img { max-width: 100%; height: auto } details { margin: .3em 0 } nav a { margin-right: 1em }
"""


def keep_section(out: Path, identity: str, section: Section) -> None:
    """Write a section, for this report and those of later commands in the same folder."""
    _write(out / "sections" / f"{section.name}.json", json.dumps({"identity": identity, **section.to_json()}))


def kept_sections(out: Path, identity: str) -> tuple[list[Section], dict[str, str]]:
    """Return the sections in the paper's order, and by the names of the others why they are left out."""
    sections, others = [], {}
    for name in EXPERIMENTS:
        path = out / "sections" / f"{name}.json"
        if path.exists():
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
                if value["identity"] == identity:
                    sections.append(Section.from_json(value))
                else:
                    others[name] = "of other data, preset or settings"
            except (ValueError, LookupError, TypeError):
                others[name] = f"{path} is damaged: reproduce it again"
    return sections, others


def write_report(out: Path, title: str, facts: Sequence[str], sections: Sequence[Section]) -> Path:
    """Write report.html, report.md, tables/*.csv and figures/*.svg; those that only an earlier report had are removed.

    No others: somebody's own figures may lie in folders of these names.

    Args:
        out: the folder.
        title: of the report.
        facts: what all figures are of, a line each.
        sections: in order.

    Returns:
        The HTML file.
    """
    files: dict[Path, str] = {}
    for part in (part for section in sections for part in section.parts):
        if isinstance(part, Plot):
            files[out / "figures" / f"{part.name}.svg"] = part.svg
        if not isinstance(part, str):
            table = part.data if isinstance(part, Plot) else part
            files[out / "tables" / f"{table.name}.csv"] = table.csv()
    written = [path.relative_to(out).as_posix() for path in files]
    before = _files_of(out)
    _keep_files(out, [*before, *written])  # those of both, should this be interrupted
    for path, text in files.items():
        _write(path, text)
    for name in {*before}.difference(written):
        (out / name).unlink(missing_ok=True)
    _keep_files(out, written)
    _write(out / "report.md", _markdown(title, facts, sections))
    _write(out / "report.html", _html(title, facts, sections))
    return out / "report.html"


def _files_of(out: Path) -> list[str]:
    """Return the tables and figures, relative to the folder, that reports in it have written."""
    try:
        names = json.loads((out / _FILES).read_text(encoding="utf-8"))
        return [name for name in names if re.fullmatch(r"(figures/[^/]+\.svg|tables/[^/]+\.csv)", name)]
    except (OSError, ValueError, TypeError):  # none, or damaged
        return []


def _keep_files(out: Path, names: Sequence[str]) -> None:
    _write(out / _FILES, json.dumps(sorted(set(names))))


def refuse_foreign_report(out: Path) -> None:
    """Refuse a folder with a report that is none of this command's, which it would overwrite.

    Raises:
        RunError: names the file.
    """
    if (out / "sections").exists():
        return
    for name in ("report.html", "report.md"):
        if (out / name).exists():
            raise RunError(f"--out {out}: its {name} is not of plr reproduce and would be overwritten; choose another")


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _markdown(title: str, facts: Sequence[str], sections: Sequence[Section]) -> str:
    lines = [f"# {title}", "", *(f"- {fact}" for fact in facts), ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for part in section.parts:
            if isinstance(part, str):
                lines += [part, ""]
            elif isinstance(part, Plot):
                lines += [f"![{part.caption}](figures/{part.name}.svg)", ""]
                lines += [f"{part.caption}. Numbers: `tables/{part.data.name}.csv`.", ""]
            else:
                lines += [f"**{part.caption}**", "", rendered(part.text(), part.note, "markdown").rstrip(), ""]
    return "\n".join(lines).rstrip() + "\n"


def _html(title: str, facts: Sequence[str], sections: Sequence[Section]) -> str:
    name, items = html.escape(title), "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    links = "".join(f'<a href="#{each.name}">{html.escape(each.title.partition(":")[0])}</a>' for each in sections)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta name="viewport" content="width=device-width">\n<title>{name}</title>',
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n<ul>{items}</ul>\n<nav>{links}</nav>",
            *(
                f'<section id="{each.name}">\n<h2>{html.escape(each.title)}</h2>\n{_parts(each)}\n</section>'
                for each in sections
            ),
            "</body>\n</html>\n",
        ]
    )


def _parts(section: Section) -> str:
    return "\n".join(_part(part) for part in section.parts)


def _part(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, Table) and part.folded:
        return f"<details><summary>{html.escape(part.caption)}</summary>\n{_table(part)}\n</details>"
    if isinstance(part, Table):
        return f'<p class="caption">{html.escape(part.caption)}</p>\n{_table(part)}'
    image = base64.b64encode(part.svg.encode()).decode()
    caption = html.escape(part.caption)
    return (
        f'<figure>\n<img alt="{caption}" src="data:image/svg+xml;base64,{image}">\n<figcaption>{caption}</figcaption>\n'
        f"<details><summary>Numbers, and the runs they are from</summary>\n{_table(part.data)}\n</details>\n</figure>"
    )


def _table(table: Table) -> str:
    note = f'\n<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f'<div class="scroll">{html_table(table.text())}</div>{note}'
