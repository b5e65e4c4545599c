"""The finished run that a second training phase starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from plr.config import Config
from plr.data import LengthGroupedBatches, Rows, SequenceDataset
from plr.errors import NoReachableTargetError, RunError
from plr.evaluation import rank_rows, ranking_progress
from plr.files import sha256_of
from plr.items import ItemData
from plr.models import RecommenderModel, build_model
from plr.runs import RunFolder, load_weights

# What the weights, and log-probabilities that are to be compared, depend on.
EQUAL = ("method", "backbone", "dim", "layers", "core_layers", "heads", "ffn_dim", "max_length", "lares_adapter",
         "mean_steps", "temperature", "unisrec_mode", "experts")  # fmt: skip
REACH = 100  # the worst rank of a target at which post-training has something to reward


@dataclass(frozen=True)
class InitialRun:
    """A finished first phase that fits the second.

    Attributes:
        config: its configuration.
        folder: its folder.
        weights_hash: SHA-256 (hex) of its weights' file.
    """

    config: Config
    folder: RunFolder
    weights_hash: str

    @classmethod
    def of(cls, config: Config, dataset: SequenceDataset, item_data: ItemData) -> InitialRun | None:
        """Return the run that `config.init` names; None where it names none.

        Raises:
            FileNotFoundError: there is no finished run.
            DataError: it is damaged.
            RunError: it is one of another phase, method, backbone, size or data set, or it was refitted.
        """
        if config.init is None:
            return None
        folder = RunFolder(Path(config.init))
        initial = folder.require_finished()
        differing = [
            f"{name}: {getattr(initial, name)!r} there, {getattr(config, name)!r} here"
            for name in EQUAL
            if getattr(initial, name) != getattr(config, name)
        ]
        if differing:
            raise RunError(f"--init {config.init}: does not fit this run ({'; '.join(differing)})")
        if initial.phase != "spt":
            raise RunError(f"--init {config.init}: is a run of phase {initial.phase!r}; name one of phase 'spt'")
        if initial.refit:
            raise RunError(
                f"--init {config.init}: was refitted on the validation rows, which could no longer choose an epoch; "
                "name a run with --refit false"
            )
        if (initial.provenance or {}).get("data_hash") != dataset.content_hash:
            raise RunError(
                f"--init {config.init}: was trained on other data or another split of them ({initial.data}); its items "
                "or its training rows are not this run's"
            )
        if (initial.provenance or {}).get("item_data_hash") != item_data.content_hash:
            raise RunError(f"--init {config.init}: was trained with other item features or text vectors")
        folder.check_hashes()
        return cls(initial, folder, sha256_of(folder.weights))

    def load(self, item_data: ItemData) -> RecommenderModel:
        """Return the run's model."""
        model = build_model(self.config, item_data)
        load_weights(model, self.folder.weights)
        return model


def filter_reachable(
    model: RecommenderModel, rows: Rows, batch_size: int, *, devices: int = 1, progress: bool = False
) -> Rows:
    """Return the rows whose target the model ranks among the first 100 of all items.

    Args:
        model: the pre-trained model.
        rows: the training rows.
        batch_size: rows to be ranked together.
        devices: how many processes share the rows; each must get one.
        progress: show a bar.

    Raises:
        NoReachableTargetError: there is no such row.
        RunError: there are fewer than devices.
    """
    order = list(LengthGroupedBatches(rows.lengths, batch_size, shuffle=False))
    with ranking_progress("Choosing rows", len(rows), shown=progress) as advance:
        ranking = rank_rows(model, map(rows.batch, order), on_batch=advance)
    kept = torch.cat(order)[ranking.ranks <= REACH].sort().values
    if not len(kept):
        raise NoReachableTargetError(
            f"the --init run ranks no training row's target among the first {REACH}: nothing to reward"
        )
    if len(kept) < devices:
        raise RunError(
            f"the --init run ranks the target of {len(kept)} training row{'s' * (len(kept) > 1)} among the first "
            f"{REACH}; --devices {devices} needs at least {devices}: take fewer devices"
        )
    return rows.take(kept)
