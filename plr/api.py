"""Train, evaluate and compare runs from Python: what the command line calls.

    metrics = plr.train(frame, "runs/first", method="plr", dim=64)
    plr.evaluate("runs/first", lists=True).lists["coverage@10"]
    print(plr.compare(["runs/first", "runs/second"]))
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plr.config import INTERACTIONS, Config, read_fields
from plr.errors import ConfigError, DataError, RunError, UserError, shortened
from plr.frames import is_frame, write_frame
from plr.inherited import options_of_parent
from plr.presets import preset_path
from plr.runs import RunFolder
from plr.serving.compare import compare_runs
from plr.serving.compared import ComparedRuns
from plr.serving.evaluate import Evaluation, evaluate_run

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger

    from plr.training.handed import Handed

__all__ = ["OPTIONS", "compare", "evaluate", "train", "train_on"]

OPTIONS = frozenset(each.name for each in fields(Config)) - {"data", "out", "provenance"}
"""What `train` takes beside the data and the folder."""
OWN_DEFAULTS: dict[str, Any] = {"progress": False}
"""Defaults that Python has in place of the command line's."""


def train(
    data: Any,
    out: str | os.PathLike[str],
    *,
    preset: str | None = None,
    from_run: str | os.PathLike[str] | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    logger: Logger | Iterable[Logger] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train, validate and test one system, and write its run: `plr train`.

    The same call after an interruption resumes the run after its last finished epoch; so does
    `plr train --config OUT/config.yaml`.

    Args:
        data: a frame of pandas, polars, pyarrow or anything with an Arrow stream, a row per interaction and columns
            as in a CSV file (user, item and, for a split by time, timestamp, under usual names or those of
            `user_column` …); or the path of a file or of a prepared folder. A frame is kept in the run's folder.
        out: the run's folder.
        preset: published settings by their name, which options may change; `plr presets` lists them.
        from_run: a finished run, or a fitted system, to go on from on newer data, with its options where none are
            given.
        callbacks: Lightning's or your own, as for `plr.training.train`.
        logger: loggers of Lightning, beside the run's own.
        options: as in `plr train --help`: backbone, method, dim, epochs, user_column … Those not given have its
            defaults, but for `progress`, which is off.

    Returns:
        The content of metrics.json: under "valid" and "test" the metrics of both held-out splits, of ranks
        among all items, or with `exclude_seen` all but those of the history.

    Raises:
        ConfigError: an option is unknown or out of range, or options do not fit together.
        DataError: the data cannot be used.
        RunError: the folder holds a finished run, or one of other options or data.
        FileNotFoundError: `from_run` is no finished run.

    Examples:
        >>> import polars, plr
        >>> rows = [(f"u{user}", f"i{(user + step) % 12}", step) for user in range(40) for step in range(8)]
        >>> frame = polars.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
        >>> small = {"dim": 8, "ffn_dim": 8, "epochs": 2, "split": "leave-one-out", "threads": 1}
        >>> metrics = plr.train(frame, "runs/sasrec", method="base", **small)
        >>> 0 < metrics["test"]["ndcg@10"] <= 1
        True
    """
    if not isinstance(out, (str, os.PathLike)):
        raise ConfigError(f"out must be the path of the run's folder; found {shortened(out)}")
    given: dict[str, Any] = {} if preset is None else read_fields(preset_path(preset))
    if from_run is not None:
        parent = os.fspath(from_run)
        if not OPTIONS - {"from_run"} <= options.keys():
            place = data if isinstance(data, (str, os.PathLike)) else Path(out) / INTERACTIONS
            given = options_of_parent(parent, os.fspath(place), os.fspath(out)) | given
        given["from_run"] = parent
    return train_on(data, os.fspath(out), given | options, callbacks, logger)


def evaluate(
    run: str | os.PathLike[str],
    data: Any = None,
    *,
    ks: Sequence[int] | None = None,
    exclude_seen: bool | None = None,
    text_vectors: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    by: Sequence[Literal["history", "popularity", "novelty"]] = (),
    history_edges: Sequence[int] | None = None,
    lists: bool = False,
    sampled: int | None = None,
    seed: int = 0,
    rank_with: Literal["model", "engine"] | None = None,
) -> Evaluation:
    """Rank the test rows of a finished run again, on its own data or on others: `plr evaluate`.

    Args:
        run: the run's folder, or a fitted system.
        data: other interactions, a frame or the path of a file or prepared folder, read with the run's options; items
            that the run does not know are left out and counted. None: what the run was trained on.
        ks: the cut-offs; None takes the run's.
        exclude_seen: do not rank items of the history; None does as the run did.
        text_vectors: a folder of text vectors with items that the run does not know, for an inductive unisrec run.
        device: where to compute: cpu, cuda, cuda:1, mps.
        by: metrics of parts of the rows: by the history's length, the target's popularity, new or known targets.
        history_edges: by history: the last length of each part but the longest; None: the quartiles.
        lists: also the metrics of the lists that are recommended: precision, MAP, coverage, Gini, novelty …
        sampled: also rank among so many sampled items, to compare with old tables; misleading otherwise.
        seed: of that sample.
        rank_with: what computes the users' states; None does as the run did.

    Returns:
        The metrics, and what they were measured on.

    Raises:
        ConfigError: an argument is out of range, or the device cannot be used.
        FileNotFoundError: there is no finished run.
        DataError: the run's own data have changed since, or the data cannot be used or have no test row.

    Examples:
        >>> outcome = plr.evaluate("runs/sasrec", lists=True, by=["popularity"])
        >>> outcome.metrics["ndcg@10"] == metrics["test"]["ndcg@10"]
        True
        >>> 0 < outcome.lists["coverage@10"] <= 1
        True
        >>> plr.evaluate("runs/sasrec", frame.head(80)).rows
        10
    """
    if isinstance(by, str) or not isinstance(by, Iterable):
        raise ConfigError(f"by must be a list of history, popularity, novelty; found {by!r}")
    if history_edges is not None and not isinstance(history_edges, Iterable):
        raise ConfigError(f"history_edges must be a list of whole numbers; found {shortened(history_edges)}")
    if not isinstance(lists, bool):  # "no" would be taken for true
        raise ConfigError(f"lists must be True or False; found {shortened(lists)}")
    values: dict[str, Any] = {
        "ks": None if ks is None else _cut_offs(ks), "exclude_seen": exclude_seen, "device": device, "by": by,
        "history_edges": None if history_edges is None else list(history_edges), "lists": lists, "sampled": sampled,
        "seed": seed, "rank_with": rank_with,
        "text_vectors": None if text_vectors is None else os.fspath(text_vectors),
    }  # fmt: skip
    path = Path(run)
    if data is None or isinstance(data, (str, os.PathLike)):
        return evaluate_run(path, None if data is None else os.fspath(data), **values)
    if not is_frame(data):
        raise _no_data(data)
    with tempfile.TemporaryDirectory(prefix="plr-") as temporary:
        file = Path(temporary) / INTERACTIONS
        write_frame(data, file)
        try:
            outcome = evaluate_run(path, str(file), **values, data_format="parquet")
        except DataError as error:
            raise _of_the_frame(error, file) from error
        return replace(outcome, data="a frame")


def compare(
    runs: Sequence[str | os.PathLike[str]], *, metric: str = "ndcg@10", ks: Sequence[int] = (10, 20)
) -> ComparedRuns:
    """Compare finished runs that ranked the same rows: `plr compare`.

    Runs that differ in their seed alone are one system. The others are compared with the first by each user's `metric`:
    paired t-test over users of the runs' means, bootstrap interval over users and runs, p-values corrected by Holm.

    Args:
        runs: their folders, or fitted systems; two systems at least.
        metric: compared by user: recall@K, hr@K, ndcg@K, mrr@K or mrr.
        ks: the K of the metrics that are shown: recall@K and ndcg@K, and `metric` where it is none of them.

    Returns:
        The systems, the first of them the one that the others are compared with; as text a table.

    Raises:
        ConfigError: a metric or a K is none, a folder is given twice, two runs are of one system and seed, or all
            are of one system.
        RunError: the runs did not rank the same rows in the same way.
        FileNotFoundError: a folder holds no finished run.
        DataError: ranks that cannot be read.

    Examples:
        >>> metrics = plr.train(frame, "runs/plr", method="plr", streams=2, **small)
        >>> found = plr.compare(["runs/sasrec", "runs/plr"])
        >>> [system.name for system in found.systems]
        ['sasrec', 'sasrec + plr']
        >>> found.systems[1].comparison.low <= found.systems[1].comparison.high
        True
        >>> found.rendered("markdown").count("| sasrec")
        2
    """
    if isinstance(runs, (str, os.PathLike)) or not isinstance(runs, Iterable):
        raise ConfigError(f"runs must be a list of folders; found {shortened(runs)}")
    shown = [f"{kind}@{k}" for k in _cut_offs(ks) for kind in ("recall", "ndcg")]
    metrics = tuple(dict.fromkeys((*shown, metric)))
    return ComparedRuns(compare_runs([os.fspath(run) for run in runs], metrics, metric), metrics, metric)


def train_on(
    data: Any, out: str, options: dict[str, Any], callbacks: Any = (), logger: Any = None
) -> dict[str, Any]:
    """Train with exactly these options on a frame, a file or a prepared folder; returns the content of metrics.json.

    Raises:
        As `train`.
    """
    from plr.training.handed import Handed

    handed = Handed.of(callbacks, logger)
    for name in options:
        if name not in OPTIONS:
            nearest = difflib.get_close_matches(name, sorted(OPTIONS), n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"there is no option {name!r}, the nearest known is {nearest!r}; `plr train --help` lists them"
            )
    chosen = OWN_DEFAULTS | options
    if isinstance(data, (str, os.PathLike)):
        config = _config_of(chosen | {"data": os.fspath(data), "out": out})
    elif is_frame(data):
        if not out:
            raise RunError("--out is missing: name the folder for the run")
        place = {"format": "parquet", "data": str(RunFolder(Path(out)).interactions), "out": out}
        config = _config_of(chosen | place)
        return _train_on_frame(data, config, handed)
    else:
        raise _no_data(data)
    return _train(config, handed)


def _config_of(values: dict[str, Any]) -> Config:
    """Return the configuration; warn of options that only other methods have, which a file of a whole one may name."""
    from plr.models.registry import options_of_other_methods

    config = Config(**values)
    others = options_of_other_methods(config)
    without = Config(**{name: value for name, value in values.items() if name not in others})
    named = [name for name in values if name in others and values[name] is not None]
    if idle := [name for name in named if getattr(config, name) != getattr(without, name)]:
        listed = ", ".join(f"{name}={shortened(values[name])}" for name in idle)
        warnings.warn(f"without effect, as only other methods than {config.method!r} have them: {listed}", stacklevel=4)
    return config


def _train(config: Config, handed: Handed) -> dict[str, Any]:
    # Lightning takes seconds to import: who loads a system to recommend with it does not wait for what trains.
    from plr.training.trainer import train as train_config

    return train_config(config, callbacks=handed.callbacks, logger=handed.loggers)


def _train_on_frame(frame: Any, config: Config, handed: Handed) -> dict[str, Any]:
    """Keep the frame in the run's folder and train on it; one that cannot be trained on is not kept."""
    folder = RunFolder(Path(config.out))
    made = [each for each in (folder.path, *folder.path.parents) if not each.exists()]
    kept = folder.save_interactions(frame)
    try:
        return _train(config, handed)
    except UserError as error:
        if kept and not folder.config.exists():  # nothing was begun: the next frame is not another one's
            folder.interactions.unlink(missing_ok=True)
            with suppress(OSError):  # somebody else has put something there
                for each in made:
                    each.rmdir()
        if isinstance(error, (DataError, RunError)):
            raise _of_the_frame(error, folder.interactions) from error
        raise


def _of_the_frame(error: DataError | RunError, file: Path) -> DataError | RunError:
    """Return the error with the caller's frame named in place of the file that it was written to."""
    if isinstance(error, DataError):
        place = "the frame" if error.path == str(file) else error.path
        return DataError(_in_python(error.reason.replace(str(file), "the frame")), place, error.line)
    return type(error)(_in_python(str(error).replace(str(file), "the frame")))


def _in_python(message: str) -> str:
    """Return a message about a file in the terms of a frame, and options as they are given in Python."""
    message = re.sub(r"\bthe file (?=holds|has)", "it ", message)
    message = re.sub(r"(?<!plr prepare )--(?=missing_ids|duplicates)", "plr prepare --", message)
    return re.sub(r"(?<![\w-])--(\w+)", lambda found: found[1] if found[1] in OPTIONS else found[0], message)


def _cut_offs(ks: Any) -> tuple[int, ...]:
    listed: list[Any] = list(ks) if isinstance(ks, Iterable) else [None]
    if not all(isinstance(k, Integral) and not isinstance(k, bool) for k in listed):
        raise ConfigError(f"ks must be a list of whole numbers; found {shortened(ks)}")
    found = [int(k) for k in listed]
    if min(found, default=0) < 1:
        raise ConfigError(f"ks must be positive, one at least; found {found}")
    return tuple(found)


def _no_data(found: Any) -> ConfigError:
    return ConfigError(
        "interactions must be a frame (pandas, polars, pyarrow, an Arrow stream) or the path of a file or of a "
        f"prepared folder; found {shortened(found)}"
    )
