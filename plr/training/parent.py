"""The finished run that another goes on from, on newer data."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plr.config import Config
from plr.data import SequenceDataset
from plr.data.held_out import begins_in_training, differing_splits, last_trained
from plr.errors import DataError, RunError, UserError, listed
from plr.items import ItemData
from plr.items.features import read_features
from plr.models import RecommenderModel, build_model
from plr.models.registry import options_of_other_methods
from plr.runs import RunFolder, load_weights
from plr.training.checkpoint import read_checkpoint
from plr.training.matching import RowMatch, mean_of_neighbours
from plr.training.shared_rows import complete
from plr.training.start import MOMENTS, Start

__all__ = ["Parent", "digest_of"]

EQUAL = ("backbone", "method", "phase", "dim", "heads", "ffn_dim", "layers", "max_length", "unisrec_mode", "experts",
         "temperature", "core_layers", "lares_adapter", "mean_steps", "steps", "mixture", "streams", "gate",
         "reasoning", "pooling", "fast_state")  # fmt: skip
"""What decides what the model computes; what decides how it is trained may change from run to run."""
_ROWS = {"valid": "the rows of validation", "test": "those of the test"}


def digest_of(folder: RunFolder) -> str:
    """Return the SHA-256 (hex) of a finished run's provenance and of its ids' and weights' hashes.

    The provenance of a run that went on from another holds that one's digest: so the digests are a chain, of which each
    link vouches for all before it.
    """
    config, files = Config.load(folder.config), folder.read_metrics().get("files", {})
    content = {"provenance": config.provenance, "files": files}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Parent:
    """A finished run that fits the one that goes on from it.

    Attributes:
        folder: its folder.
        config: its configuration.
    """

    folder: RunFolder
    config: Config

    @classmethod
    def of(cls, config: Config) -> Parent:
        """Return the run that `config.from_run` names.

        Raises:
            FileNotFoundError: there is no finished run.
            DataError: it is damaged.
            RunError: it is the run's own folder, or one of another backbone, method or size.
        """
        assert config.from_run is not None
        folder = RunFolder(Path(config.from_run))
        if folder.path.resolve() == Path(config.out).resolve():
            raise RunError(f"--from {config.from_run}: is the run's own folder; choose another --out")
        earlier = folder.require_finished()
        ignored = options_of_other_methods(config) if earlier.system is config.system else set()
        differing = [
            f"{name}: {getattr(earlier, name)!r} there, {getattr(config, name)!r} here"
            for name in EQUAL
            if name not in ignored and getattr(earlier, name) != getattr(config, name)
        ]
        if differing:
            raise RunError(
                f"--from {config.from_run}: does not fit this run ({'; '.join(differing)}); a run goes on with the "
                "backbone, the method and the sizes that its parent has"
            )
        folder.check_hashes()
        return cls(folder, earlier)

    def start(self, config: Config, dataset: SequenceDataset, item_data: ItemData) -> Start:
        """Return what the run begins with.

        Args:
            config: the run's.
            dataset: its data.
            item_data: what is known about its items.

        Raises:
            DataError, RunError: the parent's files are damaged, or its items have other features or text vectors.

        Warns:
            UserWarning: that Adam begins anew, for the parent has no moments; that they are another optimiser's; that
                the parent may have been trained on rows that are held out here; that the items' text vectors are other
                ones.
        """
        if (reason := self._trained_on_held_out(dataset)) is not None:
            warnings.warn(f"--from {self.folder.path}: {reason}", stacklevel=2)
        with torch.device("cpu"):
            before, known = self.folder.read_item_ids(), self.folder.read_item_data(self.config)
            parent = build_model(self.config, known)
            load_weights(parent, self.folder.weights)
            model = build_model(config, item_data)
            items = RowMatch.of(before, dataset.item_ids)
            matches = dict.fromkeys(model.own_rows(), items) | self._matches_of_values(before, known, item_data)
            self._check_shapes(parent, model, matches)
            weights = self._weights(parent, model, matches, config, dataset)
            moments = self._moments(parent, matches)
        if item_data.text is not None and known.text is not None:
            kept = (~items.is_new).nonzero()[:, 0]
            if (reason := item_data.text.why_another_encoder(known.text, kept, items.former[kept])) is not None:
                warnings.warn(f"--from {self.folder.path}: {reason}", stacklevel=2)
        if moments and self.config.optimizer != config.optimizer:
            warnings.warn(
                f"--from {self.folder.path}: was trained with optimizer {self.config.optimizer!r}, this run is with "
                f"{config.optimizer!r}: the moments are kept, though weight_decay is part of the gradients that adam "
                "averages, and not of adamw's",
                stacklevel=2,
            )
        described = {
            "run": config.from_run,
            "digest": digest_of(self.folder),
            "weights": self.folder.hashes()[self.folder.weights.name],
        }
        return Start(weights, moments, described, items.counts())

    def _trained_on_held_out(self, dataset: SequenceDataset) -> str | None:
        """Say which of the rows that are held out the parent may have been trained on; None where there are none."""
        own, here = self.folder.read_metrics().get("data", {}), {"split": dataset.split, **dataset.report}
        refit = self.config.refit
        if differing := differing_splits(own, here):
            return (
                f"held out other rows than this run does ({'; '.join(differing)}): it may have been trained on some of "
                "those that are validation and test here, and figures of these flatter"
            )
        if dataset.split != "time":
            return (
                "was refit on its validation rows, and those that are validation rows here again choose the epoch by "
                "what is known; with --refit false, or a split by time, they do not"
                if refit
                else None
            )
        begins = {split: begins_in_training(split, here, own, refit) for split in ("valid", "test")}
        found = [f"{_ROWS[split]} begin at {begin}" for split, begin in begins.items() if begin is not None]
        if not found:
            return None
        until = last_trained(own, refit)
        return (
            f"was trained on targets up to {until}, and {' and '.join(found)} here: those among them that it was "
            f"trained on are not held out, and figures of these rows flatter; give a --valid_time after {until}, and a "
            "later --test_time"
        )

    @staticmethod
    def _weights(
        parent: RecommenderModel,
        model: RecommenderModel,
        matches: dict[str, RowMatch],
        config: Config,
        dataset: SequenceDataset,
    ) -> dict[str, Tensor]:
        """Return the parent's weights as those of the model."""
        drawn, weights = model.state_dict(), dict(parent.state_dict())
        of_items = set(model.own_rows())
        for name, match in matches.items():
            rows = weights[name]
            if name not in of_items or config.new_items == "random":
                weights[name] = match.moved(rows, drawn[name])
                continue
            mean = match.mean(rows)
            weights[name] = match.moved(rows, mean)
            if config.new_items == "neighbours":
                weights[name] = mean_of_neighbours(weights[name], match.is_new, dataset, mean)
        return weights

    def _moments(self, parent: RecommenderModel, matches: dict[str, RowMatch]) -> dict[str, dict[str, Tensor]]:
        """Return Adam's moments after the parent's last epoch, those of its rows where they are now.

        A new row's first moment is 0. Its second is the mean of the known rows': Adam counts steps for all rows
        together, and with 0 it would take a new row's first steps for the latest of many, three times as long.
        """
        path = self.folder.refit_point if self.config.refit else self.folder.resume_point
        if not path.exists():
            warnings.warn(f"{path} is not there: Adam's moments start anew", stacklevel=2)
            return {}
        names = [name for name, _ in parent.named_parameters()]
        try:
            checkpoint = read_checkpoint(path)
            complete(checkpoint, path, parent)
            state = checkpoint["optimizer_states"][0]["state"]
            moments = {
                names[number]: self._checked(path, parent, names[number], each) for number, each in state.items()
            }
        except (LookupError, TypeError, AttributeError, RunError) as error:
            reason = error if isinstance(error, RunError) else f"{path}: holds no moments of Adam for this model"
            raise RunError(f"--from {self.folder.path}: {reason}; without that file they start anew") from error
        for name, match in matches.items():
            if name in moments:
                of_rows = moments[name]
                moments[name] = {
                    "exp_avg": match.moved(of_rows["exp_avg"], torch.zeros(1)),
                    "exp_avg_sq": match.moved(of_rows["exp_avg_sq"], match.mean(of_rows["exp_avg_sq"])),
                    "step": of_rows["step"],
                }
        return moments

    @staticmethod
    def _checked(path: Path, parent: RecommenderModel, name: str, state: dict[str, Any]) -> dict[str, Tensor]:
        """Return a parameter's part of the optimiser's state in the file, float32 on the CPU."""
        shape = parent.get_parameter(name).shape
        if any(state[kind].shape != shape for kind in MOMENTS):
            raise LookupError(name)
        step = torch.as_tensor(state["step"], dtype=torch.float32)
        checked = {**{kind: state[kind].float() for kind in MOMENTS}, "step": step.reshape(())}
        for kind, tensor in checked.items():
            bad = ~torch.isfinite(tensor)
            if kind != "exp_avg":  # a mean of squares, a count
                bad |= tensor < 0
            if bad.any():
                raise RunError(
                    f"{path}: {kind} of {name} cannot be Adam's: {int(bad.sum()):,} of {tensor.numel():,} numbers are "
                    f"{tensor[bad][0].item()} or the like"
                )
        return checked

    def _matches_of_values(self, before: list[str], known: ItemData, item_data: ItemData) -> dict[str, RowMatch]:
        """Return how the rows of features' values match, by their parameter's name."""
        fields, now = self._with_value_names(before, known).features, item_data.features
        names, names_now = ([field.name for field in each] for each in (fields, now))
        if names != names_now:
            raise RunError(
                f"--from {self.folder.path}: its items have {listed(names) or 'no'} feature fields, this run's "
                f"{listed(names_now) or 'none'}"
            )
        matches = {}
        for number, (one, other) in enumerate(zip(fields, now, strict=True)):
            assert one.value_names is not None
            assert other.value_names is not None
            match = RowMatch.of(one.value_names, other.value_names).with_last()  # that of items without a value
            matches[f"items.fields.{number}.embedding.weight"] = match
        return matches

    def _with_value_names(self, before: list[str], known: ItemData) -> ItemData:
        """Return item data that say what feature values are called; runs of earlier versions do not keep it."""
        if all(field.value_names is not None for field in known.features):
            return known
        assert self.config.features is not None
        try:
            fields = read_features(Path(self.config.features), before, self.config.feature_fields)
            again = ItemData(len(before), fields, known.text)
            if again.content_hash == known.content_hash:
                return again
            reason = "has changed since"
        except (UserError, OSError) as error:
            reason = f"cannot be read ({error})"
        raise RunError(
            f"--from {self.folder.path}: an earlier version of plr made it, which did not keep the names of feature "
            f"values, and {self.config.features} {reason}"
        )

    def _check_shapes(self, parent: RecommenderModel, model: RecommenderModel, matches: dict[str, RowMatch]) -> None:
        """Refuse what the equal options leave possible: text vectors of another width, or none."""
        before, now = parent.state_dict(), model.state_dict()
        odd = [name for name in {**before, **now} if name not in before or name not in now]
        for name in before.keys() & now.keys():
            first = 1 if name in matches else 0
            if before[name].shape[first:] != now[name].shape[first:]:
                odd.append(name)
        if odd:
            raise DataError(
                f"--from {self.folder.path}: its items have other features or text vectors than this run's; parameters "
                f"that differ: {listed(sorted(odd))}"
            )
