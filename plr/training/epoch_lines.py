"""What a training tells while it goes on where there is no terminal: a line for each epoch."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback

from plr.durations import duration
from plr.training.callbacks import MONITOR, BestWeights


def draws_bars() -> bool:
    """Whether what is printed is seen as it changes: on a terminal or in a notebook, not in a file or a pipe."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


class EpochLines(Callback):
    """Prints each epoch's loss, its validation metric beside the best one, how long it took and how many are left.

    A bar would fill a file with its thousand states.
    """

    def __init__(self) -> None:
        self._start = 0.0
        self._seconds: list[float] = []  # of the epochs that this process has trained

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Print the line."""
        figures = trainer.callback_metrics  # in every process: whoever asks first waits for all
        if not trainer.is_global_zero:
            return
        self._seconds.append(time.perf_counter() - self._start)
        epoch, most = trainer.current_epoch + 1, trainer.max_epochs
        assert most is not None
        parts, validated = [f"loss {float(figures['loss']):.4f}"], MONITOR in figures
        if validated:
            parts.append(f"validation {MONITOR} {float(figures[MONITOR]):.4f} ({self._place(trainer, figures)})")
        parts.append(duration(self._seconds[-1]))
        if epoch < most and not trainer.should_stop:
            left = (most - epoch) * sum(self._seconds) / len(self._seconds)
            parts.append(f"{most - epoch} left at most, about {duration(left)}")
        print(f"{'' if validated else 'refit, '}epoch {epoch} of {most}: {', '.join(parts)}", flush=True)

    @staticmethod
    def _place(trainer: lightning.Trainer, figures: dict[str, Any]) -> str:
        """How the epoch stands among those before; the best weights are chosen after this."""
        (best,) = (each for each in trainer.callbacks if isinstance(each, BestWeights))  # type: ignore[attr-defined]
        if float(figures[MONITOR]) > best.best_value:
            return "the best so far"
        return f"best {best.best_value:.4f}, epoch {best.best_epoch + 1}"
