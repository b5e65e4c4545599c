"""A measurement on one thread: what is said beside its figures, and the files that it becomes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.records import write_record, write_text
from plr_kernels import extension


class OneThread:
    """Begun before the first figure is taken: PyTorch has one thread from here on.

    Args:
        module: the benchmark, as after `python -m`.
        arguments: those of its command, as they are to be shown; None: the process'.
    """

    def __init__(self, module: str, arguments: Sequence[str] | None) -> None:
        torch.set_num_threads(1)
        self.command = " ".join(["python -m", module, *(sys.argv[1:] if arguments is None else arguments)])
        self.load = os.getloadavg()[0]

    def record(self, **found: Any) -> dict[str, Any]:
        """The command, versions, instruction set and how busy the machine was at the first and last figure; `found`."""
        return {
            "command": self.command,
            "torch": torch.__version__,
            "instruction_set": extension.instruction_set(),
            "threads": 1,
            "load": [self.load, os.getloadavg()[0]],
            **found,
        }


def write_both(out: Path, record: dict[str, Any], table: Callable[[dict[str, Any]], str]) -> None:
    """The record in `out`, and its table in a .md file of the same name."""
    write_record(out, record)
    write_text(out.with_suffix(".md"), table(record))
