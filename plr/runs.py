"""The files of a run folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from plr.config import INTERACTIONS, Config
from plr.errors import DataError, RunError
from plr.evaluation import load_ranking
from plr.evaluation.metrics import metric_of_rows
from plr.files import atomic_path, sha256_of
from plr.frames import write_frame
from plr.items import ItemData


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what. `metrics.json` is written last: a run that has it is finished."""

    path: Path

    @property
    def config(self) -> Path:
        """The whole configuration with versions and the data's hash."""
        return self.path / "config.yaml"

    @property
    def items(self) -> Path:
        """The item id map: a Parquet column item_id; the row number is the item's number."""
        return self.path / "items.parquet"

    @property
    def item_data(self) -> Path:
        """Features and text vectors of the items, where the model reads any."""
        return self.path / "items.safetensors"

    @property
    def popularity(self) -> Path:
        """How often each item occurs in training: a Parquet column interactions; runs made before it have none."""
        return self.path / "popularity.parquet"

    @property
    def weights(self) -> Path:
        """The best epoch's weights."""
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """The validation and test metrics of those weights."""
        return self.path / "metrics.json"

    @property
    def interactions(self) -> Path:
        """The frame that the run was trained on, where it was one."""
        return self.path / INTERACTIONS

    @property
    def logs(self) -> Path:
        """CSV and TensorBoard logs."""
        return self.path / "logs"

    @property
    def resume_point(self) -> Path:
        """The last finished epoch: weights, optimiser, early stopping."""
        return self.path / "resume" / "last.ckpt"

    @property
    def refit_point(self) -> Path:
        """The last finished epoch of the refit."""
        return self.path / "resume" / "refit.ckpt"

    @property
    def start_point(self) -> Path:
        """What an unfinished run that goes on from another begins with."""
        return self.path / "resume" / "start.safetensors"

    @property
    def best_so_far(self) -> Path:
        """The best weights of an unfinished run."""
        return self.path / "resume" / "best.safetensors"

    def ranks(self, split: str) -> Path:
        """The rank of every user's target in the given split."""
        return self.path / f"ranks_{split}.parquet"

    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.metrics.exists()

    def finished_as(self, config: Config, data_hash: str, item_data_hash: str | None) -> bool:
        """Whether the run is complete and of this configuration, wherever its data and a first phase's run now lie.

        Raises:
            RunError: it is of another configuration, on other data, or with other features or text vectors.
        """
        if not self.finished():
            return False
        earlier = Config.load(self.config)
        before, now = earlier.decisive(), config.decisive()
        changed = [
            f"{name}: {before[name]!r} -> {now[name]!r}"
            for name in now
            if before[name] != now[name] and name not in ("data", "init")
        ]
        if changed:
            raise RunError(
                f"{self.path} holds a run of another configuration ({'; '.join(changed)}); choose another --out"
            )
        if (earlier.provenance or {}).get("data_hash") != data_hash:
            raise RunError(f"{self.path} holds a run on other data; choose another --out")
        if (earlier.provenance or {}).get("item_data_hash") != item_data_hash:
            raise RunError(
                f"{self.path} holds a run with other item features or text vectors; "
                f"{config.features or config.text_vectors} has changed since; choose another --out"
            )
        return True

    def require_finished(self) -> Config:
        """Return the configuration of a finished run.

        Raises:
            FileNotFoundError: there is no finished run here; says what is there and what to do.
        """
        if self.finished():
            return Config.load(self.config)
        if self.config.exists():
            raise FileNotFoundError(
                f"{self.path}: the run is not finished; repeat its `plr train --config {self.config}` to resume it"
            )
        raise FileNotFoundError(f"{self.path}: no run here (config.yaml is missing); make one with `plr train --out`")

    def read_metrics(self) -> dict[str, Any]:
        """Read metrics.json.

        Raises:
            DataError: the file is damaged.
        """
        try:
            metrics = json.loads(self.metrics.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"not the run's metrics: {error}", self.metrics) from error
        if not isinstance(metrics, dict) or not isinstance(metrics.get("files", {}), dict):
            raise DataError("not the run's metrics: its JSON is not an object with theirs", self.metrics)
        if not isinstance(metrics.get("test"), dict):
            raise DataError("not the run's metrics: it holds none of the test rows", self.metrics)
        return metrics

    def test_metric(self, name: str) -> float:
        """Return a metric of the finished run's test rows, of another K than its `ks` too."""
        known = self.read_metrics()["test"]
        if name in known:
            return known[name]
        return float(metric_of_rows(load_ranking(self.ranks("test")).ranks, name).mean())

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 (hex) of the files that recommendations depend on, by name."""
        return {path.name: sha256_of(path) for path in (self.items, self.weights)}

    def check_hashes(self) -> None:
        """Refuse ids or weights that are not as the finished run wrote them: nothing else could tell.

        Raises:
            DataError: naming the file.
        """
        recorded = self.read_metrics().get("files", {})
        for name, found in self.hashes().items():
            if recorded.get(name, found) != found:
                raise DataError("not as the run wrote it: its SHA-256 is not that of metrics.json", self.path / name)

    def save_item_ids(self, item_ids: Sequence[str] | pl.Series) -> None:
        """Write the item id map."""
        with atomic_path(self.items) as aside:
            pl.DataFrame({"item_id": pl.Series(item_ids, dtype=pl.String)}).write_parquet(aside)

    def save_popularity(self, counts: Tensor) -> None:
        """Write how often each item occurs in training: int64 [V]."""
        with atomic_path(self.popularity) as aside:
            pl.DataFrame({"interactions": counts.numpy()}).write_parquet(aside)

    def read_popularity(self) -> pl.Series | None:
        """Read how often each item occurs in training, int64 [V]; None of a run that does not say.

        Raises:
            DataError: the file is damaged.
        """
        if not self.popularity.exists():
            return None
        try:
            return pl.read_parquet(self.popularity, glob=False)["interactions"]
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            reason = (str(error).splitlines() or ["damaged"])[0]
            raise DataError(f"not the items' popularity: {reason}", self.popularity) from error

    def save_item_data(self, data: ItemData) -> None:
        """Write what is known about the items, if anything is."""
        if data.content_hash is not None:
            data.save(self.item_data)

    def read_item_data(self, config: Config) -> ItemData:
        """Read what is known about the items of the run with this configuration, as it was written.

        Raises:
            DataError: it is not what the configuration's provenance says.
        """
        recorded = (config.provenance or {}).get("item_data_hash")
        if recorded is None:
            return ItemData(len(self.read_item_ids()))
        if not self.item_data.exists():
            raise DataError("the run's item features or text vectors are missing", self.item_data)
        data = ItemData.load(self.item_data)
        if data.content_hash != recorded:
            raise DataError("not the item features or text vectors that the run was made with", self.item_data)
        return data

    def save_interactions(self, frame: Any) -> bool:
        """Write the frame that the run is to be trained on; what one is made from already stays as it is.

        Returns:
            Whether it was written now.

        Raises:
            RunError: the folder holds a finished run, or one of another frame.
            DataError: the frame cannot be read or written.
        """
        if self.finished():
            raise RunError(f"{self.path}: holds a finished run; choose another out")
        with tempfile.TemporaryDirectory(prefix="plr-") as temporary:
            made = Path(temporary) / INTERACTIONS
            write_frame(frame, made)
            if self.interactions.exists():
                if sha256_of(self.interactions) != sha256_of(made):
                    raise RunError(f"{self.path}: holds a run of another frame; choose another out, or delete it")
                return False
            with atomic_path(self.interactions) as aside:
                shutil.copyfile(made, aside)
        return True

    def read_item_ids(self) -> list[str]:
        """Read the item id map.

        Raises:
            DataError: the file is missing or not such a map.
        """
        try:
            return pl.read_parquet(self.items, glob=False)["item_id"].to_list()
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            reason = (str(error).splitlines() or ["damaged"])[0]
            raise DataError(f"not the run's item ids: {reason}", self.items) from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Read the weights of a run into its model.

    Raises:
        RunError: the file is missing, damaged or holds the weights of another model.
    """
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: no readable weights ({error})") from error
    except RuntimeError as error:  # names every tensor that does not fit
        first = str(error).split("\n\t")[:2]
        raise RunError(f"{path}: not the weights of the model in config.yaml ({' '.join(first)})") from error
