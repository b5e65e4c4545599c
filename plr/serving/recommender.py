"""A trained run, ready to recommend from raw item ids."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from plr.config import Config
from plr.errors import RequestError, RunError, listed, shortened
from plr.frames import as_polars, like
from plr.models import RecommenderModel, build_model
from plr.prepare.readers import Columns
from plr.runs import RunFolder, load_weights
from plr.serving.categories import CategoryLimit, numbered_categories
from plr.serving.device import usable_device
from plr.serving.engine import Engine, UserStates, snapshot
from plr.serving.filters import ItemFilter
from plr.serving.gpu_plan import GPUPlan
from plr.serving.histories import UserHistories, histories_of
from plr.serving.item_numbers import ItemNumbers, is_id, is_sequence
from plr.serving.new_items import with_new_items
from plr.serving.popularity import check_days, most_popular, popularity_of_run, recent_popularity
from plr.serving.ragged import Ragged
from plr.serving.ranker import GPUAnswers, Ranker
from plr.serving.session import Session, rank_sessions

SOURCES = ("popularity", "model")


@dataclass(frozen=True)
class Recommendation:
    """One recommended item and its score, a dot product or a log-probability: comparable within one history."""

    item: str
    score: float


class Recommender:
    """Recommends from raw histories.

        recommender = plr.Recommender.load("runs/beauty")
        recommender.recommend([["item1", "item2"], ["item7"]], k=10)

    Args:
        model: a trained model.
        item_ids: the external id of items 0..V-1.
        config: the configuration of the run.
        popularity: what returns how often each item occurs in the run's training data, int64 [V]; called when that is
            asked for.
        run: the folder that it was loaded from.
        gpu: how users' states are computed on a GPU: "graphs" by the plan (`plr.serving.gpu_plan`), whose shapes are
            captured as CUDA graphs; "launches" by the plan, nothing captured; "module" by the model's own forward pass,
            as where the plan cannot take the model.

    Attributes:
        item_ids, config: as given.

    Raises:
        ValueError: gpu is another word.
    """

    def __init__(
        self,
        model: RecommenderModel,
        item_ids: Sequence[str],
        config: Config,
        popularity: Callable[[], np.ndarray] | None = None,
        run: Path | None = None,
        gpu: GPUAnswers = "graphs",
    ):
        self._ranker = Ranker(model, config.max_length, gpu)
        self.item_ids = list(item_ids)
        self.config = config
        self._read_popularity = popularity
        self._run = run
        self._index = {item_id: index for index, item_id in enumerate(self.item_ids)}
        self._fingerprint: tuple[list[Any], bytes] | None = None

    @property
    def model(self) -> RecommenderModel:
        """The trained model."""
        return self._ranker.model

    @property
    def engine(self) -> Engine | None:
        """What computes the answers: the engine, or None where PyTorch does, as the model is.

        The engine does on CPUs, for what `plr.serving.engine.why_not` has nothing against when the recommender is
        made, as long as the model is left as it was: weights, buffers, mode and hooks (`Engine.fits`).
        """
        return self._ranker.engine

    @property
    def gpu_plan(self) -> GPUPlan | None:
        """What computes users' states on a GPU; None where the engine or the model itself does, as the model is.

        `plr.serving.gpu_plan.why_not` says of which models it does, as long as they are left as they were.
        """
        return self._ranker.gpu_plan

    @cached_property
    def popularity(self) -> np.ndarray:
        """How often each item occurs in the run's training data: int64 [V].

        Raises:
            RunError: that is not known: the recommender is of no run, or the run's data are not there.
        """
        if self._read_popularity is None:
            raise RunError("popularity is known of a run alone; this recommender was made of a model")
        counts = self._read_popularity()
        return np.concatenate([counts, np.zeros(len(self.item_ids) - len(counts), np.int64)])

    def popularity_of(
        self, days: float | None = None, data: str | Path | None = None
    ) -> np.ndarray:
        """Return how often each item occurs, in the last days alone, or in other data: int64 [V].

        Args:
            days: the last so many days before the latest interaction, in which the counts are; None: all.
            data: a file of interactions, in any format that the run's data may have; None: what the run was trained on,
                which is read again for `days`.

        Raises:
            ConfigError: days is not above 0.
            RunError: of a run the data are not there, have changed, or are a prepared folder, which holds no times.
            DataError: the file cannot be used, or has no times.
        """
        check_days(days)
        if days is None and data is None:
            return self.popularity
        if self._run is None and data is None:
            raise RunError("the data are known of a run alone, and this recommender was made of a model; give them")
        return recent_popularity(self._run, self.config, self.numbers, days, data)

    @cached_property
    def numbers(self) -> ItemNumbers:
        """The numbers of item ids, a column at a time."""
        return ItemNumbers(self.item_ids)

    @cached_property
    def _names(self) -> pl.Series:
        return pl.Series("item", self.item_ids, dtype=pl.String)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the hash table out of a copy, which makes its own."""
        return {name: value for name, value in self.__dict__.items() if name != "numbers"}

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        *,
        text_vectors: str | Path | None = None,
        gpu: GPUAnswers = "graphs",
    ) -> Recommender:
        """Load the run folder that `plr train` wrote.

        Args:
            path: the folder.
            device: where the model computes.
            text_vectors: a folder of text vectors with items that came after training, for an inductive unisrec run;
                they are ranked with the others and may stand in histories. Items that the run knows without a text
                get theirs.
            gpu: as of the class.

        Raises:
            ConfigError: the device cannot be used.
            FileNotFoundError: there is no finished run.
            DataError: the text vectors do not fit the run, or a file of it is damaged.
            RunError: the weights are missing or damaged.
            ValueError: gpu is another word.
        """
        folder = RunFolder(Path(path))
        config = folder.require_finished()
        device = usable_device(device)
        # Whatever the process has made its default device and dtype: a run is loaded as it was trained.
        with torch.device("cpu"):
            item_ids, item_data = folder.read_item_ids(), folder.read_item_data(config)
            if text_vectors is not None:
                item_ids, item_data = with_new_items(config, item_ids, item_data, Path(text_vectors))
            model = build_model(config, item_data).float()
            load_weights(model, folder.weights)
        folder.check_hashes()
        return cls(model.to(device), item_ids, config, partial(popularity_of_run, folder.path), folder.path, gpu)

    def recommend(
        self,
        histories: Iterable[Sequence[str | int]],
        k: int | None = None,
        *,
        exclude_seen: bool | None = None,
        unknown: Literal["error", "skip"] = "error",
        only: Iterable[Any] | None = None,
        exclude: Iterable[Any] | None = None,
        where: Any = None,
        at_most: int | None = None,
        categories: Mapping[Any, Any] | str | Path | Ragged | None = None,
        category_field: str | None = None,
        batch_size: int = 512,
    ) -> list[list[Recommendation]]:
        """Return the k best items for each history, best first; ties go to the smaller item number.

        Filters leave items out of the answer, and nothing else: scores and order are those of the whole ranking.

        Args:
            histories: item ids as in the training file, oldest first.
            k: how many; at most V. None: 10, or all where V is smaller. A history may get fewer where exclusion
                leaves fewer.
            exclude_seen: do not recommend items of the history; None does as the run was evaluated.
            unknown: "error" refuses a history with an item that training never saw; "skip" ignores that item.
            only: item ids that may be recommended, or for each history a list of its own (None: all items). Ids that
                training never saw are ignored.
            exclude: item ids that must not be recommended, or for each history a list of its own.
            where: bool [V] or [histories, V], the items that may be recommended, by their numbers: `item_ids` has
                them in order.
            at_most: how many items of a category an answer may hold. It is what a walk down the whole ranking takes:
                each item none of whose categories has so many yet.
            categories: with at_most: from item ids to a category or a list of them; or a file of item features, or a
                prepared folder; or what `categories_of` made of one, once for many calls. An item counts in each of its
                categories; one without any may always come.
            category_field: which field of that file; None: "categories", or the only one.
            batch_size: histories per forward pass.

        Raises:
            ConfigError: one of at_most and categories without the other, or an at_most below 1.
            RequestError: an unknown item, a history in which no known item is left, a k outside 1..V, or filters that
                leave no item.
            TypeError, ValueError: an argument of another kind, or a batch_size below 1.
            RunError: the weights are damaged.
        """
        if unknown not in ("error", "skip"):
            raise ValueError(f'unknown must be "error" or "skip"; found {unknown!r}')
        if not isinstance(histories, Iterable):
            raise TypeError(f"histories must be lists of item ids, one for each history; found {shortened(histories)}")
        if isinstance(histories, pl.DataFrame):  # whose items are its columns
            raise TypeError("histories must be lists of item ids; found a frame, which recommend_frame takes")
        numbers = Ragged.of(
            [self._to_numbers(place, history, unknown == "skip") for place, history in enumerate(histories)]
        )
        filters = self.filters(len(numbers), only, exclude, where)
        scores, items = self.rank(
            numbers,
            k,
            exclude_seen=exclude_seen,
            filters=filters,
            limit=CategoryLimit.of(self.item_ids, at_most, categories, category_field),
            batch_size=batch_size,
        )
        return self.objects(scores, items)

    def categories_of(
        self, categories: Mapping[Any, Any] | str | Path, category_field: str | None = None
    ) -> Ragged:
        """Return the items' categories as numbers, read once for many calls with at_most.

        Args:
            categories, category_field: as in `recommend`.

        Raises:
            ConfigError, TypeError, DataError: they cannot be used.
        """
        return numbered_categories(self.item_ids, categories, category_field)

    def objects(self, scores: np.ndarray, items: np.ndarray) -> list[list[Recommendation]]:
        """Return what `rank` found as `recommend` does."""
        return [
            [Recommendation(self.item_ids[item], score) for score, item in zip(*row, strict=True) if item >= 0]
            for row in zip(scores.tolist(), items.tolist(), strict=True)
        ]

    def session(
        self, history: Iterable[str | int] = (), *, unknown: Literal["error", "skip"] = "error"
    ) -> Session:
        """Return a history to which items are appended, and whose answers cost what is new of it.

        Args:
            history: item ids as in the training file, oldest first; may be empty.
            unknown: as in `recommend`; of items that are appended too.

        Raises:
            As `recommend`.
        """
        return Session(self, history, unknown=unknown)

    def recommend_sessions(
        self,
        sessions: Sequence[Session],
        k: int | None = None,
        *,
        exclude_seen: bool | None = None,
        only: Iterable[Any] | None = None,
        exclude: Iterable[Any] | None = None,
        where: Any = None,
        at_most: int | None = None,
        categories: Mapping[Any, Any] | str | Path | Ragged | None = None,
        category_field: str | None = None,
    ) -> list[list[Recommendation]]:
        """Return the k best items for each of many sessions: what `Session.recommend` returns for each, to the bit.

        What is new of all of them is computed together, which takes less time than one after the other.

        Args:
            sessions: of this recommender; none is in use elsewhere meanwhile.
            k, exclude_seen, only, exclude, where, at_most, categories, category_field: as in `recommend`.

        Raises:
            As `recommend`; RequestError: a history holds no item yet.
            ValueError: a session is another recommender's.
        """
        sessions = list(sessions)
        filters = self.filters(len(sessions), only, exclude, where)
        limit = CategoryLimit.of(self.item_ids, at_most, categories, category_field)
        return self.objects(
            *rank_sessions(self, sessions, k, exclude_seen=exclude_seen, filters=filters, limit=limit)
        )

    def session_from_bytes(self, content: bytes) -> Session:
        """Return the session that `Session.to_bytes` wrote.

        Raises:
            RunError: no session, a damaged one, one of another version or of another run.
        """
        return Session.from_bytes(self, content)

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of item ids and weights: of another run, another one."""
        state = snapshot(self.model)
        if self._fingerprint is None or self._fingerprint[0] != state:
            found = sha256("\n".join(f"{len(item)} {item}" for item in self.item_ids).encode())
            for name, tensor in sorted(self.model.state_dict().items()):
                found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
            self._fingerprint = state, found.digest()
        return self._fingerprint[1]

    def recommend_frame(
        self,
        histories: Any,
        k: int | None = None,
        *,
        exclude_seen: bool | None = None,
        unknown: Literal["error", "skip"] = "skip",
        only: Iterable[Any] | Mapping[Any, Any] | None = None,
        exclude: Iterable[Any] | Mapping[Any, Any] | None = None,
        where: Any = None,
        at_most: int | None = None,
        categories: Mapping[Any, Any] | str | Path | Ragged | None = None,
        category_field: str | None = None,
        popularity_days: float | None = None,
        popularity_data: str | Path | None = None,
        batch_size: int = 512,
    ) -> Any:
        """Return the k best items for each user of a frame, as a frame: no object is made for an item.

        A user of whom no item is known gets the most popular ones.

        Args:
            histories: a frame of pandas, polars, pyarrow or any Arrow stream, or a mapping from names to arrays: a row
                per interaction, a history being a user's rows in the order of the timestamps (without: of the frame);
                or a row per history, with a list of item ids (or a text of them) in the column `history`. Columns have
                the usual names or those of the run (`user_column`, …). Ratings below the run's `min_rating` are left
                out, where the frame has any.
            unknown: "skip" ignores items that training never saw, and warns of them; "error" refuses them.
            only, exclude: as in `recommend`, lists being those of the users in the order in which they come in the
                frame; or mappings from users to lists of item ids.
            k, exclude_seen, where, at_most, categories, category_field, batch_size: as in `recommend`.
            popularity_days, popularity_data: what the most popular items are, as in `popularity_of`.

        Returns:
            A frame of the same library (of polars for others): the user column as it was; item; rank, from 1; score;
            and source: "model", or "popularity", where the score is how often the item occurs in training, or in the
            last days.

        Raises:
            As `recommend`; DataError: a column is missing or holds something else.
            RunError: popularity is asked for, and the run's data are not there.
        """
        if unknown not in ("error", "skip"):
            raise ValueError(f'unknown must be "error" or "skip"; found {unknown!r}')
        frame = as_polars(histories)
        config = self.config
        rating = config.rating_column if config.rating_column in frame.columns else None
        wanted = Columns(config.user_column, config.item_column, rating, config.timestamp_column)
        strict = unknown == "error"
        users = histories_of(frame, wanted, self.numbers, min_rating=config.min_rating, strict=strict)
        if users.unknown:
            warnings.warn(
                f"{users.unknown:,} of {users.interactions:,} interactions are with items never seen in training; "
                "they are ignored",
                stacklevel=2,
            )
        only, exclude = _of_users("only", only, users.users), _of_users("exclude", exclude, users.users)
        filters = self.filters(len(users.users), only, exclude, where)
        limit = CategoryLimit.of(self.item_ids, at_most, categories, category_field)
        none = bool((users.items.lengths == 0).any())
        popularity = None
        if popularity_days is not None or popularity_data is not None:
            # Checked in any case, and counted where somebody gets it.
            check_days(popularity_days)
            popularity = self.popularity_of(popularity_days, popularity_data) if none else None
        answers = self.answers(
            users,
            k,
            exclude_seen=exclude_seen,
            filters=filters,
            limit=limit,
            popularity=popularity,
            batch_size=batch_size,
        )
        return like(histories, answers)

    def answers(
        self,
        users: UserHistories,
        k: int | None = None,
        *,
        exclude_seen: bool | None = None,
        filters: ItemFilter | None = None,
        limit: CategoryLimit | None = None,
        popularity: np.ndarray | None = None,
        batch_size: int = 512,
    ) -> pl.DataFrame:
        """Return the frame of `recommend_frame` for histories that were read already.

        popularity [V] is what `popularity_of` returned; None: `popularity`, of all of training.
        """
        k = self.checked_k(k)
        known = users.items.lengths > 0
        some, none = np.flatnonzero(known), np.flatnonzero(~known)
        scores, items = np.empty((len(known), k), np.float32), np.empty((len(known), k), np.int64)
        scores[some], items[some] = self.rank(
            users.items.take(some),
            k,
            exclude_seen=exclude_seen,
            filters=None if filters is None else filters.take(some),
            limit=limit,
            batch_size=batch_size,
        )
        if len(none):
            own = ItemFilter(len(self.item_ids)) if filters is None else filters.take(none)
            counts = self.popularity if popularity is None else popularity
            scores[none], items[none] = most_popular(counts, len(none), k, own, limit)
        row, column = (items >= 0).nonzero()
        return pl.DataFrame(
            [
                users.users.gather(row),
                self._names.gather(items[row, column]).alias("item"),
                pl.Series("rank", column + 1, dtype=pl.Int32),
                pl.Series("score", scores[row, column]),
                pl.Series("source", SOURCES).gather(known[row].astype(np.uint32)),
            ]
        )

    def filters(self, histories: int, only: Any = None, exclude: Any = None, where: Any = None) -> ItemFilter:
        """Return what so many histories may get, as `recommend` takes it."""
        return ItemFilter.of(self._index, histories, only, exclude, where)

    def rank(
        self,
        histories: Ragged,
        k: int | None = None,
        *,
        exclude_seen: bool | None = None,
        filters: ItemFilter | None = None,
        limit: CategoryLimit | None = None,
        batch_size: int = 512,
        states: UserStates | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best items for each history as numbers: `recommend` without ids and objects.

        Args:
            histories: B lists of item numbers, none empty, oldest first.
            k, exclude_seen, batch_size: as in `recommend`.
            filters: what each history may get.
            limit: how many items of a category.
            states: what the engine has made of the histories, where that is known.

        Returns:
            scores [B, k] and items int64 [B, k], best first; −inf and −1 where fewer are left.

        Raises:
            As `recommend`.
        """
        k = self.checked_k(k)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; found {batch_size}")
        return self._ranker.rank(
            histories,
            k,
            exclude_seen=self.config.exclude_seen if exclude_seen is None else exclude_seen,
            filters=filters,
            limit=limit,
            batch_size=batch_size,
            states=states,
        )

    @property
    def item_vectors(self) -> Tensor:
        """The vectors that scores are taken against, [V, d] in the order of `item_ids`: of cosines, unit vectors."""
        return self._ranker.item_vectors.cpu()

    def user_states(
        self,
        histories: Iterable[Sequence[str | int]],
        *,
        unknown: Literal["error", "skip"] = "error",
        batch_size: int = 512,
    ) -> UserStates:
        """Return what ranks the `item_vectors` for each history, for an index of inner products.

        With one state a history an item's score is its inner product with the state. A mixture of distributions has C
        states and log-weights, s(v) = log Σ_c exp(log_weights[c]) softmax(states[c] item_vectorsᵀ / temperature)[v],
        where the temperature is `model.temperature`.

        Args:
            histories, unknown, batch_size: as in `recommend`.

        Returns:
            states [B, d] and None, or states [B, C, d] and log_weights [B, C], on the CPU.

        Raises:
            As `recommend`.
        """
        if unknown not in ("error", "skip"):
            raise ValueError(f'unknown must be "error" or "skip"; found {unknown!r}')
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; found {batch_size}")
        numbers = Ragged.of(
            [self._to_numbers(place, history, unknown == "skip") for place, history in enumerate(histories)]
        )
        return self._ranker.states(numbers, batch_size)

    def checked_k(self, k: int | None) -> int:
        """Return how many items are asked for, as `recommend` takes it.

        Raises:
            TypeError, RequestError: k is no whole number, or outside 1..V.
        """
        if k is None:
            return min(10, len(self.item_ids))
        if not isinstance(k, Integral) or isinstance(k, bool):
            raise TypeError(f"k must be a whole number; found {k!r}")
        if not 1 <= k <= len(self.item_ids):
            raise RequestError(f"k must be in 1..{len(self.item_ids)}, the number of items; found {k}")
        return int(k)

    def numbers_of(self, items: Iterable[str | int]) -> tuple[list[int], list[str]]:
        """Return the numbers of the items that training has seen, and the ids of the others.

        Raises:
            TypeError: what is unknown can be no id.
        """
        known: list[int] = []
        unknown: list[str] = []
        for item in items:
            name = str(item)
            index = self._index.get(name)
            if index is not None:
                known.append(index)
            elif is_id(item):
                unknown.append(name)
            else:  # what is skipped must be an item that training never saw, not a number that has become a float
                raise TypeError(f"an item must be an id, a text or a whole number; found {shortened(item)}")
        return known, unknown

    def _to_numbers(self, place: int, history: Sequence[str | int], skip: bool) -> list[int]:
        if not is_sequence(history):
            raise TypeError(f"history {place} must be a sequence of item ids; found {shortened(history)}")
        known, unknown = self.numbers_of(history)
        if unknown and not skip:
            raise RequestError(
                f"history {place}: items never seen in training: {listed(dict.fromkeys(unknown))}; leave them out or "
                "skip them "
                '(unknown="skip", on the command line --unknown skip)'
            )
        if not known:
            raise RequestError(f"history {place} holds no item that training has seen")
        return known


def _of_users(name: str, given: Any, users: pl.Series) -> Any:
    """Return the lists of a mapping for the users in their order; ids are compared as text, as everywhere."""
    if not isinstance(given, Mapping):
        return given
    lists = {str(user): items for user, items in given.items()}
    if len(lists) < len(given):
        twice = next(user for user in given if user != str(user) and str(user) in given)
        raise RequestError(f"{name} has two lists for the user {twice!r}, one of a number and one of a text")
    for user, items in given.items():
        if isinstance(user, Real) and not isinstance(user, Integral):  # as text no user's: 1.0 is not 1
            raise TypeError(f"{name} must name users by their ids, texts or whole numbers; found {user!r}")
        if isinstance(items, (str, Integral)):  # of texts alone a list for all users would be made
            raise TypeError(f"{name} must have a list of item ids for the user {user!r}; found {shortened(items)}")
    return [lists.get(user) for user in users.cast(pl.String)] or None
