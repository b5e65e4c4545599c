"""Runs for other programs: item vectors, a PyTorch program, an ONNX graph."""

from plr.export.export import FORMATS, export_run

__all__ = ["FORMATS", "export_run"]
