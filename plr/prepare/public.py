"""Public data sets by name: where their files are published, and what they must be."""

from __future__ import annotations

import difflib
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from plr.errors import ConfigError, DataError, shortened
from plr.files import atomic_path, sha256_of
from plr.prepare.amazon import urls
from plr.prepare.download import Progress, download, forget, recorded_sha256

__all__ = ["AMAZON_DOMAINS", "SETS", "Fetched", "PublicFile", "PublicSet", "fetch", "public_set"]

_AMAZON = "amazon-2023/"
AMAZON_DOMAINS = (
    "All_Beauty", "Amazon_Fashion", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Baby_Products",
    "Beauty_and_Personal_Care", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry",
    "Digital_Music", "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food", "Handmade_Products",
    "Health_and_Household", "Health_and_Personal_Care", "Home_and_Kitchen", "Industrial_and_Scientific",
    "Kindle_Store", "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments", "Office_Products",
    "Patio_Lawn_and_Garden", "Pet_Supplies", "Software", "Sports_and_Outdoors", "Subscription_Boxes",
    "Tools_and_Home_Improvement", "Toys_and_Games", "Unknown", "Video_Games",
)  # fmt: skip
"""The categories of Amazon Reviews 2023."""


@dataclass(frozen=True)
class PublicFile:
    """One file of a set.

    Attributes:
        name: what it is called here.
        url: where it is published.
        size: bytes, where known beforehand.
        sha256: hex, where known beforehand.
        members: what is unpacked of it, a zip archive, by the archive's names; each beside it.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublicSet:
    """A set by its name.

    Attributes:
        name: what it is asked for by.
        title: what it is.
        files: the interactions, and what belongs to them.
        items: files of item metadata, fetched where they are asked for.
        page: where its terms of use stand.
        source: the argument of `plr prepare`, {out} being the folder of the files.
    """

    name: str
    title: str
    files: tuple[PublicFile, ...]
    page: str
    source: str = "{out}"
    items: tuple[PublicFile, ...] = ()


def _movielens(name: str, title: str, size: int, sha256: str, members: str) -> PublicSet:
    url = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    wanted = tuple(f"{name}/{member}" for member in members.split())
    page = "https://grouplens.org/datasets/movielens"
    return PublicSet(name, f"MovieLens {title}", (PublicFile(f"{name}.zip", url, size, sha256, wanted),), page)


def _amazon_2014(name: str, file: str, title: str, size: int, sha256: str) -> PublicSet:
    """A set as one revision of a public repository has it, which does not change."""
    page = "https://github.com/salesforce/ICLRec"
    revision = "4afb54a036ebbf4166ed5858122d89c0642251a7"
    url = f"https://raw.githubusercontent.com/salesforce/ICLRec/{revision}/data/{file}"
    return PublicSet(name, title, (PublicFile(f"{name}.txt", url, size, sha256),), page, f"{{out}}/{name}.txt")


# Sizes and hashes: of MovieLens those that several projects pin; of Amazon 2014 those of a copy whose size and end are
# the revision's; of Amazon 2023 those that others have recorded of what they fetched.
SETS = {
    each.name: each
    for each in (
        _movielens(
            "ml-100k", "100k: 943 users, 1,682 films, 100,000 ratings", 4_924_029,
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229", "u.data u.item README",
        ),
        _movielens(
            "ml-1m", "1M: 6,040 users, 3,706 films, 1,000,209 ratings", 5_917_549,
            "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20", "ratings.dat movies.dat README",
        ),
        _movielens(
            "ml-20m", "20M: 20,000,263 ratings", 198_702_078,
            "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3", "ratings.csv movies.csv README.txt",
        ),
        _movielens(
            "ml-25m", "25M", 261_978_986,
            "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa", "ratings.csv movies.csv README.txt",
        ),
        _amazon_2014(
            "beauty", "Beauty.txt", "Amazon 2014 Beauty, 5-core: 22,363 users, 12,101 items, 198,502 interactions",
            1_090_094, "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
        ),
        _amazon_2014(
            "toys", "Toys_and_Games.txt",
            "Amazon 2014 Toys and Games, 5-core: 19,412 users, 11,924 items, 167,597 interactions",
            922_166, "176c680c688d497598c4a89a03b402c0fe78d795e5db335c2e78dd5f2d778a3f",
        ),
        PublicSet(
            "steam", "Steam, as RecBole publishes it, repeats merged (steam.inter, steam.item)",
            (PublicFile("steam.zip", "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets/Steam/merged/"
                        "steam.zip", members=("steam/steam.inter", "steam/steam.item")),),
            "https://github.com/RUCAIBox/RecSysDatasets",
        ),
    )
}  # fmt: skip

_KNOWN_OF_AMAZON = {
    "CDs_and_Vinyl": (21_466_396, "53811902ffb01eb22da31a35e0775f3b8351baebe7e1ab38b85b6c4aee689c20"),
    "Video_Games": (None, "a2bde5f3b945960d161538c200dd87845e6ee471b46da96410dde61613c6901c"),
}


def public_set(name: str) -> PublicSet:
    """Return the set of that name, whatever the case of its letters.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    domains = {f"{_AMAZON}{domain}".lower(): domain for domain in AMAZON_DOMAINS}
    wanted = name.lower()
    if wanted in SETS:
        return SETS[wanted]
    if wanted in domains:
        return _amazon_2023(domains[wanted])
    known = [*SETS, *(_AMAZON + domain for domain in AMAZON_DOMAINS)]
    lower = {each.lower(): each for each in known}
    nearest = lower[difflib.get_close_matches(wanted, list(lower), n=1, cutoff=0.0)[0]]
    raise ConfigError(f"no public set {shortened(name)}, the nearest known is {nearest}; plr data list names them all")


