"""Operators on a table that two and four processes share, against one process with all of it."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding

from plr_kernels import target_mixture_rank, target_rank, top_items, top_mixture_items, use_backend
from tests.plr_kernels.distributed.processes import (
    DTYPES,
    LOSS_CASES,
    MANY_ROWS,
    RANKINGS,
    STREAMS,
    TEMPERATURE,
    LossCase,
    allowed_items,
    lookup_case,
    mixture_case,
    ranking_case,
    row_counts,
    ties_case,
)
from tests.plr_kernels.harness import LINEAR_CROSS_ENTROPY, PAIRWISE_KL, assert_accurate, cast, evaluate, largest_error

AGREED = 8 * 8
"""Bytes of the numbers that processes compare first."""


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory) -> list[dict[str, Any]]:
    """What each process has found."""
    folder, count = tmp_path_factory.mktemp("sharded"), request.param
    program = [sys.executable, "-m", "tests.plr_kernels.distributed.processes", str(folder), str(count)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{count}-{rank}.pt", weights_only=True) for rank in range(count)]


def together(parts: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The processes' results as one's: states' and items' gradients one after the other, scalars added up."""
    results = {}
    for name in parts[0]:
        if name != "sent":
            each = [part[name] for part in parts]
            scalar = each[0].ndim == 0
            results[name] = torch.stack(each).double().sum().to(each[0].dtype) if scalar else torch.cat(each)
    return results


@pytest.mark.parametrize("name", [name for name, case in LOSS_CASES.items() if case.dtype != "float64"])
def test_losses_are_as_accurate_as_one_process_must_be(name, found):
    case = LOSS_CASES[name]
    assert_accurate(together([each["losses"][name] for each in found]), case.operator, case.whole())


