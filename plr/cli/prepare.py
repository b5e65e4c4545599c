"""`plr prepare`: raw files, or a published data set by its name, into a prepared folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from plr.cli.tables import print_line, quoted, rows_table, sizes_table, skipped_lines
from plr.errors import ConfigError
from plr.prepare import PrepareOptions
from plr.prepare.amazon import BASE_URL, SPLIT_TIMES, TABLE_1, find_files, protocol_options, urls
from plr.prepare.download import download
from plr.prepare.pipeline import MOST_PARTITIONS, write_folder
from plr.prepare.readers import find_interactions
from plr.prepare.readers.packed import SUFFIXES

AMAZON = "amazon-2023"
_ITEM_FILES = ("movies.dat", "movies.csv")


@dataclass
class Request:
    """What `plr prepare` is asked for.

    Args:
        source: a file of interactions, a folder, or the name of a published data set: amazon-2023.
        out: the folder to write.
        items: a file of item metadata: title, categories, store.
        domain: amazon-2023: which part, CDs_and_Vinyl, Movies_and_TV, Video_Games or another.
        raw: amazon-2023: the folder with the published files.
        protocol: amazon-2023: plr (the paper's) or rearec (that of its predecessor's code).
        download: amazon-2023: fetch the files to the folder raw first.
        base_url: amazon-2023: where from.
        skip_bad_lines: leave out lines that cannot be used, count and list them, instead of stopping at the first.
        partitions: for files beyond memory: put the interactions on disk, beside the folder to write, in so many parts
            of consecutive users, so that one part at a time is in memory. The folder has the same bytes. 0: all are in
            memory.
        options: the fields of PrepareOptions that are set.
    """

    source: str
    out: str
    items: str | None = None
    domain: str | None = None
    raw: str | None = None
    protocol: str | None = None
    download: bool = False
    base_url: str = BASE_URL
    skip_bad_lines: bool = False
    partitions: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def run(request: Request, console: Console | None = None) -> dict[str, Any]:
    """Prepare what is asked for, print what every filter dropped, and return the report.

    Raises:
        ConfigError: arguments that make no sense together.
        DataError: the files cannot be used.
    """
    console = console or Console()
    if not request.out:
        raise ConfigError("--out is missing: name the folder to write")
    if not request.source:
        raise ConfigError("the source is empty: name a file of interactions, or a folder (. is this one)")
    if not 0 <= request.partitions <= MOST_PARTITIONS:
        raise ConfigError(
            f"--partitions must be in 0..{MOST_PARTITIONS} (0: all in memory); found {request.partitions}"
        )
    if request.source == AMAZON and not Path(AMAZON).exists():
        report = _amazon(request, console)
    else:
        report = _files(request)
    published = TABLE_1.get(request.domain or "") if request.source == AMAZON else None
    console.print(sizes_table(report, published, "PLR paper, Table 1"))
    console.print(rows_table(report))
    for line in [*_notes(report), *skipped_lines(report)]:
        print_line(console, line)
    print_line(console, f"{request.out}: train with plr train --data {quoted(request.out)}")
    return report


def _files(request: Request) -> dict[str, Any]:
    for name in ("domain", "raw", "protocol", "download"):
        if getattr(request, name):
            raise ConfigError(f"{name} belongs to the source {AMAZON}; the source is {request.source!r}")
    path = find_interactions(Path(request.source))
    items = Path(request.items) if request.items else _items_beside(path)
    return write_folder(
        [path],
        Path(request.out),
        _options({}, request.options),
        items=items,
        skip_bad_lines=request.skip_bad_lines,
        partitions=request.partitions,
    )


def _items_beside(path: Path) -> Path | None:
    """Return the metadata file that belongs to a data set in a published layout."""
    plain = path.with_suffix("") if path.suffix in SUFFIXES else path
    names = list(_ITEM_FILES) if plain.name in ("ratings.dat", "ratings.csv") else []
    names += [plain.with_suffix(".item").name] if plain.suffix == ".inter" else []
    candidates = (path.with_name(name + packed) for name in names for packed in ("", *SUFFIXES))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _amazon(request: Request, console: Console) -> dict[str, Any]:
    if request.domain is None or request.raw is None:
        raise ConfigError(f"{AMAZON} needs --domain (such as CDs_and_Vinyl) and --raw (the folder with its files)")
    raw = Path(request.raw)
    if request.download:
        _fetch(request.domain, raw, request.base_url, console)
    files = find_files(raw, request.domain)
    protocol = request.protocol or "plr"
    options = _options(protocol_options(protocol, request.domain), request.options)
    items = Path(request.items) if request.items else files.items
    if items is None:
        print_line(
            console, f"no meta_{request.domain}.jsonl in {raw}: the items will have no title, category, store or text"
        )
    first, second = SPLIT_TIMES
    official = (options.valid_time, options.test_time) == SPLIT_TIMES and len(files.interactions) == 3
    return write_folder(
        files.interactions,
        Path(request.out),
        options,
        items=items,
        skip_bad_lines=request.skip_bad_lines,
        protocol=f"{protocol}, {request.domain}",
        periods=[(float("-inf"), first), (first, second), (second, float("inf"))] if official else None,
        partitions=request.partitions,
    )


def _options(defaults: dict[str, Any], given: dict[str, Any]) -> PrepareOptions:
    values = {**defaults, **given}
    if isinstance(values.get("min_history"), int):
        values["min_history"] = (values["min_history"],) * 3
    try:
        return PrepareOptions(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _fetch(domain: str, raw: Path, base: str, console: Console) -> None:
    with downloads(console) as bar:
        for name, url in urls(domain, base).items():
            with bar(name) as advance:
                download(url, raw / name, on_progress=advance)
            print_line(console, f"{raw / name} from {url}")


@contextmanager
def downloads(console: Console) -> Iterator[Callable[[str], AbstractContextManager[Any]]]:
    """Show how far downloads are: yields what makes a bar with a name, which yields what `download` tells."""
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        @contextmanager
        def bar(name: str) -> Iterator[Any]:
            task = progress.add_task(name, total=None)
            yield lambda there, size: progress.update(task, completed=there, total=size)
            progress.remove_task(task)

        yield bar


def _notes(report: dict[str, Any]) -> list[str]:
    notes = list(report.get("notes", []))
    if report.get("columns"):
        notes.append("columns: " + ", ".join(f"{role} {name!r}" for role, name in report["columns"].items()))
    if report.get("unseen_items"):
        notes.append(f"{report['unseen_items']:,} items do not occur in training and are not in the vocabulary")
    if report.get("duplicates_kept"):
        notes.append(
            f"{report['duplicates_kept']:,} interactions repeat an earlier one (user, item and time) and are kept; "
            "--duplicates drop leaves them out"
        )
    if "metadata" in report:
        known = report["metadata"]
        counts = ", ".join(
            f"{name} {known[f'items_with_{name}']:,}" for name in ("title", "categories", "store", "text")
        )
        notes.append(f"items with {counts} of {report['items']:,}")
    return notes
