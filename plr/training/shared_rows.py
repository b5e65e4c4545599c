"""Weights and resume points of runs whose processes share the item table: in files, it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from plr.errors import RunError
from plr.files import sha256_of
from plr.models import RecommenderModel
from plr.models.items.encoders import SharableItemEncoder
from plr.runs import load_weights
from plr.training.shared_files import read_part, write_together

__all__ = ["complete", "drop_other_rows", "load_own_weights", "number_of_parameters", "own_rows_of", "take_rows_out"]

_ENTRY = "shared_rows"
"""What a checkpoint says of the file beside it: its name and its SHA-256 (hex)."""


def own_rows_of(model: nn.Module) -> slice:
    """Return which rows of the item table a model has."""
    return model.items.held if isinstance(model, RecommenderModel) else slice(None)


def load_own_weights(model: RecommenderModel, path: Path) -> None:
    """Read the weights of a run into its model, of shared tables the process's rows.

    Raises:
        RunError: as `load_weights`.
    """
    shared = model.shared_rows()
    if not shared:
        load_weights(model, path)
        return
    try:
        model.load_state_dict(read_part(path, own_rows_of(model), shared))
    except RuntimeError as error:
        first = str(error).split("\n\t")[:2]
        raise RunError(f"{path}: not the weights of the model in config.yaml ({' '.join(first)})") from error


def number_of_parameters(model: RecommenderModel) -> int:
    """Return how many numbers the model has, those of the rows that other processes have among them."""
    shared = model.shared_rows()
    return sum(
        parameter[0].numel() * model.items.num_items if name in shared else parameter.numel()
        for name, parameter in model.named_parameters()
    )


def take_rows_out(model: RecommenderModel, checkpoint: dict[str, Any], resume_point: Path, step: int) -> Path:
    """Take what the process has of shared tables and their moments out of a checkpoint, into a file of all beside it.

    All processes call it. The file is there before the checkpoint that names it is; `drop_other_rows` removes those
    that none names any more.

    Args:
        model: whose processes share tables.
        checkpoint: as Lightning has made it, of the module around the model.
        resume_point: where it is going to be.
        step: whose it is.

    Returns:
        The file.
    """
    path = resume_point.with_name(f"{resume_point.stem}-items-{step}.safetensors")
    tensors = {}
    numbers = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    optimizers = checkpoint["optimizer_states"]
    for name in model.shared_rows():
        tensors[f"weight.{name}"] = checkpoint["state_dict"].pop(f"model.{name}")
        state = dict(optimizers[0]["state"])  # the optimiser's own dictionaries stay as they are
        of_rows = state.pop(numbers[name], {})
        state[numbers[name]] = {kind: each for kind, each in of_rows.items() if not each.ndim}
        tensors |= {f"{kind}.{name}": each for kind, each in of_rows.items() if each.ndim}
        optimizers[0] = {**optimizers[0], "state": state}
    assert isinstance(model.items, SharableItemEncoder)
    shard = model.items.shard
    write_together(path, {}, tensors, shard)
    checkpoint[_ENTRY] = {"file": path.name, "sha256": "" if shard.rank else sha256_of(path)}
    return path


def complete(checkpoint: dict[str, Any], path: Path, model: RecommenderModel) -> None:
    """Give a checkpoint the rows of tables and moments that a model has, where these are all or some.

    Args:
        checkpoint: as it was read: with whole tables, or with the name of a file beside it that has them.
        path: from where.
        model: which one.

    Raises:
        RunError: the file beside it is missing or another one.
    """
    rows, names = own_rows_of(model), [name for name, _ in model.named_parameters()]
    weights, states = checkpoint["state_dict"], checkpoint["optimizer_states"][0]["state"]
    entry = checkpoint.pop(_ENTRY, None)
    if entry is None:
        for name in model.shared_rows():
            weights[f"model.{name}"] = weights[f"model.{name}"][rows].clone()
            state = states.get(names.index(name), {})
            for kind, each in state.items():
                state[kind] = each[rows].clone() if each.ndim else each
        return
    beside = path.with_name(entry["file"])
    if not beside.exists() or sha256_of(beside) != entry["sha256"]:
        fault = "not as the run wrote it: its SHA-256 is another" if beside.exists() else "it is missing"
        raise RunError(f"{beside}: {fault}; {path} is of no use without it: delete both to train from the start")
    for full, tensor in read_part(beside, rows).items():
        kind, _, name = full.partition(".")
        if kind == "weight":
            weights[f"model.{name}"] = tensor
        else:
            states[names.index(name)][kind] = tensor


def drop_other_rows(resume_point: Path, kept: Path | None) -> None:
    """Remove the files beside a checkpoint that it does not name any more."""
    for path in resume_point.parent.glob(f"{resume_point.stem}-items-*.safetensors"):
        if path != kept:
            path.unlink(missing_ok=True)
