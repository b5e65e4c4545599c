"""Users' states on a GPU, by the serving plan and by the model itself: the same histories, the same weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plr.config import Config
from plr.data import Batch
from plr.models import RecommenderModel, build_model
from plr.serving.engine import UserStates
from plr.serving.gpu_plan import GPUPlan
from plr.serving.ragged import Ragged
from plr_kernels import use_backend


@dataclass(frozen=True)
class Histories:
    """A model of PLR's default mixture and what it is asked.

    Attributes:
        model: in evaluation mode, on the device, in the dtype that is timed.
        table: [V, d], its item vectors.
        ragged: the histories, on the CPU.
        capturing: the plan, whose shapes are captured where the device is a GPU.
        launching: the plan, which launches every kernel.
    """

    model: RecommenderModel
    table: Tensor
    ragged: Ragged
    capturing: GPUPlan
    launching: GPUPlan

    @classmethod
    def of(
        cls, users: int, length: int, items: int, dim: int, heads: int, device: torch.device, dtype: torch.dtype
    ) -> Histories:
        """Random weights, and so many histories of one length."""
        config = Config(method="plr", dim=dim, heads=heads, max_length=length)
        model = build_model(config, items)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.05 * torch.randn(weight.shape)
        model = model.eval().to(device, dtype)
        table = model.item_table().detach()
        numbers = torch.randint(items, (users, length)).numpy()
        launching = GPUPlan(model, table, most_bytes=0)
        capturing = GPUPlan(model, table) if device.type == "cuda" else launching
        return cls(model, table, Ragged.of(list(numbers)), capturing, launching)

    def ids(self) -> tuple[Tensor, Tensor]:
        """The histories as the plan takes them."""
        return torch.from_numpy(self.ragged.ids), torch.from_numpy(self.ragged.offsets)

    @torch.no_grad()
    def by_model(self, model: RecommenderModel | None = None, batch: Batch | None = None) -> Tensor:
        """What the model computes, of a batch that is on its device already, or of the histories."""
        scorer = (model or self.model).scorer(batch or self.batch(), self.table if model is None else None)
        return joined(UserStates(scorer.states, scorer.log_weights))

    def exact(self) -> Tensor:
        """What the model computes in float64, by the formulas."""
        with use_backend("reference"):
            return self.by_model(copy.deepcopy(self.model).double())

    def batch(self) -> Batch:
        """The histories as the model takes them, on its device."""
        device, lengths = self.table.device, torch.from_numpy(self.ragged.lengths)
        return Batch(
            item_ids=torch.from_numpy(self.ragged.padded(0)).to(device),
            lengths=lengths.to(device),
            targets=torch.zeros_like(lengths, device=device),
            users=torch.arange(len(lengths), device=device),
        )

    def replayed(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """What the capturing plan answers.

        Raises:
            RuntimeError: nothing could be captured: times would be those of launches.
        """
        users = self.capturing.states(ids, offsets)
        if self.table.device.type == "cuda" and self.capturing.graphs.why_not is not None:
            raise RuntimeError(self.capturing.graphs.why_not)
        return joined(users)

    def pass_of_all(self) -> tuple[GPUPlan, Tensor, tuple[int, int]]:
        """The launching plan, its inputs on the device, and their rows and positions: no shape has padding."""
        rows, length = len(self.ragged), int(self.ragged.lengths[0])
        last = np.arange(rows) * length + length - 1
        inputs = np.concatenate([self.ragged.ids, self.ragged.lengths, last])
        return self.launching, torch.from_numpy(inputs).to(self.table.device), (rows, length)


def joined(users: UserStates | tuple[Tensor, Tensor | None]) -> Tensor:
    """States and log-weights side by side, [B, ...]."""
    states, log_weights = users
    states = states.flatten(1)
    return states if log_weights is None else torch.cat([states, log_weights], dim=1)
