"""A trained run, ready to recommend from raw item ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from plr.config import Config
from plr.data import Batch
from plr.errors import RequestError, RunError, listed, shortened
from plr.models import Recommender as Model
from plr.models import build_model
from plr.runs import RunFolder, load_weights
from plr.serving.engine import Engine, why_not
from plr.serving.new_items import with_new_items

MOST_EXCLUDED = 2**20
"""The most ids, with padding, of seen items that are left out of one ranking: 8 MiB."""


def _blocks(histories: Sequence[Tensor], most: int) -> list[slice]:
    """Cut histories, the shortest first, into consecutive blocks of at most `most` items when padded, or of one."""
    starts = [0]
    for row, history in enumerate(histories):
        if row > starts[-1] and (row + 1 - starts[-1]) * history.numel() > most:
            starts.append(row)
    return [slice(*pair) for pair in pairwise([*starts, len(histories)])]


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
        model: a trained recommender.
        item_ids: the external id of items 0..V-1.
        config: the configuration of the run.
    """

    def __init__(self, model: Model, item_ids: Sequence[str], config: Config):
        self.model = model.eval()
        self.item_ids = list(item_ids)
        self.config = config
        self._index = {item_id: index for index, item_id in enumerate(self.item_ids)}
        with torch.no_grad():
            self._table = model.item_table().detach()  # [V, d]
            self._candidates = model.candidates(self._table)  # [V, d]
        self._engine = Engine(self.model) if why_not(self.model) is None else None

    @property
    def engine(self) -> Engine | None:
        """What computes the answers: the engine, or None where PyTorch does, as the model is.

        The engine does on CPUs, for what `plr.serving.engine.why_not` has nothing against when the recommender is
        made, as long as the model is left as it was: weights, buffers, mode and hooks (`Engine.fits`).
        """
        return self._engine if self._engine is not None and self._engine.fits(self.model) else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the engine out of a copy, which makes its own."""
        return {**self.__dict__, "_engine": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._engine = Engine(self.model) if why_not(self.model) is None else None

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "cpu", *, text_vectors: str | Path | None = None
    ) -> Recommender:
        """Load the run folder that `plr train` wrote.

        Args:
            path: the folder.
            device: where the model computes.
            text_vectors: a folder of text vectors with items that came after training, for an inductive unisrec run;
                they are ranked with the others and may stand in histories. Items that the run knows without a text
                get theirs.

        Raises:
            FileNotFoundError: there is no finished run.
            DataError: the text vectors do not fit the run, or a file of it is damaged.
            RunError: the weights are missing or damaged.
        """
        folder = RunFolder(Path(path))
        config = folder.require_finished()
        # Whatever the process has made its default device and dtype: a run is loaded as it was trained.
        with torch.device("cpu"):
            item_ids, item_data = folder.read_item_ids(), folder.read_item_data(config)
            if text_vectors is not None:
                item_ids, item_data = with_new_items(config, item_ids, item_data, Path(text_vectors))
            model = build_model(config, item_data).float()
            load_weights(model, folder.weights)
        folder.check_hashes()
        return cls(model.to(device), item_ids, config)

    @torch.inference_mode()
    def recommend(
        self,
        histories: Iterable[Sequence[str | int]],
        k: int | None = None,
        *,
        exclude_seen: bool | None = None,
        unknown: Literal["error", "skip"] = "error",
        batch_size: int = 512,
    ) -> list[list[Recommendation]]:
        """Return the k best items for each history, best first; ties go to the smaller item number.

        Args:
            histories: item ids as in the training file, oldest first.
            k: how many; at most V. None: 10, or all where V is smaller. A history may get fewer where exclusion
                leaves fewer.
            exclude_seen: do not recommend items of the history; None does as the run was evaluated.
            unknown: "error" refuses a history with an item that training never saw; "skip" ignores that item.
            batch_size: histories per forward pass.

        Raises:
            RequestError: an unknown item, a history in which no known item is left, or a k outside 1..V.
            TypeError, ValueError: an argument of another kind, or a batch_size below 1.
            RunError: the weights are damaged.
        """
        if unknown not in ("error", "skip"):
            raise ValueError(f'unknown must be "error" or "skip"; found {unknown!r}')
        if k is None:
            k = min(10, len(self.item_ids))
        if not isinstance(k, Integral):
            raise TypeError(f"k must be a whole number; found {k!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; found {batch_size}")
        if not 1 <= k <= len(self.item_ids):
            raise RequestError(f"k must be in 1..{len(self.item_ids)}, the number of items; found {k}")
        exclude_seen = self.config.exclude_seen if exclude_seen is None else exclude_seen
        indices = [
            self._to_index(number, history, unknown == "skip") for number, history in enumerate(histories)
        ]
        # Histories of like length together, so that little is padded; answers go back to the asker's order.
        order = sorted(range(len(indices)), key=lambda number: indices[number].numel())
        answers: list[list[Recommendation]] = [[] for _ in indices]
        for first in range(0, len(order), batch_size):
            numbers = order[first : first + batch_size]
            chosen = [indices[number] for number in numbers]
            for number, answer in zip(numbers, self._rank(chosen, int(k), exclude_seen), strict=True):
                answers[number] = answer
        return answers

    def _rank(self, histories: list[Tensor], k: int, exclude_seen: bool) -> list[list[Recommendation]]:
        engine = self.engine
        if engine is not None:
            offsets = torch.tensor([0, *accumulate(map(len, histories))], device="cpu")
            users = engine.states(torch.cat(histories), offsets)
            self._check_finite(users.states)
            return self._answers(
                histories,
                exclude_seen,
                lambda rows, exclude: engine.rank(users.of_rows(rows), k, exclude=exclude),
            )
        device = self._table.device
        recent = [history[-self.config.max_length :] for history in histories]
        lengths = torch.tensor([history.numel() for history in recent], device="cpu")
        batch = Batch(
            item_ids=torch.nn.utils.rnn.pad_sequence(recent, batch_first=True).to(device),
            lengths=lengths.to(device),
            targets=torch.full_like(lengths, -100).to(device),
            users=torch.arange(len(histories), device=device),
        )
        scorer = self.model.scorer(batch, self._table)
        self._check_finite(scorer.states)
        return self._answers(
            histories,
            exclude_seen,
            lambda rows, exclude: scorer.of_rows(rows).top_items(self._candidates, k, exclude=exclude),
        )

    @staticmethod
    def _check_finite(states: Tensor) -> None:
        if not bool(torch.isfinite(states).all()):
            raise RunError("the user embedding of a history is not finite; the weights are damaged")

    def _answers(
        self,
        histories: list[Tensor],
        exclude_seen: bool,
        top: Callable[[slice, Tensor | None], tuple[Tensor, Tensor]],
    ) -> list[list[Recommendation]]:
        """Give names to what `top` returns for rows of the histories: scores and numbers [R, k]."""
        device = self._table.device
        answers: list[list[Recommendation]] = []
        for rows in _blocks(histories, MOST_EXCLUDED) if exclude_seen else [slice(len(histories))]:
            exclude = None
            if exclude_seen:
                seen = histories[rows]
                exclude = torch.nn.utils.rnn.pad_sequence(seen, batch_first=True, padding_value=-1).to(device)
            scores, ids = top(rows, exclude)
            answers += [
                [Recommendation(self.item_ids[item], score) for score, item in zip(*row, strict=True) if item >= 0]
                for row in zip(scores.tolist(), ids.tolist(), strict=True)
            ]
        return answers

    def _to_index(self, number: int, history: Sequence[str | int], skip: bool) -> Tensor:
        if isinstance(history, str) or not isinstance(history, Iterable):
            raise TypeError(f"history {number} must be a sequence of item ids; found {shortened(history)}")
        known: list[int] = []
        unknown: list[str] = []
        for item in map(str, history):
            index = self._index.get(item)
            if index is None:
                unknown.append(item)
            else:
                known.append(index)
        if unknown and not skip:
            raise RequestError(
                f"history {number}: items never seen in training: {listed(dict.fromkeys(unknown))}; leave them out or "
                "skip them "
                '(unknown="skip", on the command line --unknown skip)'
            )
        if not known:
            raise RequestError(f"history {number} holds no item that training has seen")
        return torch.tensor(known, device="cpu")
