"""Recommendations for a file of users, written in parts, so that an interrupted command goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from plr.errors import ConfigError, DataError, RunError, listed
from plr.files import atomic_path, remove_leftovers, sha256_of
from plr.lock import LOCK, locked
from plr.prepare.readers import open_plain
from plr.prepare.readers.packed import UNREADABLE
from plr.prepare.readers.source import unreadable
from plr.runs import RunFolder
from plr.serving.categories import CategoryLimit
from plr.serving.histories import UserHistories
from plr.serving.recommender import Recommender
from plr.serving.tables import TableFormat, table_format
from plr.serving.user_files import UserFile, open_user_file

__all__ = ["BulkCounts", "read_item_list", "recommend_users", "refuse_inputs"]

BLOCK = 4096
"""Users whose recommendations are one part."""
_JOB = "job.json"
_DONE = "done.json"
_OWN = re.compile(rf"part-\d{{12}}\.|{_JOB}|{_DONE}|{re.escape(LOCK)}")
Progress = Callable[[int | None], AbstractContextManager[Callable[[int], None]]]
"""Called with the number of users, where it is known: a context whose value is called with users that are done."""


@dataclass
class BulkCounts:
    """What was done so far.

    Attributes:
        users: how many have their recommendations.
        popular: how many of them got the most popular items, as none of theirs is known.
        rows: how many recommendations.
        interactions: how many the users had.
        unknown: how many of those with items that the run does not know.
    """

    users: int = 0
    popular: int = 0
    rows: int = 0
    interactions: int = 0
    unknown: int = 0


def parts_folder(out: Path) -> Path:
    """Return where the parts of a file are until it is complete."""
    return out.with_name(f"{out.name}.parts")


def recommend_users(
    run: Path,
    users: Path,
    out: Path,
    *,
    k: int | None = None,
    exclude_seen: bool | None = None,
    only: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
    text_vectors: Path | None = None,
    at_most: int | None = None,
    categories: Path | None = None,
    category_field: str | None = None,
    popularity_days: float | None = None,
    popularity_data: Path | None = None,
    device: str = "cpu",
    reading: dict[str, str | None] | None = None,
    progress: Progress = lambda total: nullcontext(lambda count: None),
) -> BulkCounts:
    """Write the k best items for every user of a file: columns user, item, rank, score, source.

    A user's rows stand together, the best first. They are those of `Recommender.recommend_frame`. Parts of BLOCK users
    are kept beside `out` until all are there; the same call after an interruption begins behind the last of them.

    Args:
        run: the run's folder.
        users: the file of users, or a prepared folder (`open_user_file`).
        out: the file, replaced when it is complete; its name ends as one of `table_format`.
        k, exclude_seen: as in `Recommender.recommend`.
        only: ids of the items that may be recommended.
        deny: ids of those that must not be.
        text_vectors, device: as in `Recommender.load`.
        at_most, categories, category_field: as in `CategoryLimit.of`.
        popularity_days, popularity_data: as in `Recommender.popularity_of`.
        reading: format, user_column, item_column, rating_column, timestamp_column of the file of users.
        progress: shows it.

    Raises:
        ConfigError: the name of `out` asks for no known format, or is that of a folder or of a file that is read.
        RunError: the parts beside `out` are those of another command, or another process is writing there.
        UserError: as `Recommender.load`, `open_user_file` and `Recommender.recommend_frame`.
    """
    table = table_format(out)
    if out.is_dir():
        raise ConfigError(f"--out must be a file; found the folder {str(out)!r}")
    refuse_inputs(out, users, categories, popularity_data)
    recommender = Recommender.load(run, device, text_vectors=text_vectors)
    k, filters = recommender.checked_k(k), recommender.filters(0, only, deny)
    limit = CategoryLimit.of(recommender.item_ids, at_most, categories, category_field)
    popularity = None
    if popularity_days is not None or popularity_data is not None:
        popularity = recommender.popularity_of(popularity_days, popularity_data)
    file = open_user_file(users, recommender.numbers, recommender.config, reading or {})
    job = {
        "users": file.content_hash,
        "run": RunFolder(run).hashes(),
        "k": k,
        "exclude_seen": recommender.config.exclude_seen if exclude_seen is None else exclude_seen,
        "only": _hash(only),
        "deny": _hash(deny),
        "text_vectors": None if text_vectors is None else _hash(map(sha256_of, _files(text_vectors))),
        "device": device,
        "block": BLOCK,
        **_chosen(limit, popularity, reading or {}),
    }
    folder = parts_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            counts = _resume(folder, job, out)
            with progress(file.total) as advance:
                advance(counts.users)
                answers = partial(recommender.answers, k=k, exclude_seen=exclude_seen, filters=filters, limit=limit,
                                  popularity=popularity)  # fmt: skip
                try:
                    _write_parts(folder, table, file, counts, answers, advance)
                except DataError:  # the file cannot be finished, and the mended one is another
                    _clear(folder)
                    raise
            _join(folder, table, counts.users, out)
            _clear(folder)
    finally:
        with suppress(OSError):  # parts are kept, or another process has begun
            folder.rmdir()
    return counts


def refuse_inputs(out: Path, *inputs: Path | None) -> None:
    """Raise a ConfigError where `out` is one of the files that are read: it would be lost."""
    for path in inputs:
        if path is not None and path.exists() and out.exists() and out.samefile(path):
            raise ConfigError(f"--out must not be a file that is read, which it would replace; found {str(out)!r}")


def _clear(folder: Path) -> None:
    """Remove the parts; the lock is the process's until it leaves the folder.

    First what says that they are there: who finds the rest after an interruption does not count on it.
    """
    (folder / _DONE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()


def _write_parts(
    folder: Path,
    table: TableFormat,
    file: UserFile,
    counts: BulkCounts,
    answers: Callable[[UserHistories], pl.DataFrame],
    advance: Callable[[int], None],
) -> None:
    """Write what is missing; after each part what was done so far, which is what counts after an interruption."""
    for block in file.blocks(counts.users, BLOCK):
        frame = answers(block)
        with atomic_path(_part(folder, table, counts.users)) as aside:
            table.write_part(frame, aside)
        counts.users += len(block.users)
        counts.popular += int((block.items.lengths == 0).sum())
        counts.rows += len(frame)
        counts.interactions += block.interactions
        counts.unknown += block.unknown
        _write_json(folder / _DONE, asdict(counts))
        advance(len(block.users))
    if not counts.users:
        nobody = UserHistories.of(pl.Series("user", [], dtype=pl.String), *np.zeros((2, 0), dtype=np.int64))
        with atomic_path(_part(folder, table, 0)) as aside:
            table.write_part(answers(nobody), aside)


def _join(folder: Path, table: TableFormat, users: int, out: Path) -> None:
    with atomic_path(out) as aside:
        table.join([_part(folder, table, first) for first in range(0, max(users, 1), BLOCK)], aside)


def _part(folder: Path, table: TableFormat, first: int) -> Path:
    return folder / f"part-{first:012d}{table.suffix}"


def _resume(folder: Path, job: dict[str, Any], out: Path) -> BulkCounts:
    """Return what an earlier process has done of the job, whose parts are there.

    Raises:
        RunError: the parts are those of another job, or the folder holds something else.
    """
    remove_leftovers(folder)
    foreign = [path.name for path in folder.iterdir() if not _OWN.match(path.name)]
    if foreign:
        raise RunError(f"{folder}: parts of {out.name} are to be written here, and it holds {listed(sorted(foreign))}")
    if (folder / _JOB).exists() and (folder / _DONE).exists():
        earlier = _read_json(folder / _JOB)
        differing = [name for name in {**earlier, **job} if earlier.get(name) != job.get(name)]
        if differing:
            raise RunError(
                f"{folder}: holds parts of an interrupted command with other {', '.join(differing)}; repeat that "
                "command, delete the folder, or choose another --out"
            )
        return BulkCounts(**_read_json(folder / _DONE))
    _clear(folder)  # of a command that has done no part, or was finished but for this
    _write_json(folder / _JOB, job)
    return BulkCounts()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"damaged ({error}); delete its folder", path) from error
    return content


def _chosen(
    limit: CategoryLimit | None, popularity: np.ndarray | None, reading: dict[str, str | None]
) -> dict[str, Any]:
    """Return what tells jobs apart by options that jobs of earlier versions do not name."""
    chosen: dict[str, Any] = {name: value for name, value in reading.items() if value is not None}
    if limit is not None:
        digest = hashlib.sha256(limit.categories.offsets.tobytes() + limit.categories.ids.tobytes())
        chosen |= {"at_most": limit.most, "categories": digest.hexdigest()}
    if popularity is not None:
        chosen["popularity"] = hashlib.sha256(popularity.tobytes()).hexdigest()
    return chosen


def _files(text_vectors: Path) -> list[Path]:
    """Return what ranks by text vectors; vectors of one's own may all have the same manifest."""
    return [text_vectors / name for name in ("manifest.json", "items.parquet", "vectors.safetensors")]


def _hash(ids: Iterable[str] | None) -> str | None:
    return None if ids is None else hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def read_item_list(path: Path) -> list[str]:
    """Read a file of item ids, one a line; blank lines are left out. It may be packed.

    Raises:
        DataError: it cannot be read, or holds no id.
    """
    try:
        with open_plain(path) as file:
            # Not splitlines(), whose separators beyond these an id may hold.
            ids = [line.strip() for line in re.split(r"[\r\n]", file.read().decode("utf-8-sig"))]
    except FileNotFoundError as error:
        raise DataError("no such file", path) from error
    except (*UNREADABLE, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    ids = [item_id for item_id in ids if item_id]
    if not ids:
        raise DataError("the file holds no item id; one a line is expected", path)
    return ids
