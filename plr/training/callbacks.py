"""What happens at the end of every epoch: rank the validation rows, keep the best weights, save for resuming."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from safetensors.torch import save_file

from plr.data import Rows
from plr.evaluation import metrics
from plr.files import atomic_path, sha256_of
from plr.models import RecommenderModel
from plr.models.items.encoders import SharableItemEncoder
from plr.training.shared_files import write_together
from plr.training.shared_ranking import rank_together
from plr.training.shared_rows import drop_other_rows
from plr.training.weight_average import averaged

MONITOR = "ndcg@10"


class FiguresTogether(Callback):
    """Averages an epoch's logged figures over the processes, before any other callback of the epoch's end.

    Who asks for them first averages them, which waits for all processes. A progress bar does so in the first process
    alone, while the others would be in the next callback, the ranking: each would wait for the other for ever.
    """

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Ask for them in every process."""
        if trainer.world_size > 1:
            _ = trainer.callback_metrics


class Validation(Callback):
    """Ranks every validation row among all items and logs the unrounded metrics.

    Each rank of a distributed run takes its share of the rows; the metrics are over all of them.
    """

    def __init__(self, rows: Rows, batch_size: int, ks: tuple[int, ...], exclude_seen: bool, rank_with: str):
        self.rows = rows
        self.batch_size = batch_size
        self.ks = ks
        self.exclude_seen, self.rank_with = exclude_seen, rank_with
        self.train_seconds: list[float] = []
        self._start = self._processor_start = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start the clocks of the training part."""
        self._start, self._processor_start = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Rank, gather and log."""
        seconds, processor_seconds = time.perf_counter() - self._start, time.process_time() - self._processor_start
        self.train_seconds.append(seconds)
        with averaged(trainer.optimizers[0]):
            ranking = rank_together(
                pl_module.model, self.rows, self.batch_size, exclude_seen=self.exclude_seen, rank_with=self.rank_with
            )
        values = metrics(ranking.ranks, self.ks)
        for name, value in values.items():
            pl_module.log(
                name, torch.tensor(value, dtype=torch.float64), prog_bar=name == MONITOR, rank_zero_only=False
            )
        pl_module.log("train/seconds", seconds)
        pl_module.log("train/processor_seconds", processor_seconds)  # of all threads, whatever else runs beside

    def state_dict(self) -> dict[str, Any]:
        """Keep the clock's readings of earlier epochs for the summary of a resumed run."""
        return {"train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.train_seconds = list(state_dict["train_seconds"])


class BestWeights(Checkpoint):
    """Keeps the weights of the epoch with the best unrounded validation metric as safetensors; the first wins ties."""

    def __init__(self, path: Path):
        self.path = path
        self.best_value = float("-inf")
        self.best_epoch = -1
        self.best_hash: str | None = None  # SHA-256 (hex) of the file; None where an earlier plr wrote it

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write the weights where the metric is better than ever before."""
        value = float(trainer.callback_metrics[MONITOR])
        if value > self.best_value:
            self.best_value, self.best_epoch = value, trainer.current_epoch
            if trainer.is_global_zero or pl_module.model.items.part is not None:
                with averaged(trainer.optimizers[0]):
                    save_weights(pl_module.model, self.path)
            self.best_hash = sha256_of(self.path) if trainer.is_global_zero else None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"best_value": self.best_value, "best_epoch": self.best_epoch, "best_hash": self.best_hash}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]
        self.best_hash = state_dict.get("best_hash")


class ResumePoint(Checkpoint):
    """Saves everything that decides the future after each epoch, last of all callbacks.

    A kill between the best weights and this file does no harm: the resumed epoch writes the same weights again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.stopped = False

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write the checkpoint aside and rename it."""
        self.stopped = trainer.should_stop
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            drop_other_rows(self.path, pl_module.rows_file)

    def state_dict(self) -> dict[str, Any]:
        """Keep whether a callback has ended training, which Lightning forgets."""
        return {"stopped": self.stopped}


class OwnSignals(Callback):
    """Gives SIGTERM back to whose it was: Lightning's handler only notes it, until the end of an epoch's last step."""

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Set the handler again, which Lightning has replaced just before."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)


def save_weights(model: RecommenderModel, path: Path) -> None:
    """Write a model's weights as safetensors, aside first; where processes share the item table, all together."""
    if model.items.part is not None:
        assert isinstance(model.items, SharableItemEncoder)
        shared = model.shared_rows()
        own = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        whole = {name: tensor for name, tensor in own.items() if name not in shared}
        write_together(path, whole, {name: own[name] for name in shared}, model.items.shard)
        return
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as aside:
        save_file(weights, aside)
