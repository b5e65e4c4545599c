"""Systems as Python objects that are fitted to data, in the manner of scikit-learn.

    model = plr.PLR(dim=64, seed=1).fit(frame)
    model.recommend(histories, k=10)
    model.save("runs/first")
    model = plr.load("runs/first")
    plr.Recommender(backbone="bert4rec", method="prl").fit(frame)

Each is a run of `plr train` with the same options, and its folder is one that every command reads.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr import serving
from plr.api import OPTIONS, OWN_DEFAULTS, train_on
from plr.config import Config, is_own_frame, without_derived
from plr.errors import ConfigError, RunError, shortened
from plr.files import atomic_path
from plr.frames import is_frame
from plr.inherited import of_one_run
from plr.runs import RunFolder

if TYPE_CHECKING:
    import torch

    from plr.serving.ranker import GPUAnswers

__all__ = ["PLR", "BERT4Rec", "Estimator", "Recommender", "SASRec", "UniSRec", "load"]

_OPTIONS = OPTIONS - {"from_run", "new_items"} | {"out"}
_DEFAULTS = {
    each.name: OWN_DEFAULTS.get(each.name, each.default)
    for each in fields(Config)
    if each.name in _OPTIONS - {"out"}
}


class Estimator:
    """A system with options, to be fitted to interactions: what `PLR`, `SASRec` … and `Recommender` have in common.

    Args:
        out: the folder of the run; None: a temporary one, removed with the object, until `save`.
        options: as in `plr train --help`: backbone, method, dim, epochs, user_column … Those not given have its
            defaults, but for `progress`, which is off.

    Attributes:
        metrics_: the content of metrics.json; a fitted system has it.

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    _fixed: dict[str, Any] = {}  # noqa: RUF012  what a named system is

    def __init__(self, *, out: str | PathLike[str] | None = None, **options: Any):
        self.out = out
        self._options: dict[str, Any] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._recommender: serving.Recommender | None = None
        self._fitted: RunFolder | None = None
        self.set_params(**options)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all options and `out`, as scikit-learn does; those that were not given have their defaults.

        None stands for what follows from other options, as `temperature` does from the backbone.
        """
        defaults = {name: value for name, value in _DEFAULTS.items() if name not in self._fixed}
        return {"out": self.out, **defaults, **self._options}

    def set_params(self, **options: Any) -> Estimator:
        """Change options; what was fitted stays as it is until the next `fit`.

        Raises:
            ConfigError: an option is unknown, out of range, or one that makes another system of this class.
        """
        out = options.pop("out", self.out)
        if out is not None and not isinstance(out, (str, PathLike)):
            raise ConfigError(f"out must be the path of the run's folder, or None; found {shortened(out)}")
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"{type(self).__name__} has no option {name!r}; `plr train --help` lists them")
            if name in self._fixed:
                raise ConfigError(
                    f"{name} is {self._fixed[name]!r} in {type(self).__name__}; take plr.Recommender for another"
                )
        given = self._options | options
        self._config(given, "", "")
        self.out, self._options = out, given
        return self

    def fit(self, interactions: Any, *, callbacks: Any = (), logger: Any = None) -> Estimator:
        """Train on interactions, and validate and test on those held out.

        Args:
            interactions: a frame with a row per interaction, and columns as in a CSV or Parquet file of `plr train`
                (user, item and, for a split by time, timestamp, under the usual names or those of `user_column` …); or
                what `data` may be: the path of a file or of a prepared folder.
            callbacks: one or several of Lightning's callbacks, or your own subclasses of it: as for
                `plr.training.train`.
            logger: one or several of Lightning's loggers (W&B, MLflow, TensorBoard, CSV), beside the run's own.

        Returns:
            The object itself. Repeated after an interruption with the same `out`, it resumes.

        Raises:
            ConfigError: callbacks or logger are none of Lightning's.
            UserError: as `plr train`: data or options that cannot be used, an `out` that holds a finished run.
        """
        self._train(interactions, self.out, self._options, callbacks, logger)
        return self

    def fit_partial(
        self,
        interactions: Any,
        *,
        out: str | PathLike[str] | None = None,
        callbacks: Any = (),
        logger: Any = None,
        **options: Any,
    ) -> Estimator:
        """Go on from what was fitted, on newer interactions: `plr train --from`.

        Weights and Adam's moments are kept, rows of items matched by their ids. Items that were not known start as
        `new_items` says ("neighbours", "content" or "random"); those that the new interactions lack retire.

        Args:
            interactions: as for `fit`: all that the model should know of, or the recent ones.
            out: the folder of the new run; None: a temporary one, removed with the object, until `save`. What was
                fitted before stays in its folder.
            callbacks, logger: as for `fit`.
            options: for this run alone: epochs, lr, new_items, train_time … Those of `fit` hold otherwise, but for
                `init`, and for `valid_time`, `test_time` and `train_time`, which belong to its data; nor do options
                of raw data, such as `min_rating`, where the interactions are a prepared folder.

        Returns:
            The object itself.

        Raises:
            RunError: nothing was fitted yet, or `out` is what was fitted.
            ConfigError: an option is unknown or out of range.
            UserError: as `fit`.
        """
        if self._fitted is None:
            raise RunError(f"this {type(self).__name__} is not fitted; call fit first")
        known = _OPTIONS - {"out"} | {"new_items"}
        for name in options:
            if name not in known:
                raise ConfigError(f"{type(self).__name__} has no option {name!r}; `plr train --help` lists them")
        path = os.fspath(interactions) if isinstance(interactions, (str, PathLike)) else None
        left_out = of_one_run(path)
        chosen = {name: value for name, value in self._options.items() if name not in left_out}
        parent = self._fitted.path
        own = chosen | options | {"from_run": str(parent)}
        self._train(interactions, out, own, callbacks, logger)
        return self

    def _train(
        self,
        interactions: Any,
        out: str | PathLike[str] | None,
        options: dict[str, Any],
        callbacks: Any,
        logger: Any,
    ) -> None:
        """Train with these options in that folder, or a temporary one, and serve from it."""
        temporary = None
        if out is None:
            temporary = tempfile.TemporaryDirectory(prefix="plr-")
        folder = Path(temporary.name) / "run" if temporary else Path(str(out))
        self.metrics_ = train_on(interactions, str(folder), options | self._fixed, callbacks, logger)
        self._temporary, self._fitted, self._recommender = temporary, RunFolder(folder), None

    def recommend(self, histories: Any, k: int | None = None, **options: Any) -> Any:
        """Return the k best items for each history, best first.

        Args:
            histories: item ids, oldest first, for each; or a frame, or a mapping of columns, as
                `plr.serving.Recommender.recommend_frame` takes it.
            k: how many; None: 10, or all where there are fewer.
            options: exclude_seen, unknown, only, exclude, where, at_most, categories, category_field, batch_size of
                its `recommend` or `recommend_frame`, of the latter also popularity_days and popularity_data.

        Returns:
            For histories a list of `Recommendation` for each; for a frame one as `recommend_frame` returns it.

        Raises:
            RunError: nothing was fitted yet.
            UserError: as those raise.
        """
        if is_frame(histories) or isinstance(histories, Mapping):
            return self.recommender.recommend_frame(histories, k, **options)
        return self.recommender.recommend(histories, k, **options)

    @property
    def recommender(self) -> serving.Recommender:
        """The fitted model, for serving.

        Raises:
            RunError: nothing was fitted yet.
        """
        if self._fitted is None:
            raise RunError(f"this {type(self).__name__} is not fitted; call fit first")
        if self._recommender is None:
            self._recommender = serving.Recommender.load(self._fitted.path)
        return self._recommender

    def save(self, path: str | Path) -> None:
        """Copy the run to a new folder, which `plr.load` and every command read.

        Raises:
            RunError: nothing was fitted yet, or something is at `path`.
        """
        if self._fitted is None:
            raise RunError(f"this {type(self).__name__} is not fitted; call fit first")
        target = Path(path)
        if target.exists():
            raise RunError(f"{target} exists already; choose another folder, or remove it")
        with atomic_path(target, replace=False) as aside:
            shutil.copytree(self._fitted.path, aside)
            _settle(RunFolder(aside), target)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: with the files of a temporary run, which another object removes."""
        state = self.__dict__.copy()
        if self._temporary is not None and self._fitted is not None:
            folder = self._fitted.path
            files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            state |= {"_temporary": None, "_fitted": None, "_recommender": None, "_files": files}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be a copy, whose temporary run is in a folder of its own."""
        files = state.pop("_files", None)
        self.__dict__.update(state)
        if files is None:
            return
        self._temporary = tempfile.TemporaryDirectory(prefix="plr-")
        self._fitted = RunFolder(Path(self._temporary.name) / "run")
        for name, content in files.items():
            path = self._fitted.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        _settle(self._fitted, self._fitted.path)

    @classmethod
    def _of(cls, path: Path) -> Estimator:
        """Return the fitted system of a finished run."""
        folder = RunFolder(path)
        config = folder.require_finished()
        known = {frozenset(system._fixed.items()): system for system in (PLR, SASRec, BERT4Rec, UniSRec)}
        system = known.get(frozenset({"backbone": config.backbone, "method": config.method}.items()), Recommender)
        chosen = without_derived(asdict(config))  # what followed from the options given was not given
        left_out = {*system._fixed, "out", *(["format"] if is_own_frame(config) else [])}
        options = {
            name: chosen[name]
            for name in sorted(_OPTIONS - left_out)
            if name in chosen and chosen[name] != _DEFAULTS[name]
        }
        estimator = system(out=path, **options)
        estimator._fitted, estimator.metrics_ = folder, folder.read_metrics()
        return estimator

    def _config(self, options: dict[str, Any], data: str, out: str) -> Config:
        return Config(**{**OWN_DEFAULTS, **options, **self._fixed, "data": data, "out": out})

    def __fspath__(self) -> str:
        """Return the fitted run's folder: `plr.evaluate` and `plr.compare` take the system itself.

        Raises:
            RunError: nothing was fitted yet.
        """
        if self._fitted is None:
            raise RunError(f"this {type(self).__name__} is not fitted; call fit first")
        return str(self._fitted.path)

    def __repr__(self) -> str:
        chosen = {name: value for name, value in self._options.items() if value != _DEFAULTS[name]}
        shown = chosen if self.out is None else {"out": self.out, **chosen}
        given = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({given})"


class Recommender(Estimator):
    """Any backbone with any method: `plr.Recommender(backbone="bert4rec", method="prl")`.

    `plr.Recommender.load(DIR)` is a finished run of any kind, ready to answer.
    """

    @staticmethod
    def load(
        path: str | Path,
        device: str | torch.device = "cpu",
        *,
        text_vectors: str | Path | None = None,
        gpu: GPUAnswers = "graphs",
    ) -> serving.Recommender:
        """Load the folder of a finished run to recommend from it; `plr.load` is for going on with it.

        Args, returns and raises: as `plr.serving.Recommender.load`.
        """
        return serving.Recommender.load(path, device, text_vectors=text_vectors, gpu=gpu)


class PLR(Estimator):
    """Parallel latent reasoning on SASRec's encoder."""

    _fixed = {"backbone": "sasrec", "method": "plr"}  # noqa: RUF012


class SASRec(Estimator):
    """SASRec with full cross-entropy."""

    _fixed = {"backbone": "sasrec", "method": "base"}  # noqa: RUF012


class BERT4Rec(Estimator):
    """BERT4Rec as published, trained by Cloze."""

    _fixed = {"backbone": "bert4rec-cloze", "method": "base"}  # noqa: RUF012


class UniSRec(Estimator):
    """UniSRec; needs `text_vectors`, the folder that `plr embed-text` wrote."""

    _fixed = {"backbone": "unisrec", "method": "base"}  # noqa: RUF012


def _settle(copied: RunFolder, target: Path) -> None:
    """Let the configuration of a copied run say where it will lie."""
    config = Config.load(copied.config)
    config.out = str(target)
    if copied.interactions.exists():
        config.data = str(RunFolder(target).interactions)
    config.save(copied.config)


def load(path: str | Path) -> Estimator:
    """Return the fitted system of a finished run's folder.

    Raises:
        FileNotFoundError: there is no finished run.
    """
    return Estimator._of(Path(path))
