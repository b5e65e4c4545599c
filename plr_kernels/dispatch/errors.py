"""What this package refuses to run with, apart from wrong arguments."""

from __future__ import annotations

__all__ = ["BackendError", "SettingError"]


class SettingError(ValueError):
    """An environment variable PLR_KERNELS_* holds what cannot be used; raised when `plr_kernels` is imported."""


class BackendError(RuntimeError):
    """The backend that was named cannot run on this machine, or not an operator on these tensors."""
