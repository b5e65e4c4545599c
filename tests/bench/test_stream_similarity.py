from __future__ import annotations

import pytest
import torch

from bench.stream_similarity import mean_cosine


def test_mean_cosine_is_that_of_all_pairs():
    right, up = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])
    states = torch.stack([torch.stack([right, up, right]), torch.stack([up, up, -up])])

    # Cosines of the pairs 01, 02, 12: 0, 1, 0 and 1, -1, -1.
    assert mean_cosine(states) == pytest.approx((1 / 3 - 1 / 3) / 2)
    assert mean_cosine(states[:1]) == pytest.approx(1 / 3)
