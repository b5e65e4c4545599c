"""Amazon Reviews 2023: its files, and the protocols that were published on it."""

from __future__ import annotations

from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from plr.errors import DataError

__all__ = ["BASE_URL", "PROTOCOLS", "SPLIT_TIMES", "TABLE_1", "AmazonFiles", "find_files", "protocol_options", "urls"]

BASE_URL = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023"
"""Where the data set is published (amazon-reviews-2023.github.io)."""

SPLIT_TIMES = (1628643414042, 1658002729837)
"""The publishers' absolute split times, milliseconds since 1970: validation and test begin here."""

TABLE_1 = {
    "CDs_and_Vinyl": {"users": 35_238, "items": 87_969, "interactions": 943_399},
    "Movies_and_TV": {"users": 51_566, "items": 101_114, "interactions": 1_314_578},
    "Video_Games": {"users": 90_678, "items": 22_933, "interactions": 728_661},
}
"""What Table 1 of the PLR paper says."""

PROTOCOLS = ("plr", "rearec")
_PLR_MIN_INTERACTIONS = {"CDs_and_Vinyl": 10, "Video_Games": 10}
_REAREC_MIN_HISTORY = {"CDs_and_Vinyl": (10, 10, 10), "Software": (10, 5, 5)}
_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class AmazonFiles:
    """The files of one domain: interactions (one file or the three of the split), and metadata where there are."""

    interactions: list[Path]
    items: Path | None


def protocol_options(protocol: str, domain: str) -> dict[str, Any]:
    """Return the fields of PrepareOptions that the protocol fixes for the domain.

    "plr" is section 6.1 of the PLR paper; "rearec" is what the public code of ReaRec does.
    """
    common = {
        "format": "csv",
        "item_column": "parent_asin",
        "min_rating": 4,  # "greater than 3": the ratings are whole stars
        "split": "time",
        "valid_time": SPLIT_TIMES[0],
        "test_time": SPLIT_TIMES[1],
    }
    if protocol == "plr":
        return {**common, "min_interactions": _PLR_MIN_INTERACTIONS.get(domain, 0)}
    if protocol == "rearec":
        return {
            **common,
            "low_rated": "history",
            "min_history": _REAREC_MIN_HISTORY.get(domain, (1, 5, 5)),
            "unseen": "drop-rows",
            "untitled": "drop-rows",
        }
    raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}; found {protocol!r}")


def urls(domain: str, base: str = BASE_URL) -> dict[str, str]:
    """Return {file name: address} of the 5-core ratings and the item metadata of a domain."""
    return {
        f"{domain}.csv.gz": f"{base.rstrip('/')}/benchmark/5core/rating_only/{domain}.csv.gz",
        f"meta_{domain}.jsonl.gz": f"{base.rstrip('/')}/raw/meta_categories/meta_{domain}.jsonl.gz",
    }


def find_files(raw: Path, domain: str) -> AmazonFiles:
    """Find the files of ``domain`` under ``raw``, at any depth, packed or not.

    The three files of the time split (``<domain>.train.csv``, valid, test) are taken where they are; else the ratings
    (``<domain>.csv``). Metadata are ``meta_<domain>.jsonl``.

    Raises:
        DataError: a file is missing or there are several of its name; says what is there.
    """
    if not raw.is_dir():
        raise DataError("no such folder; --raw names the one with the files of Amazon Reviews 2023", raw)
    parts = [_find(raw, f"{domain}.{part}.csv") for part in _PARTS]
    whole = _find(raw, f"{domain}.csv")
    items = _find(raw, f"meta_{domain}.jsonl")
    if all(parts):
        return AmazonFiles([part for part in parts if part], items)
    if any(parts) and whole is None:
        missing = [f"{domain}.{name}.csv" for name, part in zip(_PARTS, parts, strict=True) if part is None]
        raise DataError(f"{', '.join(missing)} missing beside the other files of the split (.gz is accepted)", raw)
    if whole is not None:
        return AmazonFiles([whole], items)
    there = sorted({path.name for path in raw.rglob("*") if path.is_file()})
    listed = ", ".join(there[:20]) or "nothing"
    raise DataError(
        f"neither {domain}.csv nor {domain}.train.csv, {domain}.valid.csv and {domain}.test.csv (.gz is accepted); "
        f"there is {listed}. --download fetches them",
        raw,
    )


def _find(raw: Path, name: str) -> Path | None:
    for wanted in (name, f"{name}.gz"):
        found = sorted(raw.rglob(escape(wanted)))
        if len(found) > 1:
            raise DataError(
                f"several files {wanted}: {', '.join(str(path.relative_to(raw)) for path in found)}; "
                "let --raw name the folder of one",
                raw,
            )
        if found:
            return found[0]
    return None
