"""Adam that moves the rows of a table that have a gradient alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["LazyAdam"]


class LazyAdam(torch.optim.Adam):
    """Adam whose step takes as long as a sparse gradient is, and not the table.

    A parameter with a dense gradient is moved as torch.optim.Adam moves it. Of one with a sparse gradient, rows by
    index, the rows that have one are moved, and their moments; all else stays as it is, also where Adam would go on by
    its moments (torch.optim.SparseAdam does the same, but takes no dense gradients). Its state is Adam's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the closure, if any, computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    sparse.append((group, parameter, parameter.grad))
                    parameter.grad = None
        super().step()
        for group, parameter, gradient in sparse:
            self._move_rows(group, parameter, gradient.coalesce())
            parameter.grad = gradient
        return loss

    def _move_rows(self, group: dict[str, Any], parameter: Parameter, gradient: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        rows, change = gradient.indices()[0], gradient.values()
        beta1, beta2 = group["betas"]
        mean = state["exp_avg"][rows].lerp_(change, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(change, change, value=1 - beta2)
        state["exp_avg"][rows] = mean
        state["exp_avg_sq"][rows] = square
        step = state["step"].double()
        spread = square.sqrt_().div_((1 - beta2**step).sqrt().to(square.dtype)).add_(group["eps"])
        size = (group["lr"] / (1 - beta1**step)).to(mean.dtype)
        parameter.index_add_(0, rows, mean.mul_(size).div_(spread), alpha=-1)
