"""Callbacks and loggers of Lightning that a caller hands to a run, beside the run's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from plr.config import Config
from plr.errors import ConfigError, shortened

__all__ = ["Handed"]


@dataclass(frozen=True)
class Handed:
    """What was handed to `plr.training.train`."""

    callbacks: tuple[Callback, ...] = ()
    loggers: tuple[Logger, ...] = ()

    @classmethod
    def of(cls, callbacks: Callback | Iterable[Callback], logger: Logger | Iterable[Logger] | None) -> Handed:
        """Return them as tuples.

        Args:
            callbacks: one, or several.
            logger: one, several, or None.

        Raises:
            ConfigError: something else is among them.
        """
        loggers = () if logger is None else logger
        return cls(_all_of("callbacks", Callback, callbacks), _all_of("logger", Logger, loggers))

    def log_options(self, config: Config) -> None:
        """Tell the loggers the options of the run, as hyperparameters."""
        options = {name: value for name, value in config.plain().items() if name != "provenance"}
        for logger in self.loggers:
            logger.log_hyperparams(options)


def _all_of(argument: str, kind: type, given: object) -> tuple:
    listed = (given,) if isinstance(given, (kind, str)) or not isinstance(given, Iterable) else tuple(given)
    for each in listed:
        if not isinstance(each, kind):
            accepted = "callbacks" if kind is Callback else "loggers"
            raise ConfigError(
                f"{argument} must be {accepted} of `lightning.pytorch` (`pytorch_lightning` is another package); "
                f"found {shortened(each)}"
            )
    return listed
