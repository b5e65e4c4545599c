from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """A small, learnable file of sequences: every user walks round a ring of items, from a different place."""
    path = tmp_path_factory.mktemp("data") / "ring.txt"
    items = 24
    lines = []
    for user in range(60):
        start, length = (user * 7) % items, 5 + user % 6
        walk = " ".join(f"i{(start + step) % items}" for step in range(length))
        lines.append(f"u{user} {walk}\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def quick(small_data, tmp_path):
    """Configuration values of a run that takes a second or two."""
    return {
        "data": str(small_data),
        "out": str(tmp_path / "run"),
        "dim": 16,
        "ffn_dim": 16,
        "max_length": 10,
        "hidden_dropout": 0.2,
        "attention_dropout": 0.2,
        "batch_size": 32,
        "epochs": 3,
        "lr": 0.01,
        "progress": False,
        "accelerator": "cpu",
        "threads": 1,  # another number of threads sums in another order
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file of the test's folder and return its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
