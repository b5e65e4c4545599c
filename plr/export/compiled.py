"""A run compiled ahead of time by PyTorch's Inductor for this machine's kind: no Python is needed to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plr.errors import RunError
from plr.export.check import Answer
from plr.export.program import portable, quiet
from plr.serving import Recommender
from plr.serving.ragged import Ragged


def write_compiled(recommender: Recommender, file: Path, manifest: dict[str, Any]) -> None:
    """Write a .pt2 package of machine code; manifest and item_ids are in its metadata, as JSON.

    Raises:
        RunError: PyTorch cannot trace or compile the run.
    """
    program = portable(recommender, manifest["k"], manifest["exclude_seen"])
    metadata = {"manifest": json.dumps(manifest), "item_ids": json.dumps(recommender.item_ids)}
    settings = {"aot_inductor.metadata": metadata}
    try:
        with quiet():
            torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=settings)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"{recommender.config.title} cannot be compiled: {reason} (it takes a C++ compiler, g++ or clang++)"
        ) from error


def load_compiled(recommender: Recommender, file: Path, manifest: dict[str, Any]) -> Answer:
    """Load the file; return what ranks by it."""
    model = torch._inductor.aoti_load_package(str(file))

    def answer(histories: Ragged, k: int, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            scores, items = model(torch.from_numpy(histories.padded(0)), torch.from_numpy(histories.lengths))
        return scores.numpy(), items.numpy()

    return answer
