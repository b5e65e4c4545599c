from __future__ import annotations

import torch

from bench.training_step import TINY, adam_step


def test_both_backends_do_the_same_steps():
    kernels, formulas = (adam_step(backend, TINY, items=30) for backend in ("auto", "reference"))
    losses = []
    for _ in range(3):
        (loss, gradient), (expected, expected_gradient) = kernels(), formulas()
        torch.testing.assert_close(loss, expected)
        rounding = 1e-4 * expected_gradient.abs().max().item()
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=rounding)
        losses.append(loss.item())
    assert len(set(losses)) == 3  # Adam moves the weights, and the masks are new ones
    assert list(kernels.seconds) == ["forward", "backward", "update", "step"]
