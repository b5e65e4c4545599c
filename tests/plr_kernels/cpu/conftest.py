"""What several files of tests set."""

import pytest
import torch

from plr_kernels import use_backend
from plr_kernels.dispatch import workspace


@pytest.fixture
def on_cpp():
    """The operators' C++ kernels."""
    with use_backend("cpp"):
        yield


@pytest.fixture
def threads_restored():
    """PyTorch's threads, as they were before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rows_at_once(monkeypatch):
    """Sets how many rows a chunk has; 0 for a forward and a backward pass."""

    def use(rows):
        monkeypatch.setattr(workspace, "_megabytes", 512 if rows else 0)
        monkeypatch.setattr(workspace, "MOST_ROWS", rows)

    return use
