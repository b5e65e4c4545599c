"""What a run that goes on from another begins with, in a file of its own: the other is not needed again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plr.errors import RunError
from plr.files import atomic_path, sha256_of
from plr.models import RecommenderModel
from plr.training.shared_files import read_part
from plr.training.shared_rows import own_rows_of

__all__ = ["Start"]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running means of each parameter's gradient and of its square."""


@dataclass(frozen=True, eq=False)
class Start:
    """Weights, Adam's moments, and where they are from.

    Attributes:
        weights: by the names of the model's state_dict.
        moments: of each parameter {"exp_avg": …, "exp_avg_sq": …, "step": a float32 scalar}; none where the parent had
            none to give: then Adam begins anew.
        parent: what the run's provenance says of its parent.
        counts: how many items are known, new and retired.
        stored: the file that has weights and moments, where they are not held: a process that has some rows of the item
            table reads no others.
    """

    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    parent: dict[str, Any]
    counts: dict[str, int]
    stored: Path | None = None

    def note(self, new_items: str | None) -> str:
        """Return what became of the parent's items, in words."""
        known, new, retired = (self.counts[name] for name in ("known", "new", "retired"))
        started = {
            "neighbours": "start at the mean of the items that they occur with",
            "content": "start at the mean of the known ones, apart from their features or text",
            "random": "start at random",
        }[str(new_items)]
        return (
            f"{self.parent['run']}: {known:,} items are known, {new:,} are new and {started}, {retired:,} have retired"
        )

    def set_weights(self, model: RecommenderModel) -> None:
        """Give them to the model, of shared tables the process's rows."""
        model.load_state_dict(self._own(model)[0])

    def set_moments(self, model: RecommenderModel, optimizer: torch.optim.Optimizer) -> None:
        """Give them to Adam, which has one group of the model's parameters in their order; rows as `set_weights`."""
        _, moments = self._own(model)
        if not moments:
            return
        names = [name for name, _ in model.named_parameters()]
        state = {  # copies: Adam takes the tensors as its own, and a refit begins with them, too
            number: {kind: tensor.clone() for kind, tensor in moments[name].items()}
            for number, name in enumerate(names)
            if name in moments
        }
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _own(self, model: RecommenderModel) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Return weights and moments, of shared tables the rows that the model has."""
        rows, shared = own_rows_of(model), model.shared_rows()
        if self.stored is not None:
            kinds = ("weights", *MOMENTS)
            return _divided(read_part(self.stored, rows, [f"{kind}.{name}" for kind in kinds for name in shared]))
        weights, moments = dict(self.weights), dict(self.moments)
        for name in shared:
            weights[name] = weights[name][rows]
            if name in moments:
                moments[name] = {kind: each[rows] if each.ndim else each for kind, each in moments[name].items()}
        return weights, moments

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        tensors = {f"weights.{name}": tensor.contiguous() for name, tensor in self.weights.items()}
        for name, state in self.moments.items():
            tensors |= {f"{kind}.{name}": tensor.contiguous() for kind, tensor in state.items()}
        described = json.dumps({"parent": self.parent, "counts": self.counts})
        with atomic_path(path) as aside:
            save_file(tensors, aside, {"start": described})  # one entry: several stand in any order

    @classmethod
    def load(cls, path: Path, sha256: str, *, held: bool = True) -> Start:
        """Read what `save` wrote.

        Args:
            path: the file.
            sha256: its hash (hex) when it was written.
            held: whether all weights and moments are read now, not by each model those that it has.

        Raises:
            RunError: the file is not as it was written.
        """
        try:
            if sha256_of(path) != sha256:
                raise RunError(f"{path}: not as the run wrote it: its SHA-256 is another")
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys() if held}  # noqa: SIM118 (not a dict)
                described = json.loads(file.metadata()["start"])
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path}: cannot be read ({error})") from error
        weights, moments = _divided(tensors)
        return cls(weights, moments, described["parent"], described["counts"], None if held else path)


def _divided(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Return the weights and the moments of a file."""
    weights: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        kind, _, name = full.partition(".")
        if kind == "weights":
            weights[name] = tensor
        else:
            moments.setdefault(name, {})[kind] = tensor
    return weights, moments
