"""`plr recommend`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jsonargparse import Namespace

from plr.cli.arguments import ROLES
from plr.cli.output import note, show_parts
from plr.errors import ConfigError


def recommend(options: Namespace) -> None:
    """Recommend for one history, or for every user of a file."""
    if (options.history is None) == (options.users is None):
        raise ConfigError("give --history, or --users and --out")
    of_users = ("out", "format", "popularity_days", "popularity_data", *(f"{role}_column" for role in ROLES))
    for name in of_users if options.users is None else ("json", "unknown"):
        if options[name] is not None and options[name] is not False:
            other = "--users" if options.users is None else "--history"
            raise ConfigError(f"--{name} belongs to {other}")
    if options.users is not None and options.out is None:
        raise ConfigError("--users needs --out, the file to write")
    from plr.serving.bulk import read_item_list, refuse_inputs

    if options.users is not None:
        refuse_inputs(Path(options.out), *(Path(options[name]) for name in ("only", "deny") if options[name]))
    lists = {name: options[name] and read_item_list(Path(options[name])) for name in ("only", "deny")}
    if options.users is None:
        _recommend_one(options, lists)
    else:
        _recommend_many(options, lists)


def _recommend_one(options: Namespace, lists: dict[str, list[str] | None]) -> None:
    from plr.cli.tables import recommendation_table
    from plr.serving import Recommender

    recommender = Recommender.load(options.run, options.device, text_vectors=options.text_vectors)
    _tell_unknown(options, lists, recommender.item_ids)
    (answer,) = recommender.recommend(
        [history_of(options.history, recommender.item_ids)],
        options.k,
        exclude_seen=options.exclude_seen,
        unknown=options.unknown or "error",
        only=lists["only"],
        exclude=lists["deny"],
        at_most=options.at_most,
        categories=options.categories,
        category_field=options.category_field,
    )
    if options.json:
        print(
            json.dumps([{"item": each.item, "rank": rank, "score": each.score} for rank, each in enumerate(answer, 1)])
        )
    else:
        show_parts(recommendation_table(answer))


def _recommend_many(options: Namespace, lists: dict[str, list[str] | None]) -> None:
    from plr.evaluation import ranking_progress
    from plr.runs import RunFolder
    from plr.serving.bulk import recommend_users
    from plr.text import TextVectors

    folder = RunFolder(Path(options.run))
    folder.require_finished()
    item_ids = folder.read_item_ids()
    if options.text_vectors is not None:
        item_ids += TextVectors.load(Path(options.text_vectors)).item_ids
    _tell_unknown(options, lists, item_ids)
    counts = recommend_users(
        Path(options.run),
        Path(options.users),
        Path(options.out),
        k=options.k,
        exclude_seen=options.exclude_seen,
        only=lists["only"],
        deny=lists["deny"],
        text_vectors=None if options.text_vectors is None else Path(options.text_vectors),
        at_most=options.at_most,
        categories=None if options.categories is None else Path(options.categories),
        category_field=options.category_field,
        popularity_days=options.popularity_days,
        popularity_data=None if options.popularity_data is None else Path(options.popularity_data),
        device=options.device,
        reading={name: options[name] for name in ("format", *(f"{role}_column" for role in ROLES))},
        progress=partial(ranking_progress, "Recommending", unit="users", stderr=True),
    )
    if counts.unknown:
        note(
            f"{counts.unknown:,} of {counts.interactions:,} interactions are with items never seen in training; they "
            "are ignored"
        )
    if counts.popular:
        note(f"{counts.popular:,} users have no known item and got the most popular ones")
    show_parts(f"{counts.users:,} users, {counts.rows:,} recommendations; saved in {options.out}")


def _tell_unknown(options: Namespace, lists: dict[str, list[str] | None], item_ids: Sequence[str]) -> None:
    """Say how many ids of the lists of items the run does not know."""
    known = set(item_ids)
    for name, ids in lists.items():
        unknown = sum(item_id not in known for item_id in ids or ())
        if unknown:
            note(f"{options[name]}: {unknown:,} of {len(ids or ()):,} ids are no items of the run")


def history_of(given: list[str], item_ids: Sequence[str]) -> list[str]:
    """Return the item ids that --history names: those of one text, separated by blanks, or one of each of several.

    A text that is not such ids of the run's may be a JSON list of ids, or one id with blanks in it.
    """
    if len(given) > 1:
        return given
    known, split = set(item_ids), given[0].split()
    if known.issuperset(split):
        return split
    try:
        listed = json.loads(given[0])
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list) and all(isinstance(item, (str, int)) for item in listed):
        return [str(item) for item in listed]
    return [given[0].strip()] if given[0].strip() in known else split
