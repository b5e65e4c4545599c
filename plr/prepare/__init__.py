"""Interaction files -> interactions -> filters -> split -> the prepared folder; nothing here needs PyTorch."""

from plr.prepare.options import PrepareOptions
from plr.prepare.pipeline import write_folder

__all__ = ["PrepareOptions", "write_folder"]
