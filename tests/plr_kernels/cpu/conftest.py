"""What several files of tests set."""

import pytest

from plr_kernels.dispatch import workspace


@pytest.fixture
def rows_at_once(monkeypatch):
    """Sets how many rows a chunk has; 0 for a forward and a backward pass."""

    def use(rows):
        monkeypatch.setattr(workspace, "_megabytes", 512 if rows else 0)
        monkeypatch.setattr(workspace, "MOST_ROWS", rows)

    return use
