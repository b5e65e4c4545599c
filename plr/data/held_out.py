"""Whether rows that are held out here were trained on elsewhere: what two reports of preparation say of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plr.prepare.options import PrepareOptions

__all__ = ["begins_in_training", "differing_splits", "last_trained"]

_SETTINGS = [
    (name, getattr(PrepareOptions, name)) for name in ("leave_k", "valid_users", "test_users", "split_seed")
]


def last_trained(report: Mapping[str, Any], refit: bool) -> int | None:
    """Return the time of the last target that a run was trained on; None where its data were not split by time.

    Args:
        report: of the run's data.
        refit: whether it was trained on its validation rows too.
    """
    times = report.get("times", {})
    trained = [times[split][1] for split in (("train", "valid") if refit else ("train",)) if split in times]
    return max(trained, default=None)


def begins_in_training(split: str, report: Mapping[str, Any], trained: Mapping[str, Any], refit: bool) -> int | None:
    """Return when the targets of a split begin, if that is not after the last target that a run was trained on.

    Args:
        split: "valid" or "test".
        report: of the data with that split.
        trained: of the run's data, which may be others.
        refit: as for `last_trained`.

    Returns:
        None where it begins later, and where nothing says so: another split than by time, or times of another unit.
    """
    until, begin = last_trained(trained, refit), report.get("times", {}).get(split)
    if report.get("split") != "time" or until is None or begin is None:
        return None
    return begin[0] if report.get("time_unit") == trained.get("time_unit") and begin[0] <= until else None


def differing_splits(trained: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """Return in what a run's data were split otherwise than others, in words; nothing where both hold out alike."""
    one, two = (
        {"split": each.get("split")} | {name: each.get("options", {}).get(name, default) for name, default in _SETTINGS}
        for each in (trained, report)
    )
    return [f"{name}: {one[name]} there, {two[name]} here" for name in one if one[name] != two[name]]
