"""`plr data list` and `plr data get`: public data sets by name."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

from plr.cli.prepare import downloads
from plr.cli.tables import print_line, quoted
from plr.errors import ConfigError, shortened
from plr.prepare.public import AMAZON_DOMAINS, SETS, PublicSet, fetch, public_set

__all__ = ["get", "listed"]


def listed(console: Console | None = None) -> None:
    """Print the names."""
    console = console or Console()
    table = Table("name", "what", "size", "SHA-256 known beforehand")
    for each in SETS.values():
        sizes = [file.size for file in each.files]
        size = f"{sum(filter(None, sizes)) / 1e6:,.1f} MB" if all(sizes) else "not known"
        table.add_row(each.name, each.title, size, "yes" if all(file.sha256 for file in each.files) else "no")
    known = [domain for domain in AMAZON_DOMAINS if public_set(f"amazon-2023/{domain}").files[0].sha256]
    table.add_row(
        "amazon-2023/DOMAIN", "Amazon Reviews 2023, 5-core ratings, --metadata for metadata", "not known",
        f"of {', '.join(known)}",
    )  # fmt: skip
    console.print(table)
    print_line(console, f"DOMAIN: {', '.join(AMAZON_DOMAINS)}")


def get(
    name: str,
    out: str | None = None,
    *,
    url: str | None = None,
    sha256: str | None = None,
    metadata: bool = False,
    pause: float = 1.0,
    console: Console | None = None,
) -> None:
    """Fetch a set, say what it is, and how to go on.

    Args:
        name: of the set.
        out: the folder; default: raw/NAME.
        url: where from instead.
        sha256: what a set's only file must be instead.
        metadata: item metadata too.
        pause: as in `download`.

    Raises:
        ConfigError: no such set, or options that do not fit it.
        DataError: the files cannot be had, or are others.
    """
    console = console or Console()
    chosen = public_set(name)
    files = [*chosen.files, *(chosen.items if metadata else ())]
    _check(chosen, len(files), url, sha256, metadata)
    folder = Path(out or f"raw/{chosen.name}")
    with downloads(console) as bar:
        for file in files:
            with bar(file.name) as advance:
                found = fetch(file, folder, url=url, sha256=sha256, on_progress=advance, pause=pause)
            size = f"{found.path.stat().st_size:,} bytes"
            checked = (
                "as expected" if found.known
                else "known neither beforehand nor from an earlier download" if not found.recorded
                else "not known beforehand: recorded in downloads.json, and expected from now on"
            )  # fmt: skip
            origin = f"from {found.url}" if found.recorded else "was there already"
            print_line(console, f"{found.path} {origin}: {size}, SHA-256 {found.sha256}, {checked}")
            if found.unpacked:
                print_line(console, f"unpacked: {', '.join(map(str, found.unpacked))}")
    print_line(console, f"terms of use: {chosen.page}")
    target = re.sub(r"\W+", "-", chosen.name).lower()
    print_line(console, f"prepare it with plr prepare {chosen.source.format(out=quoted(folder))} --out data/{target}")


def _check(chosen: PublicSet, files: int, url: str | None, sha256: str | None, metadata: bool) -> None:
    if metadata and not chosen.items:
        raise ConfigError(f"--metadata belongs to amazon-2023; {chosen.name} has no metadata of its own to fetch")
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url must begin with http:// or https://; found {shortened(url)}")
    if files > 1 and url is not None and not url.endswith("/"):
        raise ConfigError(f"--url must be a folder that ends in /, as there are {files} files; found {shortened(url)}")
    if sha256 is not None and files > 1:
        raise ConfigError(f"--sha256 is of one file, and there are {files}")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"--sha256 must be 64 hexadecimal digits; found {shortened(sha256)}")
