import pytest
import torch

from plr.models.layers.dropout import Dropout, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_share_scale_and_gradient(p):
    torch.manual_seed(0)
    states = torch.full((501, 203), 3.0, requires_grad=True)
    result = Dropout(p)(states)
    result.sum().backward()
    kept = result != 0
    assert torch.equal(states.grad != 0, kept)
    # Within five standard deviations of a Bernoulli share, and of the rounding of p.
    share = kept.double().mean().item()
    assert abs(share - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5 + 2**-17
    scale = 65536 / (65536 - round(p * 65536))
    torch.testing.assert_close(result[kept], torch.full((int(kept.sum()),), 3 * scale))
    torch.testing.assert_close(states.grad[kept], torch.full((int(kept.sum()),), scale))


def test_neighbours_are_independent():
    """Four numbers share a random word."""
    torch.manual_seed(1)
    keep = keep_mask(torch.Size([40_000, 4]), 2**15).double() - 0.5
    covariance = keep.T @ keep / len(keep)
    assert (covariance - torch.eye(4) / 4).abs().max() < 5 * 0.25 / len(keep) ** 0.5


def test_masks_are_drawn_from_the_global_generator():
    states = torch.ones(7, 5)
    torch.manual_seed(3)
    first, second = Dropout(0.5)(states), Dropout(0.5)(states)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(states), first)
    assert not torch.equal(first, second)


def test_evaluation_and_no_dropout_change_nothing():
    states = torch.randn(3, 4)
    assert Dropout(0.5).eval()(states) is states
    assert Dropout(0.0)(states) is states
    assert Dropout(0.5)(torch.empty(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeps_the_dtype(dtype):
    assert Dropout(0.5)(torch.ones(2, 3, dtype=dtype)).dtype == dtype
