"""Prepare what one machine cannot read and sort: Ray does that, plr filters, splits and writes the folder.

    python prepare_with_ray.py 'logs/*.parquet' --out data/mine --timestamp timestamp --options '{"core": 5}'

The files are Parquet with a column of users and one of items, and where there are such of times and ratings; every
machine of the cluster sees them at the same path. Ray's tasks read and hash them and sort all interactions by user,
time, file and row. This process takes the sorted stream, keeps it as numbers on the disk beside --out, and goes on as
plr prepare --partitions does; it needs memory for the ids and one partition. Arrays, ids and report are those that
plr prepare makes of the same files, in the order of their names.
"""

from __future__ import annotations

import argparse
import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import ray

from plr.errors import DataError
from plr.prepare import PrepareOptions
from plr.prepare.block_file import BlockFile
from plr.prepare.fingerprint import fingerprint
from plr.prepare.folder import save_prepared
from plr.prepare.interactions import Block
from plr.prepare.parts import Partitions
from plr.prepare.pipeline import Preparation, warn_about
from plr.prepare.readers.columns import check_dtype, convert

ROWS = 1 << 19  # of a block


def read(rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the interactions of a file in blocks, with the numbers of file and row; runs on any machine."""
    (path,), (file,), (named,) = rows["path"], rows["file"], rows["columns"]
    columns = json.loads(named)
    table = pl.scan_parquet(path)
    types = table.collect_schema()
    chosen = []
    for role, name in columns.items():  # as plr prepare converts them: what it refuses becomes null
        if name not in types:
            raise DataError(f"no column {name!r}; the file has the columns {', '.join(types)}", path)
        check_dtype(role, name, types[name], Path(path))
        column, dtype = pl.col(name), types[name]
        # By way of text: 4.1 in float32 is then 4.1, as plr prepare compares it with --min_rating.
        if role == "rating" or dtype in (pl.Categorical, pl.Enum):
            column, dtype = column.cast(pl.String), pl.String()
        chosen.append(convert(role, column, dtype))
    table = table.select(chosen).with_columns(pl.col("user", "item").str.strip_chars())
    first = 0
    for block in table.collect_batches(chunk_size=ROWS, maintain_order=True, engine="streaming"):
        for name, values in zip(block.columns, block, strict=True):
            bad = values.is_null() | (values == "") if values.dtype == pl.String else values.is_null()
            if bad.any():
                row = first + int(bad.arg_max() or 0) + 1
                raise DataError(f"column {columns[name]!r} has no value, or none that is taken for a {name}", path, row)
        yield {
            **{name: block[name].to_numpy() for name in block.columns},
            "file": np.full(block.height, file),
            "row": np.arange(first, first + block.height),
        }
        first += block.height


@ray.remote
def sha256(path: str) -> str:
    """Return the SHA-256 (hex) of a file."""
    return fingerprint(path, text=False)


class RaySources:
    """What plr.prepare.sources.SourceFiles is for files of one machine: the sources of a Preparation."""

    format = "parquet"
    items = None
    skipped = None
    dropped_without_id = 0

    def __init__(self, paths: list[Path], columns: dict[str, str], options: PrepareOptions) -> None:
        self.paths = paths
        self._columns, self._options = dict(columns), options
        if options.min_rating is None:  # nobody needs them: they may be missing
            self._columns.pop("rating", None)
        self._hashing = [sha256.remote(str(path)) for path in paths]

    def hashes(self) -> list[str]:
        """Return the SHA-256 of every file."""
        return ray.get(self._hashing)

    def describe(self) -> list[dict[str, Any]]:
        """Return name, size and hash of every file."""
        sizes = (path.stat().st_size for path in self.paths)
        return [
            {"file": path.name, "bytes": size, "sha256": sha}
            for path, size, sha in zip(self.paths, sizes, self.hashes(), strict=True)
        ]

    def first_cause(self, error: DataError) -> DataError:
        """Return the error."""
        return error

    def read_parts(self, partitions: int, disk: Path | None) -> tuple[Partitions, Any]:
        """Let Ray read and sort, and take what is sorted."""
        assert disk is not None
        named = json.dumps(self._columns)
        files = [{"path": str(path), "file": number, "columns": named} for number, path in enumerate(self.paths)]
        found = ray.data.from_items(files, override_num_blocks=len(files)).map_batches(read, batch_size=1)
        times = ["timestamp"] if "timestamp" in self._columns else []
        item_ids = pl.Series(found.unique("item"), dtype=pl.String).sort()
        rows = BlockFile(disk, (np.uint32, np.uint32, np.int64, np.bool_, np.int32, np.int64))
        user_ids: list[pl.Series] = []
        last, users = None, 0
        ordered = found.sort(["user", *times, "file", "row"])
        for table in ordered.iter_batches(batch_size=ROWS, batch_format="pyarrow"):  # all but the last of ROWS rows
            frame = pl.DataFrame(pl.from_arrow(table))
            begins = (frame["user"] != frame["user"].shift(1)).fill_null(True).to_numpy().copy()
            begins[0] = frame["user"][0] != last
            last = frame["user"][-1]
            user_ids.append(frame["user"].filter(pl.Series(begins)))
            user = np.cumsum(begins) + (users - 1)
            users += int(begins.sum())
            high = None
            if "rating" in self._columns:
                high = (frame["rating"] >= self._options.min_rating).to_numpy()
            rows.append(
                user,
                item_ids.search_sorted(frame["item"]).to_numpy(),
                frame["timestamp"].to_numpy() if times else np.zeros(0),
                np.zeros(0) if high is None else high,
                frame["file"].to_numpy(),
                frame["row"].to_numpy(),
            )

        def blocks() -> Iterator[Block]:
            for user, item, timestamp, positive, *_ in rows:
                yield user, item, timestamp if len(timestamp) else None, positive if len(positive) else None

        def place(position: int) -> tuple[Path, int]:  # among the sorted rows
            block, at = divmod(position, ROWS)
            return self.paths[int(rows.column(block, 4)[at])], int(rows.column(block, 5)[at]) + 1

        ranks = [
            (ids, np.arange(len(ids), dtype=np.int32)) for ids in (pl.concat([item_ids[:0], *user_ids]), item_ids)
        ]
        return Partitions(blocks, *ranks, partitions, disk), place


def prepare(paths: list[Path], out: Path, columns: dict[str, str], options: PrepareOptions, partitions: int) -> dict:
    """Write the folder ``out`` and return its report."""
    if out.exists():
        raise DataError("is there already; choose another --out", out)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    job = Preparation(RaySources(paths, columns, options), options)  # type: ignore[arg-type]
    prepared = job.build(partitions, out.absolute().parent)
    warn_about(prepared.report, paths[0])
    save_prepared(prepared, out, replace=False)
    return prepared.report


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", help="a pattern of names, in quotes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--user", default="user_id", help="the column of users; likewise the next three")
    parser.add_argument("--item", default="item_id")
    parser.add_argument("--timestamp", default="", help="without, rows count in the order of files and rows")
    parser.add_argument("--rating", default="")
    parser.add_argument("--options", type=json.loads, default={}, help="fields of PrepareOptions as JSON")
    arguments = parser.parse_args()
    columns = {role: getattr(arguments, role) for role in ("user", "item", "rating", "timestamp")}
    files = [Path(path) for path in sorted(glob.glob(arguments.files))]
    if not files:
        parser.error(f"no file has a name like {arguments.files}")
    ray.init()
    report = prepare(
        files,
        arguments.out,
        {role: name for role, name in columns.items() if name},
        PrepareOptions(**arguments.options),
        arguments.partitions,
    )
    print(json.dumps({name: report[name] for name in ("users", "items", "interactions", "rows")}))


if __name__ == "__main__":
    main()
