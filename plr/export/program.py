"""Histories to recommendations as one graph of PyTorch's own operators, and the same as ONNX."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plr.data import Batch
from plr.errors import RunError
from plr.export.check import Answer
from plr.serving import Recommender
from plr.serving.ragged import Ragged
from plr_kernels import use_backend
from plr_kernels.top_items.reference import best_columns

_NOWHERE = torch.iinfo(torch.int64).max
"""In place of negative numbers: ONNX counts them from the end, while this is refused wherever a program runs."""
_LARGEST_ONNX = 2**31 - 2**24  # bytes of weights: a file of protocol buffers ends at 2 GiB


class Ranking(nn.Module):
    """What is exported: item_ids int64 [B, n] and lengths int64 [B] to scores [B, k] and items int64 [B, k].

    Of a history the last max_length items are read; what lies beyond its length is not. Best first, ties to the
    smaller number; -inf and -1 where fewer than k are left.

    Args:
        recommender: the run.
        k: how many.
        exclude_seen: whether items of the history are left out.
        ordered_top: whether `topk` takes the smaller number of equal scores first: ONNX's definition says so, PyTorch's
            does not.
    """

    table: Tensor
    candidates: Tensor

    def __init__(self, recommender: Recommender, k: int, exclude_seen: bool, *, ordered_top: bool):
        super().__init__()
        self.max_length, self.k = recommender.config.max_length, k
        self.exclude_seen, self.ordered_top = exclude_seen, ordered_top
        with torch.no_grad():
            table = recommender.model.item_table().detach().clone()  # [V, d]
            candidates = recommender.model.candidates(table)
        self.register_buffer("table", table)
        self.register_buffer("candidates", candidates if candidates is table else candidates.clone())
        # The vectors are made already: what made them stays out.
        items, reference = recommender.model.items, recommender.model.reference
        memo: dict[int, Any] = {id(items): _Items(items.cosine)}
        if reference is not None:
            memo[id(reference)] = None
        self.model = copy.deepcopy(recommender.model, memo).eval().requires_grad_(False)

    def forward(self, item_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Rank all items for each history."""
        item_ids = item_ids.masked_fill(item_ids < 0, _NOWHERE)
        kept = lengths.clamp(max=self.max_length)
        places = torch.minimum(
            (lengths - kept)[:, None] + torch.arange(self.max_length), (lengths - 1)[:, None]
        ).masked_fill(lengths[:, None] < 1, _NOWHERE)
        recent = item_ids.gather(1, places)  # [B, max_length]
        batch = Batch(recent, kept, torch.full_like(lengths, -100), torch.zeros_like(lengths))
        scores = self.model.scorer(batch, self.table).scores(self.candidates)  # [B, V]
        if self.exclude_seen:
            count = self.candidates.shape[0]
            real = torch.arange(item_ids.shape[1]) < lengths[:, None]
            columns = torch.where(real, item_ids, count)  # of padding one column more, which is cut off again
            seen = torch.zeros(scores.shape[0], count + 1, dtype=torch.bool).scatter(
                1, columns, torch.ones_like(columns, dtype=torch.bool)
            )
            scores = scores.masked_fill(seen[:, :count], -torch.inf)
        if self.ordered_top:
            best, items = scores.topk(self.k)
        else:
            items = best_columns(scores, self.k)
            best = scores.gather(1, items)
        return best, items.masked_fill(best == -torch.inf, -1)


class _Items(nn.Module):
    """What a model asks its item encoder for once the vectors are made."""

    def __init__(self, cosine: bool):
        super().__init__()
        self.cosine = cosine


def traced(
    recommender: Recommender, k: int, exclude_seen: bool, *, ordered_top: bool
) -> torch.export.ExportedProgram:
    """Trace a run with the reference formulas.

    Raises:
        RunError: PyTorch cannot trace it.
    """
    ranking = Ranking(recommender, k, exclude_seen, ordered_top=ordered_top).eval()
    length = recommender.config.max_length + 1
    example = (torch.zeros(3, length, dtype=torch.int64), torch.tensor([1, 2, length]))
    batch, width = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = ({0: batch, 1: width}, {0: batch})
    try:
        with use_backend("reference"), torch.no_grad(), quiet():
            return torch.export.export(ranking, example, dynamic_shapes=shapes)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{recommender.config.title} cannot be exported, PyTorch cannot trace it: {reason}") from error


def require_pytorch_alone(program: torch.export.ExportedProgram, title: str) -> None:
    """Raise a RunError where the graph of a run of that title holds operators of other packages than PyTorch."""
    others = {
        str(node.target)
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in ("aten", "prims")
    }
    if others:
        raise RunError(f"{title} cannot be exported: its program needs more than PyTorch, {', '.join(sorted(others))}")


def portable(recommender: Recommender, k: int, exclude_seen: bool) -> torch.export.ExportedProgram:
    """Trace a run as a program of PyTorch's operators alone.

    Raises:
        RunError: PyTorch cannot trace it, or it needs other operators.
    """
    program = traced(recommender, k, exclude_seen, ordered_top=False)
    with quiet():
        program = program.run_decompositions()  # also of plr_kernels' formulas, which are operators by themselves
    require_pytorch_alone(program, recommender.config.title)
    return program


def write_program(recommender: Recommender, file: Path, manifest: dict[str, Any]) -> None:
    """Write a .pt2 file that torch alone loads; manifest.json and item_ids.json are among its extra files."""
    program = portable(recommender, manifest["k"], manifest["exclude_seen"])
    extra = {"manifest.json": json.dumps(manifest), "item_ids.json": json.dumps(recommender.item_ids)}
    made = io.BytesIO()  # written to a full disk, PyTorch's archive ends the process
    with quiet():
        torch.export.save(program, made, extra_files=extra)
    file.write_bytes(made.getbuffer())


def load_program(recommender: Recommender, file: Path, manifest: dict[str, Any]) -> Answer:
    """Load the file; return what ranks by it."""
    with quiet():
        module = torch.export.load(file).module()

    @torch.no_grad()
    def answer(histories: Ragged, k: int, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        scores, items = module(torch.from_numpy(histories.padded(0)), torch.from_numpy(histories.lengths))
        return scores.numpy(), items.numpy()

    return answer


def write_onnx(recommender: Recommender, file: Path, manifest: dict[str, Any]) -> None:
    """Write an .onnx file; manifest and item_ids are in its metadata, as JSON.

    Raises:
        RunError: the weights are more than a file may hold.
    """
    # Not decomposed here: ONNX has a matrix product, and PyTorch's parts of it reshape a stream's empty past.
    program = traced(recommender, manifest["k"], manifest["exclude_seen"], ordered_top=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > _LARGEST_ONNX:
        raise RunError(f"an ONNX file holds at most 2 GiB of weights; these are {size / 2**30:.1f}: take torch")
    with quiet():
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["item_ids", "lengths"], output_names=["scores", "items"]
        )
        assert made is not None
        made.model.metadata_props.update(
            {"manifest": json.dumps(manifest), "item_ids": json.dumps(recommender.item_ids)}
        )
        made.save(str(file), external_data=False)


def load_onnx(recommender: Recommender, file: Path, manifest: dict[str, Any]) -> Answer:
    """Load the file into ONNX Runtime; return what ranks by it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def answer(histories: Ragged, k: int, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        scores, items = session.run(None, {"item_ids": histories.padded(0), "lengths": histories.lengths})
        return scores, items

    return answer


@contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from telling what no user of a run can change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
