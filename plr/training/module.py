"""The Lightning module: a recommender, its optimiser and its rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader

from plr.config import Config
from plr.data import Batch, DealtRows, LengthGroupedBatches, Rows, SameTargetPositives, SequenceDataset, Share
from plr.models import RecommenderModel
from plr.models.collectives import total
from plr.models.items.sharded import ShardedEmbedding
from plr.models.sampled_items import ItemSampler
from plr.signals import raise_again
from plr.training.accumulation import AccumulatedMean
from plr.training.finite import FiniteGuard
from plr.training.initial import filter_reachable
from plr.training.lazy_adam import LazyAdam
from plr.training.schedule import check_warmup, is_scheduled, learning_rate, steps_of
from plr.training.shared_rows import complete, take_rows_out
from plr.training.start import Start
from plr.training.weight_average import advance_average

SAMPLING = -1
"""In the place of a rank, for what all of a run's processes draw alike: a step's sampled items."""


class TrainingModule(lightning.LightningModule):
    """Trains `model` on `rows`; validation and checkpoints are callbacks' work.

    Everything random in a batch is drawn from generators seeded with (seed, number of the batch), and the order of the
    rows from (seed, epoch), the learning rate is a function of the step's number, and an epoch ends with a step: a
    resumed run needs the weights and the optimiser to go on exactly as an uninterrupted one. Several processes have a
    share of each batch, and their gradient is that of one; dropout's masks alone are of (seed, batch, process).
    """

    def __init__(
        self,
        model: RecommenderModel,
        rows: Rows | DealtRows,
        config: Config,
        start: Start | None = None,
        resume_point: Path | None = None,
    ):
        super().__init__()
        self.model = model
        self.rows = rows
        self.config = config
        self.start = start
        self.guard = FiniteGuard()
        self.resume_point = resume_point
        self.rows_file: Path | None = None  # what the last checkpoint has the shared tables in
        # DistributedDataParallel neither sends nor averages what each process has alone, nor the items' features and
        # texts, which each has read: it would send them in every step.
        ignored = {*model.shared_rows(), *(f"items.{name}" for name, _ in model.items.named_buffers())}
        self._ddp_params_and_buffers_to_ignore = [f"model.{name}" for name in ignored]
        self.accumulated = AccumulatedMean(config.accumulate_batches) if config.accumulate_batches > 1 else None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as in the paper, or AdamW; with the moments that the run starts with, where it goes on from another."""
        optimizer = build_optimizer(self.model, self.config)
        if self.start is not None:
            self.start.set_moments(self.model, optimizer)
        if self.config.average_weights:
            optimizer.register_step_post_hook(self._advance_average)
        return optimizer

    def _advance_average(self, optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        advance_average(optimizer, self.config.average_weights, self.global_step + 1)  # not counted yet

    def train_dataloader(self) -> DataLoader:
        """Batches, grouped by length or not, gathered in the main process: a gather is cheaper than a queue."""
        rows, positives = self.rows, None
        if self.model.reference is not None:
            assert isinstance(rows, Rows)  # of prefixes: the configuration refuses others
            shown = self.config.progress and self.global_rank == 0
            rows = filter_reachable(
                self.model.reference,
                rows,
                self.config.eval_batch_size,
                devices=self.trainer.world_size,
                progress=shown,
            )
        if self.model.same_target_positives:
            assert isinstance(rows, Rows)
            positives = SameTargetPositives(rows, self.config.seed)
        order = batch_order(rows, self.config)
        dataset = RowDataset(rows, order, positives, self.global_rank, self.trainer.world_size)
        pinned = self.device.type == "cuda"  # so that a GPU's copies wait for nothing
        return DataLoader(dataset, sampler=order, batch_size=None, collate_fn=_as_it_is, pin_memory=pinned)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Send a batch to a GPU without waiting for the step before, as Lightning would for all but single tensors."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def on_train_start(self) -> None:
        """Refuse a warm-up that the rows within reach have become too few for."""
        check_warmup(self.config, steps_of(self.config, int(self.trainer.num_training_batches)))

    def on_train_epoch_start(self) -> None:
        """Tell the model the epoch; a resumed run's is that of the uninterrupted one."""
        self.model.epoch = self.current_epoch

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Seed the step. Not the epoch: whether its data loader draws before or after the hook depends on resuming."""
        raise_again()
        batches = self.config.accumulate_batches
        number = self.global_step * batches + batch_index % batches  # without accumulation, the step's
        if self.model.sampler is not None:
            self.model.sampler.seed = step_seed(self.config.seed, number, SAMPLING)
        if batch.share is None:
            torch.manual_seed(step_seed(self.config.seed, number))
        else:  # dropout's masks are each process's own; all else is drawn as one process draws it
            torch.manual_seed(step_seed(self.config.seed, number, 1 + self.global_rank))
            batch.share.seed(step_seed(self.config.seed, number))
        self.model.items.share = batch.share

    def on_train_end(self) -> None:
        """Forget the last step's share."""
        self.model.items.share = None

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Sum the model's loss terms, watched and logged by name."""
        losses = self.model.losses(batch)
        self.guard.watch(losses, self.global_step)
        total = torch.stack(list(losses.values())).sum()
        measured = {f"train/{name}": value for name, value in (losses | self.model.extra_metrics).items()}
        own, targets = self.model.target_counts(batch)
        share, size = batch.share, len(batch)
        if share is not None:
            # The gradient is the mean of all processes': each weighs by the targets that it has of the batch's.
            weighed = share.world_size * own
            total, size = total * weighed / targets, share.size
            measured = {name: value * weighed / targets for name, value in measured.items()}
        for name, value in [*measured.items(), ("loss", total)]:
            self.log(
                name, value.detach(), prog_bar=name == "loss", on_step=False, on_epoch=True, batch_size=size,
                sync_dist=share is not None,
            )  # fmt: skip
        return total if self.accumulated is None else self.accumulated.weighted(total, targets)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Complete the gradient, before it is clipped, and set the step's learning rate."""
        if self.accumulated is not None:
            self.accumulated.settle(self.model.parameters())
        for name in self.model.shared_rows():
            # Complete, of the sum of all processes' losses, each weighed to be the mean of them: a sum, not a mean.
            gradient = self.model.get_parameter(name).grad
            if gradient is not None:
                gradient /= self.trainer.world_size
        for parameter in self.model.parameters():  # of several batches a row of the table has a gradient each
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
        if is_scheduled(self.config):
            steps = steps_of(self.config, int(self.trainer.num_training_batches))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.config, self.global_step, steps)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm; that of sparse gradients, too, which PyTorch refuses: their rows are distinct by now."""
        gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
        if gradient_clip_val and self.model.shared_rows():
            clip_together(self.model, gradient_clip_val)
            return
        if not gradient_clip_val or not any(each.is_sparse for each in gradients):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        values = [each.values() if each.is_sparse else each for each in gradients]
        norm = get_total_norm(values)
        torch._foreach_mul_(values, (gradient_clip_val / (norm + 1e-6)).clamp(max=1.0))  # as clip_grad_norm_ does

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what processes share of the tables beside the checkpoint."""
        if self.model.shared_rows():
            assert self.resume_point is not None
            self.rows_file = take_rows_out(self.model, checkpoint, self.resume_point, self.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read what the process has of the tables, whichever number of processes wrote them."""
        if self.resume_point is not None:
            complete(checkpoint, self.resume_point, self.model)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        """After the last batch, read what the guard noted on the device: callbacks end the epoch before the module."""
        if batch_index + 1 == self.trainer.num_training_batches:
            self.guard.settle()


class RowDataset(torch.utils.data.Dataset):
    """Rows as a map from a tensor of row numbers to a batch: those rows, then their positives if there are any.

    Of several processes each has a share of it.
    """

    def __init__(
        self,
        rows: Rows | DealtRows,
        order: LengthGroupedBatches,
        positives: SameTargetPositives | None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.rows = rows
        self.order = order
        self.positives = positives
        self.rank, self.world_size = rank, world_size
        self._counts = rows.target_counts() if world_size > 1 and _have_several(rows) else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Batch:
        targets = len(index) if self._counts is None else int(self._counts[index].sum())
        if self.positives is not None:
            index = torch.cat([index, self.positives.draw(index, self.order.epoch)])
        if isinstance(self.rows, DealtRows):
            gather: Callable[[Tensor], Batch] = partial(self.rows.batch, epoch=self.order.epoch)
        else:
            gather = self.rows.batch
        if self.world_size == 1:
            return gather(index)
        with_positives = self.positives is not None
        return Share(gather, index, targets, self.rank, self.world_size, positives=with_positives).own()


def training_rows(dataset: SequenceDataset, config: Config) -> Rows | DealtRows:
    """Return the training rows of the configured kind."""
    assert config.min_context is not None  # set when the configuration is made
    rows = dataset.rows("train", config.max_length, config.row_kind, min_context=config.min_context)
    return DealtRows(rows, config.targets_per_row, config.seed) if config.targets_per_row else rows


def batch_order(rows: Rows | DealtRows, config: Config) -> LengthGroupedBatches:
    """Return the training batches, filled by targets where that is configured and rows have several."""
    several = config.row_kind == "sequence" and config.batch_unit == "targets"
    return LengthGroupedBatches(
        rows.lengths,
        config.batch_size,
        shuffle=True,
        seed=config.seed,
        grouped=config.batch_order == "length",
        counts=rows.target_counts() if several else None,
        window=config.shuffle_window,
    )


def build_optimizer(model: torch.nn.Module, config: Config) -> torch.optim.Optimizer:
    """Adam or AdamW in one pass over the weights: the item table is most of them, and its moments twice its size.

    Lightning does not clip gradients under automatic mixed precision for an optimiser of one pass.
    """
    one_pass = not (config.clip and config.precision == "bf16")
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    if config.loss != "softmax" and config.sparse_adam:
        kind = LazyAdam  # the configuration has no weight_decay then
    return kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=one_pass)


def clip_together(model: RecommenderModel, most: float) -> None:
    """Clip the norm of the gradient of all processes, of which each has that of its rows of shared tables."""
    shared = model.shared_rows()
    gradients = {
        name: each.grad.values() if each.grad.is_sparse else each.grad  # coalesced: a row stands in it once
        for name, each in model.named_parameters()
        if each.grad is not None
    }
    squares = [get_total_norm([gradient]).double() ** 2 for name, gradient in gradients.items() if name in shared]
    of_tables = total(torch.stack(squares).sum())
    others = get_total_norm([gradient for name, gradient in gradients.items() if name not in shared])
    norm = (of_tables + others.double() ** 2).sqrt().to(others.dtype)
    torch._foreach_mul_(list(gradients.values()), (most / (norm + 1e-6)).clamp(max=1.0))


def sample_items(model: RecommenderModel, config: Config, dataset: SequenceDataset) -> None:
    """Give a model what samples its items, where the configuration has a loss on sampled ones, and sparse gradients."""
    if config.loss == "softmax":
        return
    counts = torch.bincount(dataset.target_items("train"), minlength=dataset.num_items)
    model.sampler = ItemSampler(config, counts)
    if config.sparse_adam:
        sparse_table_gradients(model)


def sparse_table_gradients(model: RecommenderModel) -> None:
    """Let looked-up rows of the items' own vectors have sparse gradients."""
    for name in model.own_rows():
        module = model.get_submodule(name.rpartition(".")[0])
        assert isinstance(module, torch.nn.Embedding | ShardedEmbedding)  # as methods that sample items have them
        module.sparse = True


def _have_several(rows: Rows | DealtRows) -> bool:
    """Whether rows may have several targets."""
    return isinstance(rows, DealtRows) or rows.every_position


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """Return a 63-bit seed for one of a step's sources of random numbers."""
    # splitmix64's mixing steps: neighbouring inputs give unrelated generators.
    state = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB + 1) % 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return (state ^ (state >> 31)) % 2**63


def _as_it_is(batch: Any) -> Any:
    return batch
