"""No non-finite loss passes silently, and looking for one does not make a GPU wait at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from plr.errors import NonFiniteLossError

ADVICE = {
    "diversity": "lower --kl_weight (the divergence between states has no upper bound) or set --clip 1",
    "contrastive": "raise --contrastive_temperature, lower --contrastive_weight or set --clip 1",
    "load": "lower --load_weight or --lr, or set --clip 1",
    "noise_contrastive": "raise --temperature, lower --contrastive_weight or set --clip 1",
    "trajectory": "raise --contrastive_temperature, lower --trajectory_weight or set --clip 1",
    "step": "raise --contrastive_temperature, lower --step_weight or set --clip 1",
    "reference": "lower --lr or --reference_weight, or set --clip 1",
    "next_item": "lower --lr, set --clip 1 or raise --temperature",
    "masked_item": "lower --lr, set --clip 1 or raise --temperature",
}


class FiniteGuard:
    """Watches named loss terms.

    On a CPU each step is checked at once. On a GPU the first bad step and term are noted on the device and read every
    `interval` steps and at the end of an epoch, so that no step waits for the device.
    """

    def __init__(self, interval: int = 50):
        self.interval = interval
        self._first_bad: Tensor | None = None  # int64 [2]: step, index of the term; -1 while all is well
        self._names: list[str] = []

    def watch(self, losses: dict[str, Tensor], step: int) -> None:
        """Check one step's terms.

        Raises:
            NonFiniteLossError: naming the step, the term and what to try.
        """
        self._names = list(losses)
        with torch.no_grad():
            bad = ~torch.isfinite(torch.stack([loss.detach().float() for loss in losses.values()]))
            index = torch.where(bad.any(), bad.int().argmax(), -1)
            found = torch.stack([torch.where(index >= 0, step, -1), index])
            if self._first_bad is None:
                self._first_bad = found
            else:
                self._first_bad = torch.where(self._first_bad >= 0, self._first_bad, found)
        if self._first_bad.device.type == "cpu" or step % self.interval == 0:
            self.settle()

    def settle(self) -> None:
        """Read what was noted, and raise if any step was bad."""
        if self._first_bad is None:
            return
        step, index = self._first_bad.tolist()
        self._first_bad = None
        if step >= 0:
            name = self._names[index]
            raise NonFiniteLossError(
                f"step {step}: the loss term '{name}' is not finite. To get past this, "
                f"{ADVICE.get(name, 'lower --lr or set --clip 1')}; with --precision bf16 also try --precision 32. "
                "The last finished epoch is kept in the run's folder; a changed configuration needs another --out."
            )