def _amazon_2023(domain: str) -> PublicSet:
    (ratings, ratings_url), (metadata, metadata_url) = urls(domain).items()
    size, sha256 = _KNOWN_OF_AMAZON.get(domain, (None, None))
    return PublicSet(
        f"{_AMAZON}{domain}",
        f"Amazon Reviews 2023, {domain}, 5-core ratings",
        (PublicFile(ratings, ratings_url, size, sha256),),
        "https://amazon-reviews-2023.github.io",
        f"amazon-2023 --domain {domain} --raw {{out}}",
        (PublicFile(metadata, metadata_url),),
    )


@dataclass(frozen=True)
class Fetched:
    """A file that is there.

    Attributes:
        path: where.
        url: where from.
        sha256: hex.
        known: whether that was known beforehand, in this catalogue or from an earlier call.
        recorded: whether downloads.json has it; not of a file that was put there by hand.
        unpacked: what was unpacked of it.
    """

    path: Path
    url: str
    sha256: str
    known: bool
    recorded: bool
    unpacked: tuple[Path, ...]


def fetch(
    file: PublicFile,
    folder: Path,
    *,
    url: str | None = None,
    sha256: str | None = None,
    on_progress: Progress | None = None,
    pause: float = 1.0,
) -> Fetched:
    """Fetch a file into a folder, check it, and unpack what is wanted of it.

    What it must be is known from the catalogue, from `sha256`, or from what an earlier call recorded in the folder.

    Args:
        file: what.
        folder: where to.
        url: where from instead: the file's address, or with a slash at its end that of the folder that it is in.
        sha256: what it must be instead.
        on_progress, pause: as in `download`.

    Raises:
        DataError: as `download`; an archive that is damaged or lacks a member; a file of a member's name that is there
            and did not come from the archive.
    """
    source = file.url if url is None else f"{url}{file.name}" if url.endswith("/") else url
    path = folder / file.name
    wanted, size = (file.sha256, file.size) if sha256 is None else (sha256.lower(), None)
    pinned = recorded_sha256(path) if wanted is None else wanted
    ours = recorded_sha256(path) is not None  # an earlier call fetched it, and unpacked it or was about to
    if not ours and not path.exists():
        _refuse_others(path, file.members)
    download(source, path, sha256=pinned, size=size, on_progress=on_progress, pause=pause)
    try:
        unpacked = tuple(_unpack(path, file.members, replace=ours)) if file.members else ()
    except _WrongArchiveError:
        if wanted is None:
            forget(path)  # else the right one would be refused for not being this one
        raise
    recorded = recorded_sha256(path)
    found = recorded or pinned or sha256_of(path)
    return Fetched(path, source, found, pinned is not None, recorded is not None, unpacked)


class _WrongArchiveError(DataError):
    """An archive that is damaged or lacks a member."""


def _refuse_others(archive: Path, members: tuple[str, ...]) -> None:
    """Refuse to unpack where a file has a member's name, before the archive is here to compare it with."""
    for member in members:
        if (path := archive.with_name(PurePosixPath(member).name)).exists():
            raise _another(path, archive)


def _another(path: Path, archive: Path) -> DataError:
    return DataError(f"is there already and is not known to be of {archive.name}; choose another folder (--out)", path)


def _unpack(archive: Path, members: tuple[str, ...], *, replace: bool) -> list[Path]:
    """Write members of a zip archive beside it, each renamed into place when it is whole.

    With `replace` a file that differs from its member is damaged, and made again; else it is somebody's, and refused.
    """
    paths = []
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in members:
                info = packed.getinfo(member)
                path = archive.with_name(PurePosixPath(member).name)
                if not _is_same(path, info):
                    if path.exists() and not replace:
                        raise _another(path, archive)
                    with atomic_path(path) as aside, packed.open(info) as source, open(aside, "wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                paths.append(path)
    except KeyError as error:
        text = f"the archive has no {member}: it is not the one that was expected; remove it and repeat the command"
        raise _WrongArchiveError(text, archive) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        text = f"the archive cannot be unpacked: {error}; remove it and repeat the command"
        raise _WrongArchiveError(text, archive) from error
    return paths


def _is_same(path: Path, info: zipfile.ZipInfo) -> bool:
    """Return whether a file is what the archive says of it."""
    if not path.is_file() or path.stat().st_size != info.file_size:
        return False
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum == info.CRC
