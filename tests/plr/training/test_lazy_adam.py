import copy

import pytest
import torch
from torch import nn

from plr.training.lazy_adam import LazyAdam

# Of the steps; two of the table's rows are never named.
ROWS = torch.tensor([[1, 4, 4], [2, 1, 1], [6, 6, 6], [0, 1, 2], [4, 5, 6]])


def moved(table: nn.Embedding, optimizer: torch.optim.Optimizer, rows=ROWS) -> None:
    weights = torch.linspace(-1, 2, table.embedding_dim, dtype=torch.float64)
    for own in rows:
        optimizer.zero_grad()
        ((table(own) * weights).sin() ** 2).sum().backward()
        optimizer.step()


def tables(sparse: bool = True) -> tuple[nn.Embedding, nn.Embedding]:
    torch.manual_seed(0)
    table = nn.Embedding(8, 5, sparse=sparse, dtype=torch.float64)
    return table, copy.deepcopy(table)


@pytest.mark.parametrize("fused", [True, False])
def test_rows_move_as_those_of_sparse_adam(fused):
    ours, theirs = tables()
    # Adam adds eps, which is next to nothing here, after it corrects the moments, SparseAdam before.
    moved(ours, LazyAdam(ours.parameters(), lr=0.1, eps=1e-30, fused=fused))
    moved(theirs, torch.optim.SparseAdam(theirs.parameters(), lr=0.1, eps=1e-30))
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-10, atol=1e-10)
    before, _ = tables()
    assert torch.equal(ours.weight[[3, 7]], before.weight[[3, 7]])  # never named
    assert not torch.isclose(ours.weight[ROWS.unique()], before.weight[ROWS.unique()]).all(dim=1).any()


def test_where_each_step_names_every_row_it_is_adam():
    ours, theirs = tables()
    theirs.sparse = False
    every = torch.arange(8).repeat(4, 1)
    moved(ours, LazyAdam(ours.parameters(), lr=0.1), every)
    moved(theirs, torch.optim.Adam(theirs.parameters(), lr=0.1), every)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-12, atol=1e-12)


def test_parameters_with_dense_gradients_move_as_adam_moves_them_beside_sparse_ones():
    torch.manual_seed(1)
    linear, table = nn.Linear(5, 3), nn.Embedding(8, 5, sparse=True)
    alone = copy.deepcopy(linear), nn.Embedding.from_pretrained(table.weight.clone(), freeze=True)
    optimizer = LazyAdam([*linear.parameters(), *table.parameters()], lr=0.1)
    linear(table(torch.tensor([0, 3]))).square().sum().backward()
    optimizer.step()
    assert table.weight.grad is not None  # still there, as after a step of any optimiser
    assert table.weight.grad.is_sparse
    theirs = torch.optim.Adam(alone[0].parameters(), lr=0.1)
    alone[0](alone[1](torch.tensor([0, 3]))).square().sum().backward()
    theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(linear.parameters(), alone[0].parameters(), strict=True))


def test_a_state_that_is_loaded_goes_on_to_the_bit():
    whole, halves = tables()
    optimizer = LazyAdam(whole.parameters(), lr=0.1)
    moved(whole, optimizer)
    first = LazyAdam(halves.parameters(), lr=0.1)
    moved(halves, first, ROWS[:2])
    second = LazyAdam(halves.parameters(), lr=0.1)
    second.load_state_dict(first.state_dict())
    moved(halves, second, ROWS[2:])
    assert torch.equal(whole.weight, halves.weight)
    assert set(optimizer.state[whole.weight]) == {"step", "exp_avg", "exp_avg_sq"}  # Adam's


def test_the_closure_computes_the_gradients():
    table, _ = tables()
    optimizer = LazyAdam(table.parameters(), lr=0.1)
    before = table.weight.detach().clone()

    def closure():
        loss = table(torch.tensor([2])).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == before[2].sum()
    torch.testing.assert_close(table.weight[2], before[2] - 0.1)