@pytest.mark.parametrize("name", [name for name, case in LOSS_CASES.items() if case.sizes == MANY_ROWS])
def test_rows_whose_targets_are_elsewhere_do_not_all_use_one_item(name, found):
    """What is added to an item for them and taken again is rounded: a process's first item, say, would get it all.

    In half precision its error was five to nine times the usual one then; a chance of one item among 300 is 2.5.
    """
    whole = LOSS_CASES[name].whole()
    truth = evaluate(LINEAR_CROSS_ENTROPY.formula, cast(whole, torch.float64))["gradient of items"]
    gradient = together([each["losses"][name] for each in found])["gradient of items"]
    errors = (gradient.double() - truth).abs().amax(dim=1)
    firsts = [300 * process // len(found) for process in range(len(found))]
    assert errors[firsts].max() < 4 * errors.median()


@pytest.mark.parametrize("name", [name for name, case in LOSS_CASES.items() if case.dtype == "float64"])
def test_losses_and_gradients_are_those_of_one_process(name, found):
    """To float64's rounding: what is summed are at most V, D and R terms, exponents of the largest logit's error."""
    case = LOSS_CASES[name]
    whole = case.whole()
    truth = evaluate(case.operator.formula, whole)
    results = together([each["losses"][name] for each in found])
    states, items = whole.tensors["states"], whole.tensors["items"]
    logit = float((states @ items.T / whole.options["temperature"]).abs().max())
    terms = len(items) + items.shape[1] + states[..., 0].numel()
    for key, value in truth.items():
        size = max(1.0, logit, float(value.abs().max()))
        assert results[key].shape == value.shape
        assert largest_error(results[key], value) <= terms * (1 + logit) * torch.finfo(torch.float64).eps * size, key


@pytest.mark.parametrize("name", RANKINGS)
def test_lists_and_ranks_are_those_of_one_process(name, found):
    """Of exact scores with ties, to the last id."""
    case = ranking_case(name)
    scores, ids = top_items(case["states"], case["items"], case["k"], exclude=case["exclude"])
    parts = [each["rankings"][name] for each in found]
    assert torch.equal(torch.cat([part["top"][0] for part in parts]), scores)
    assert torch.equal(torch.cat([part["top"][1] for part in parts]), ids)
    where = allowed_items(len(case["items"]))
    scores, ids = top_items(case["states"], case["items"], case["k"], exclude=case["exclude"], where=where)
    assert torch.equal(torch.cat([part["masked"][0] for part in parts]), scores)
    assert torch.equal(torch.cat([part["masked"][1] for part in parts]), ids)
    greater, equal = target_rank(case["states"], case["items"], case["targets"], exclude=case["exclude"])
    assert torch.equal(torch.cat([part["ranks"][0] for part in parts]), greater)
    assert torch.equal(torch.cat([part["ranks"][1] for part in parts]), equal)


@pytest.mark.parametrize("name", RANKINGS)
def test_lists_and_ranks_of_mixtures_are_those_of_one_process(name, found):
    """The logits are exact, with ties; the normalisers, in float64, differ in their last bits, and all scores alike."""
    case, parts = mixture_case(name), [each["mixtures"][name] for each in found]
    mixture, exclude = (case["states"], case["log_weights"], case["items"]), case["exclude"]
    with use_backend("reference"):
        scores, ids = top_mixture_items(*mixture, case["k"], temperature=TEMPERATURE, exclude=exclude)
        where = allowed_items(len(case["items"]))
        masked = top_mixture_items(*mixture, case["k"], temperature=TEMPERATURE, exclude=exclude, where=where)
        counts = target_mixture_rank(*mixture, case["targets"], temperature=TEMPERATURE, exclude=exclude)
    assert torch.equal(torch.cat([part["masked"][1] for part in parts]), masked[1])
    assert torch.equal(torch.cat([part["top"][1] for part in parts]), ids)
    found_scores = torch.cat([part["top"][0] for part in parts])
    assert found_scores.dtype == scores.dtype
    # Of logits below 5 · 4 / 0.7 in float64, each rounded a few times, and then the rounding to the scores' dtype.
    torch.testing.assert_close(found_scores, scores, rtol=2 * torch.finfo(scores.dtype).eps, atol=8 * 29 * 2.3e-16)
    for place, expected in enumerate(counts):
        assert torch.equal(torch.cat([part["ranks"][place] for part in parts]), expected)


def test_equal_vectors_tie_whoever_holds_them(found):
    """Their scores differ by rounding: the target's is a sum of its own."""
    states, items, targets = ties_case()
    states, items = states.double(), items.double()
    mixed = torch.stack([states, states.roll(1, dims=0)], dim=1)
    log_weights = torch.tensor([[0.3, 0.7]]).double().log().repeat(len(states), 1)
    one_process = target_rank(states, items, targets), target_mixture_rank(mixed, log_weights, items, targets)
    for number, (greater, equal) in enumerate(one_process):
        assert equal.tolist() == [8, 8, 8, 8, 0, 8]
        assert torch.equal(torch.cat([each["ties"][number][0] for each in found]), greater)
        assert torch.equal(torch.cat([each["ties"][number][1] for each in found]), equal)


def test_equal_vectors_tie_in_lists_of_processes_whose_tables_are_summed_otherwise(found):
    """In bfloat16, from 1,024 rows on: the first process has as many, the others one row less."""
    for each in found:
        _, ids = each["lists of ties"]
        ids = ids.unflatten(1, (10, len(found)))  # the items of each of the ten best vectors
        first = ids[:, :, :1]
        assert (first < 1023).all()
        assert torch.equal(ids, first + torch.tensor([0, *range(1024, 1023 * len(found), 1023)]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_looked_up_are_the_table_s(dtype, found):
    table, ids, gradient = lookup_case(dtype)
    parts = [each["lookups"][dtype] for each in found]
    table.requires_grad_()
    rows = embedding(ids, table)
    rows.backward(gradient)
    assert torch.equal(torch.cat([part["rows"] for part in parts]), rows)
    for name in ("gradient", "of sparse"):
        assert torch.equal(torch.cat([part[name] for part in parts]), table.grad), name  # sums of small integers
    assert torch.equal(torch.cat([part["named"] for part in parts]), ids.unique())


def _sent_by_a_loss(case: LossCase, processes: int) -> tuple[int, int]:
    whole = case.whole()
    states, items = whole.tensors["states"], whole.tensors["items"]
    most = max(row_counts(len(states), processes))  # R*
    per_row = 1 if states.ndim == 2 else states.shape[1]  # M or N
    dim, number = items.shape[1], items.element_size()
    of_sums = max(4, number)
    if case.operator is PAIRWISE_KL:
        statistics = 3 * processes * most * per_row * of_sums + 8
        return AGREED + most * per_row * dim * number + statistics, (
            of_sums + processes * most * per_row * dim * of_sums
        )
    rows = most * per_row
    forward = AGREED + rows * (8 + dim * number) + 3 * processes * rows * of_sums
    return forward, rows * of_sums + processes * rows * dim * of_sums


@pytest.mark.parametrize("name", LOSS_CASES)
def test_losses_send_what_the_formula_says(name, found):
    """docs/distributed.md: nothing in it grows with V."""
    expected = _sent_by_a_loss(LOSS_CASES[name], len(found))
    assert [each["losses"][name]["sent"] for each in found] == [expected] * len(found)


@pytest.mark.parametrize("name", RANKINGS)
def test_rankings_send_what_the_formula_says(name, found):
    case, count = ranking_case(name), len(found)
    most = max(row_counts(len(case["states"]), count))
    number = case["items"].element_size()
    of_sums, of_scores = max(4, number), max(4, number)
    excluded = 0 if case["exclude"] is None else case["exclude"].shape[1]
    states = AGREED + most * (case["items"].shape[1] * number + 8 * excluded)
    expected = (
        states + count * most * case["k"] * (of_scores + 8),
        states + 8 * most + count * most * (of_sums + 8) + 24 * count * most,
    )
    assert [each["rankings"][name]["sent"] for each in found] == [expected] * count


@pytest.mark.parametrize("name", RANKINGS)
def test_rankings_of_mixtures_send_what_the_formula_says(name, found):
    case, count = mixture_case(name), len(found)
    most = max(row_counts(len(case["states"]), count))
    number, of_scores = case["items"].element_size(), max(4, case["items"].element_size())
    excluded = 0 if case["exclude"] is None else case["exclude"].shape[1]
    each_row = STREAMS * (case["items"].shape[1] + 1) * number + 8 * excluded
    states = AGREED + most * each_row + 2 * count * most * STREAMS * 8
    expected = (
        states + count * most * case["k"] * (of_scores + 8),
        states + 8 * most + count * most * (8 + 8) + 24 * count * most,
    )
    assert [each["mixtures"][name]["sent"] for each in found] == [expected] * count


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lookup_sends_each_distinct_row_once(dtype, found):
    table, ids, _ = lookup_case(dtype)
    distinct = [len(part.unique()) for part in ids.split(row_counts(len(ids), len(found)))]
    row = table.shape[1] * table.element_size()
    sent = [each["lookups"][dtype]["sent"] for each in found]
    asked = [AGREED + 8 * len(found) + 8 * each for each in distinct]
    assert sum(forward for forward, _ in sent) == sum(asked) + row * sum(distinct)
    assert [backward for _, backward in sent] == [row * each for each in distinct]


REFUSED_IN_ONE = {
    "target": r"ValueError: targets must be in \[0, V\) or ignore_index \(V=9, ignore_index=-100\), found 9",
    "dtype": "TypeError: items must have the dtype of states",
    "rows": r"ValueError: items must have the process's \d rows of 9",
    "temperature": "ValueError: temperature must be above 0, found -1.0",
    "k": r"ValueError: k must be in \[1, V=9\], found 10",
    "exclude": r"ValueError: exclude must be in \[0, V\)",
    "mask": r"ValueError: where must have shape \[shard.rows=\d\], found \[\d\]",
    "log_weights": r"ValueError: log_weights must",
    "ids": r"ValueError: ids must be in \[0, V\) \(V=9\), found -1",
}
REFUSED_TOGETHER = {
    "widths differ": "ValueError: D must be the same in all processes: {} in process",
    "mixtures differ": "ValueError: M must be the same in all processes: {} in process",
    "lists differ": "ValueError: k must be the same in all processes: {} in process",
    "gradients differ": "ValueError: sparse must be the same in all processes: {} in process",
    "dtypes differ": "ValueError: dtype must be the same in all processes: {} in process",
    "temperatures differ": "ValueError: temperature must be the same in all processes: {} in process",
    "reductions differ": "ValueError: reduction must be the same in all processes: {} in process",
    "references differ": "ValueError: detach_reference must be the same in all processes: {} in process",
    "temperatures of lists differ": "ValueError: temperature must be the same in all processes: {} in process",
    "temperatures of ranks differ": "ValueError: temperature must be the same in all processes: {} in process",
    "gradients of losses differ": "ValueError: gradients must be the same in all processes: {} in process",
    "gradients of divergences differ": "ValueError: gradients must be the same in all processes: {} in process",
    "gradients of rows differ": "ValueError: gradients must be the same in all processes: {} in process",
    "tables differ": "ValueError: V must be the same in all processes: {} in process",
}


@pytest.mark.parametrize("name", REFUSED_IN_ONE)
def test_what_one_process_refuses_ends_the_others_too(name, found):
    for rank, each in enumerate(found):
        told = each["refusals"][name]
        if rank == 1:
            assert re.match(REFUSED_IN_ONE[name], told), told
        else:
            assert told == "RuntimeError: process 1 of the group refuses its arguments; it says there why"


@pytest.mark.parametrize("name", REFUSED_TOGETHER)
def test_arguments_must_fit_the_other_processes(name, found):
    one, other = {"widths differ": (4, 3), "gradients differ": (False, True), "mixtures differ": (2, 3),
                  "lists differ": (2, 3), "dtypes differ": ("torch.float32", "torch.float64"),
                  "temperatures differ": (0.5, 1.5), "temperatures of lists differ": (0.5, 1.5),
                  "temperatures of ranks differ": (0.5, 1.5), "reductions differ": ("mean", "sum"),
                  "references differ": (False, True),
                  "gradients of losses differ": ("of the states", "of the items alone"),
                  "gradients of divergences differ": ("of the states", "none"),
                  "gradients of rows differ": ("of the items alone", "none"),
                  "tables differ": (9, 10)}[name]  # fmt: skip
    for rank, each in enumerate(found):
        own = other if rank == 1 else one
        assert each["refusals"][name].startswith(REFUSED_TOGETHER[name].format(own)), each["refusals"][name]


def test_what_each_process_refuses_by_itself(found):
    for each in found:
        told = each["refusals"]
        assert told["shard"] == "TypeError: shard must be an ItemShard, found int"
        assert told["few items"].startswith(f"ValueError: items must be at least the number of processes, {len(found)}")
        assert told["no number"] == "TypeError: items must be an int, found float"
        assert "was differentiated before" in told["second backward"]


def test_second_derivatives_are_refused_and_not_left_out(found):
    for each in found:
        for name, told in each["refusals"]["second derivatives"].items():
            assert "differentiate twice" in told, (name, told)


def test_a_process_that_is_not_of_the_group_has_no_rows(found):
    assert found[0]["refusals"]["not of the group"] == "not refused"
    for each in found[1:]:
        assert each["refusals"]["not of the group"] == "group must be one that this process is of"
