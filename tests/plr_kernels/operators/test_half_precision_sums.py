"""Sums over many blocks are held in float32 until their end, whatever the inputs' dtype.

Each is of a few large numbers and many small ones. The large ones cancel, but not within a block, and a block's small
ones together are less than the dtype tells apart beside its large ones: rounded after a block, they are lost.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plr_kernels import linear_cross_entropy, mixture_cross_entropy, stream_attention, use_backend
from tests.plr_kernels.harness import implemented

COUNT, EACH, BLOCK = 1024, 16, 128  # numbers; one large among so many; as many are added up at once at most
DTYPES = (torch.bfloat16, torch.float16)

in_half_precision = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def on_targets_of(name):
    targets = [target for target, operator in implemented() if str(operator) == name]
    assert targets
    return pytest.mark.parametrize("target", targets, ids=str)


def numbers_of(target, dtype, dim=16) -> Tensor:
    """[1024, dim] in the dtype, all rows alike."""
    large = 16.0
    small = large * torch.finfo(dtype).eps / 4 / EACH
    numbers = torch.full((COUNT // BLOCK, BLOCK // EACH, EACH, dim), small, device=target.device)
    numbers[:, :, 0] = large
    numbers[1::2, :, 0] *= -1
    numbers = numbers.reshape(COUNT, dim)
    assert torch.equal(numbers.to(dtype).float(), numbers)
    for block in numbers[:, 0].split(BLOCK):  # what rounding does to the sum of one
        assert block.sum().to(dtype) == block[::EACH].sum()
    return numbers.to(dtype)


def rounded_once(numbers: Tensor) -> Tensor:
    return numbers.double().sum(0).to(numbers.dtype)


def leaf(numbers: Tensor) -> Tensor:
    return numbers.clone().requires_grad_()


@on_targets_of("linear_cross_entropy")
@in_half_precision
@pytest.mark.parametrize("streams", [0, 2])
def test_gradients_of_cross_entropies(target, dtype, streams):
    """Where all logits are 0, all probabilities are equal powers of two; the target's vector is 0, or all are."""
    numbers = numbers_of(target, dtype)
    rows, items = 2, 16

    def gradients(states: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        targets = torch.full((len(states),), len(table) - 1, device=target.device)
        with use_backend(target.backend):
            if streams == 0:
                loss = linear_cross_entropy(states, table, targets, reduction="sum")
            else:
                log_weights = torch.zeros(len(states), streams, dtype=states.dtype, device=target.device)
                several = states[:, None].expand(-1, streams, -1)
                loss = mixture_cross_entropy(several, log_weights, table, targets, reduction="sum")
            return torch.autograd.grad(loss, (states, table))

    table = numbers.clone()
    table[-1] = 0
    states = torch.zeros(rows, numbers.shape[1], dtype=dtype, device=target.device)
    by_state, _ = gradients(leaf(states), leaf(table))
    assert torch.equal(by_state * COUNT, rounded_once(table).expand_as(by_state))

    zeros = torch.zeros(items, numbers.shape[1], dtype=dtype, device=target.device)
    _, by_item = gradients(leaf(numbers), leaf(zeros))
    assert torch.equal(by_item[:-1] * items, rounded_once(numbers).expand_as(by_item[:-1]))


@on_targets_of("stream_attention")
@in_half_precision
def test_attention(target, dtype):
    """Queries of zeros: all entries of the prefix have the same probability; streams have no entries of their own."""
    numbers = numbers_of(target, dtype)
    dim = numbers.shape[1]

    def attend(query: Tensor, prefix: Tensor) -> Tensor:
        own = query.new_empty(1, 1, query.shape[2], 0, dim)
        with use_backend(target.backend):
            return stream_attention(query, torch.zeros_like(prefix), prefix, own, own)

    zeros = torch.zeros(1, 1, 3, dim, dtype=dtype, device=target.device)
    output = attend(zeros, numbers[None, None])
    assert torch.equal(output * COUNT, rounded_once(numbers).expand_as(output))

    # Backwards, streams are what a prefix' value is a sum over.
    prefix = leaf(torch.zeros(1, 1, 16, dim, dtype=dtype, device=target.device))
    streams = torch.zeros(1, 1, COUNT, dim, dtype=dtype, device=target.device)
    (by_value,) = torch.autograd.grad(attend(streams, prefix), prefix, numbers[None, None])
    assert torch.equal(by_value * 16, rounded_once(numbers).expand_as(by_value))
