"""What each of several processes computes with its rows of the table, its states, and what it sends.

As a program it is those processes: processes.py FOLDER W keeps what process r found in FOLDER/W-r.pt.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from plr_kernels.distributed import (
    ItemShard,
    sharded_linear_cross_entropy,
    sharded_lookup,
    sharded_mixture_cross_entropy,
    sharded_pairwise_kl,
    sharded_target_mixture_rank,
    sharded_target_rank,
    sharded_top_items,
    sharded_top_mixture_items,
)
from tests.plr_kernels.harness import (
    LINEAR_CROSS_ENTROPY,
    MIXTURE_CROSS_ENTROPY,
    PAIRWISE_KL,
    Case,
    Operator,
    make_case,
)

LOSSES = {
    "linear_cross_entropy": sharded_linear_cross_entropy,
    "mixture_cross_entropy": sharded_mixture_cross_entropy,
    "pairwise_kl": sharded_pairwise_kl,
}
OPERATORS = (LINEAR_CROSS_ENTROPY, MIXTURE_CROSS_ENTROPY, PAIRWISE_KL)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LossCase:
    """A loss, the sizes of its case by which they differ from the operator's large ones, and a dtype."""

    operator: Operator
    dtype: str
    sizes: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.operator.name, self.dtype, *(f"{name}={value}" for name, value in self.sizes)])

    def whole(self) -> Case:
        return make_case(self.operator, self.operator.large | dict(self.sizes), dtype=DTYPES[self.dtype])


MANY_ROWS = (("rows", 600), ("vocabulary", 300))


def _loss_cases() -> list[LossCase]:
    cases = [LossCase(operator, dtype) for operator in OPERATORS for dtype in DTYPES]
    for operator in OPERATORS:
        rows = "batch" if operator is PAIRWISE_KL else "rows"
        for dtype in ("float64", "float32"):
            for vocabulary in (4, 5, 7, 16_421):  # a row each; uneven; more than three blocks to each of four
                cases.append(LossCase(operator, dtype, (("vocabulary", vocabulary), ("temperature", 0.3))))
            cases.append(LossCase(operator, dtype, ((rows, 1),)))  # some processes have no row
        cases.append(LossCase(operator, "float32", ((rows, 0),)))
    for operator in (LINEAR_CROSS_ENTROPY, MIXTURE_CROSS_ENTROPY):
        for reduction in ("sum", "mean"):
            cases.append(LossCase(operator, "float64", (("reduction", reduction),)))
        cases.append(LossCase(operator, "float32", (("ignored", 1.1), ("reduction", "mean"))))
    cases += [LossCase(PAIRWISE_KL, dtype, (("detach_reference", True),)) for dtype in ("float64", "float32")]
    cases.append(LossCase(PAIRWISE_KL, "float32", (("group", 1),)))
    # Many rows whose targets are another process's.
    cases += [LossCase(LINEAR_CROSS_ENTROPY, dtype, MANY_ROWS) for dtype in ("bfloat16", "float16")]
    return cases


LOSS_CASES = {str(case): case for case in _loss_cases()}

RANKINGS = {
    f"V {vocabulary}, R {rows}, {dtype}": (vocabulary, rows, k, excluded, dtype)
    for vocabulary, rows, k, excluded, dtype in [
        (4, 5, 4, 0, "float32"),
        (7, 9, 6, 3, "float64"),
        (1031, 23, 300, 5, "bfloat16"),
        (8209, 6, 20, 40, "float32"),
        (50, 1, 30, 45, "float32"),  # fewer items are left than the list is long
        (50, 0, 3, 2, "float32"),
    ]
}


def row_counts(rows: int, processes: int) -> list[int]:
    """How many rows each process has: uneven, and the last but one has none."""
    if processes == 2:
        return [rows - rows // 3, rows // 3]
    return [rows - rows // 2 - rows // 3, rows // 2, 0, rows // 3]


def ranking_case(name: str) -> dict[str, Any]:
    """Small integers, whose scores are exact in every dtype, with many ties and vectors that occur several times."""
    vocabulary, rows, k, excluded, dtype = RANKINGS[name]
    draw = torch.Generator().manual_seed(vocabulary + rows)
    states, items = (torch.randint(-2, 3, (count, 5), generator=draw) for count in (rows, vocabulary))
    items[vocabulary // 2 :: 3] = items[0]
    targets = torch.randint(vocabulary, (rows,), generator=draw)
    exclude = torch.randint(-1, vocabulary, (rows, excluded), generator=draw) if excluded else None
    return {"states": states.to(DTYPES[dtype]), "items": items.to(DTYPES[dtype]), "k": k, "targets": targets,
            "exclude": exclude}  # fmt: skip


STREAMS = 3
TEMPERATURE = 0.7


def mixture_case(name: str) -> dict[str, Any]:
    """The case of `ranking_case` for three streams; the gate leaves one of the first row out."""
    case = ranking_case(name)
    draw = torch.Generator().manual_seed(2)
    states, rows = case["states"], len(case["states"])
    others = torch.randint(-2, 3, (rows, STREAMS - 1, states.shape[1]), generator=draw).to(states.dtype)
    weights = torch.randn(rows, STREAMS, generator=draw, dtype=torch.float64)
    weights[:1, 1] = -torch.inf
    case["log_weights"] = weights.log_softmax(dim=1).to(states.dtype)
    case["states"] = torch.cat([states[:, None], others], dim=1)
    return case


def ties_case() -> tuple[Tensor, Tensor, Tensor]:
    """States [6, 67], items [50, 67] and targets: vectors of any numbers, some several times in several processes."""
    draw = torch.Generator().manual_seed(0)
    states, items = torch.randn(6, 67, generator=draw), torch.randn(50, 67, generator=draw)
    items[::7] = items[3]
    return states, items, torch.tensor([3, 7, 14, 49, 20, 0])


def ties(rank: int, processes: int) -> list[tuple[Tensor, Tensor]]:
    """Ranks of single states, and of mixtures of a state and the next row's."""
    states, items, targets = ties_case()
    counts = row_counts(len(states), processes)
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    shard = ItemShard(len(items))
    mixed = torch.stack([states, states.roll(1, dims=0)], dim=1)
    log_weights = torch.tensor([[0.3, 0.7]]).log().repeat(len(states), 1)
    return [
        sharded_target_rank(states[own], shard.local(items), targets[own], shard),
        sharded_target_mixture_rank(mixed[own], log_weights[own], shard.local(items), targets[own], shard),
    ]


def lists_case(processes: int) -> tuple[Tensor, Tensor]:
    """States [40, 32] and items in bfloat16: each process has the same 1,023 vectors, the first one of zeros more."""
    draw = torch.Generator().manual_seed(0)
    states, vectors = torch.randn(40, 32, generator=draw), torch.randn(1024, 32, generator=draw)
    vectors[1023] = 0
    return states.bfloat16(), torch.cat([vectors, *[vectors[:1023]] * (processes - 1)]).bfloat16()


def lists_of_ties(rank: int, processes: int) -> tuple[Tensor, Tensor]:
    """The best of each vector's `processes` items."""
    states, items = lists_case(processes)
    shard = ItemShard(len(items))
    return sharded_top_items(states[rank::processes], shard.local(items), 10 * processes, shard)


def lookup_case(dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """A table [23, 3], ids [9, 4], and a gradient of small integers [9, 4, 3]."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(23, (9, 4), generator=draw)
    ids[:, 0] = 7
    gradient = torch.randint(-4, 5, (9, 4, 3), generator=draw)
    return torch.randn(23, 3, generator=draw).to(DTYPES[dtype]), ids, gradient.to(DTYPES[dtype])


class Traffic:
    """Counts the bytes that this process hands to collective operations; those that it cannot count are taken away."""

    NAMES = ("all_gather", "all_to_all_single", "all_reduce")
    FORBIDDEN = ("all_gather_into_tensor", "all_gather_object", "broadcast", "gather", "reduce", "reduce_scatter",
                 "reduce_scatter_tensor", "scatter", "send", "all_to_all", "all_reduce_coalesced",
                 "broadcast_object_list")  # fmt: skip

    def __init__(self) -> None:
        self.bytes = 0
        for name in self.NAMES:
            setattr(distributed, name, self._counted(getattr(distributed, name), 0 if name == "all_reduce" else 1))
        for name in self.FORBIDDEN:
            setattr(distributed, name, None)  # what is sent by these would not be counted

    def _counted(self, collective: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.bytes += arguments[place].numel() * arguments[place].element_size()
            return collective(*arguments, **options)

        return call

    def of(self, function: Callable[[], Any]) -> tuple[Any, int]:
        before = self.bytes
        return function(), self.bytes - before


def loss_and_gradients(case: LossCase, rank: int, processes: int, traffic: Traffic) -> dict[str, Any]:
    whole = case.whole()
    counts = row_counts(len(whole.tensors["states"]), processes)
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    shard = ItemShard(len(whole.tensors["items"]))
    leaves = {
        name: (shard.local(tensor) if name == "items" else tensor[own]).clone().requires_grad_()
        for name, tensor in whole.tensors.items()
    }
    options = {name: value[own] if isinstance(value, Tensor) else value for name, value in whole.options.items()}
    loss, sent_forward = traffic.of(lambda: LOSSES[case.operator.name](**leaves, shard=shard, **options))
    if loss.ndim:  # the gradient that the harness draws for all rows
        generator = torch.Generator().manual_seed(1)
        cotangent = (torch.randint(-8, 9, (sum(counts),), generator=generator) / 8).to(loss)[own]
    else:
        cotangent = torch.ones_like(loss)
    gradients, sent_backward = traffic.of(lambda: torch.autograd.grad(loss, list(leaves.values()), cotangent))
    found: dict[str, Any] = {f"gradient of {name}": each for name, each in zip(leaves, gradients, strict=True)}
    return found | {"output": loss.detach(), "sent": (sent_forward, sent_backward)}


def allowed_items(vocabulary: int) -> Tensor:
    """A mask of the items that rows may get: none of the first process's, whose mask it must be then."""
    numbers = torch.arange(vocabulary)
    return (numbers % 3 > 0) & (numbers >= (vocabulary + 1) // 2)


def own_mask(shard: ItemShard) -> Tensor | None:
    """The process's part of that; None, all of them, where it is."""
    where = shard.local(allowed_items(shard.items))
    return None if where.all() else where


def rankings(name: str, rank: int, processes: int, traffic: Traffic) -> dict[str, Any]:
    case = ranking_case(name)
    counts = row_counts(len(case["states"]), processes)
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    shard = ItemShard(len(case["items"]))
    states, items, targets = case["states"][own], shard.local(case["items"]), case["targets"][own]
    exclude = None if case["exclude"] is None else case["exclude"][own]
    top, sent_top = traffic.of(lambda: sharded_top_items(states, items, case["k"], shard, exclude=exclude))
    where = own_mask(shard)
    masked, sent_masked = traffic.of(
        lambda: sharded_top_items(states, items, case["k"], shard, exclude=exclude, where=where)
    )
    assert sent_masked == sent_top
    ranks, sent_ranks = traffic.of(lambda: sharded_target_rank(states, items, targets, shard, exclude=exclude))
    return {"top": top, "masked": masked, "ranks": ranks, "sent": (sent_top, sent_ranks)}


def mixture_rankings(name: str, rank: int, processes: int, traffic: Traffic) -> dict[str, Any]:
    case = mixture_case(name)
    counts = row_counts(len(case["states"]), processes)
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    shard = ItemShard(len(case["items"]))
    exclude = None if case["exclude"] is None else case["exclude"][own]
    mixture = case["states"][own], case["log_weights"][own], shard.local(case["items"])
    options = {"temperature": TEMPERATURE, "exclude": exclude}
    top, sent_top = traffic.of(lambda: sharded_top_mixture_items(*mixture, case["k"], shard, **options))
    where = own_mask(shard)
    masked, sent_masked = traffic.of(
        lambda: sharded_top_mixture_items(*mixture, case["k"], shard, where=where, **options)
    )
    assert sent_masked == sent_top
    ranks, sent_ranks = traffic.of(
        lambda: sharded_target_mixture_rank(*mixture, case["targets"][own], shard, **options)
    )
    return {"top": top, "masked": masked, "ranks": ranks, "sent": (sent_top, sent_ranks)}


def lookup(dtype: str, rank: int, processes: int, traffic: Traffic) -> dict[str, Any]:
    table, ids, gradient = lookup_case(dtype)
    counts = row_counts(len(ids), processes)
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    shard = ItemShard(len(table))
    local = shard.local(table).clone().requires_grad_()
    rows, sent_forward = traffic.of(lambda: sharded_lookup(local, ids[own], shard))
    (of_items,), sent_backward = traffic.of(lambda: torch.autograd.grad(rows, local, gradient[own]))
    found = {"rows": rows.detach(), "gradient": of_items, "sent": (sent_forward, sent_backward)}
    rows = sharded_lookup(local, ids[own], shard, sparse=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once in a process PyTorch warns of unchecked sparse tensors
        (of_items,) = torch.autograd.grad(rows, local, gradient[own])
    assert of_items.is_sparse
    return found | {"of sparse": of_items.to_dense(), "named": of_items.coalesce().indices()[0] + shard.first}


def refusals(rank: int) -> dict[str, str]:
    """What each process is told of arguments that are wrong in process 1 alone, or fit no other process's."""
    shard = ItemShard(9)
    states, items, targets = torch.zeros(3, 4), torch.zeros(shard.rows, 4), torch.zeros(3, dtype=torch.int64)
    wrong = rank == 1
    other = ItemShard(9 + wrong)
    calls: dict[str, Callable[[], Any]] = {
        "target": lambda: sharded_linear_cross_entropy(states, items, targets + 9 * wrong, shard),
        "dtype": lambda: sharded_linear_cross_entropy(states.double() if wrong else states, items, targets, shard),
        "rows": lambda: sharded_pairwise_kl(states[None], items[: shard.rows - wrong], shard),
        "temperature": lambda: sharded_pairwise_kl(states[None], items, shard, temperature=-1.0 if wrong else 1.0),
        "k": lambda: sharded_top_items(states, items, 10 if wrong else 2, shard),
        "mask": lambda: sharded_top_items(
            states, items, 2, shard, where=torch.ones(shard.rows + wrong, dtype=torch.bool)
        ),
        "exclude": lambda: sharded_target_rank(states, items, targets, shard, exclude=targets[:, None] + 9 * wrong),
        "ids": lambda: sharded_lookup(items, targets - int(wrong), shard),
        "widths differ": lambda: sharded_top_items(states[:, wrong:], items[:, wrong:], 2, shard),
        "mixtures differ": lambda: sharded_top_mixture_items(
            states[:, None].repeat(1, 2 + wrong, 1), torch.zeros(3, 2 + wrong), items, 2, shard
        ),
        "log_weights": lambda: sharded_target_mixture_rank(
            states[:, None], torch.zeros(3, 1 + wrong), items, targets, shard
        ),
        "lists differ": lambda: sharded_top_items(states, items, 2 + wrong, shard),
        "dtypes differ": lambda: sharded_lookup(items.double() if wrong else items, targets, shard),
        "gradients differ": lambda: sharded_lookup(items, targets, shard, sparse=bool(wrong)),
        "temperatures differ": lambda: sharded_linear_cross_entropy(
            states, items, targets, shard, temperature=0.5 + wrong
        ),
        "reductions differ": lambda: sharded_mixture_cross_entropy(
            states[:, None], states[:, :1], items, targets, shard, reduction="sum" if wrong else "mean"
        ),
        "references differ": lambda: sharded_pairwise_kl(states[None], items, shard, detach_reference=wrong),
        "temperatures of lists differ": lambda: sharded_top_mixture_items(
            states[:, None], states[:, :1], items, 2, shard, temperature=0.5 + wrong
        ),
        "temperatures of ranks differ": lambda: sharded_target_mixture_rank(
            states[:, None], states[:, :1], items, targets, shard, temperature=0.5 + wrong
        ),
        "gradients of losses differ": lambda: sharded_linear_cross_entropy(
            states.clone().requires_grad_(not wrong), items.clone().requires_grad_(), targets, shard
        ),
        "gradients of divergences differ": lambda: sharded_pairwise_kl(
            states[None].clone().requires_grad_(not wrong), items, shard
        ),
        "gradients of rows differ": lambda: sharded_lookup(items.clone().requires_grad_(not wrong), targets, shard),
        "tables differ": lambda: sharded_lookup(torch.zeros(other.rows, 4), targets, other),
        "shard": lambda: sharded_lookup(items, targets, 9),
        "few items": lambda: ItemShard(1),
        "no number": lambda: ItemShard(9.0),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "not refused"
        except (TypeError, ValueError, RuntimeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    loss = sharded_linear_cross_entropy(states.requires_grad_(), items, targets, shard)
    loss.backward(retain_graph=True)
    try:
        loss.backward()
        found["second backward"] = "not refused"
    except RuntimeError as error:
        found["second backward"] = str(error)
    found["second derivatives"] = {name: second_derivative(loss) for name, loss in differentiable(shard).items()}
    outside = distributed.new_group([0])
    try:
        ItemShard(9, outside)
        found["not of the group"] = "not refused"
    except ValueError as error:
        found["not of the group"] = str(error)
    return found


def differentiable(shard: ItemShard) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The losses as functions of states [3, 4] and the process's rows of the table."""
    targets = torch.zeros(3, dtype=torch.int64)
    return {
        "linear_cross_entropy": lambda states, items: sharded_linear_cross_entropy(states, items, targets, shard),
        "mixture_cross_entropy": lambda states, items: sharded_mixture_cross_entropy(
            states[:, None], states[:, :1], items, targets, shard
        ),
        "pairwise_kl": lambda states, items: sharded_pairwise_kl(states[None], items, shard),
    }


def second_derivative(loss: Callable[[Tensor, Tensor], Tensor]) -> str:
    """What is said where a loss is differentiated twice."""
    shard = ItemShard(9)
    states, items = torch.ones(3, 4, requires_grad=True), torch.ones(shard.rows, 4, requires_grad=True)
    gradients = torch.autograd.grad(loss(states, items), (states, items), create_graph=True)
    penalty = sum((gradient.square().sum() for gradient in gradients), torch.zeros(()))
    try:
        (states.sum() + penalty).backward()
        return "left out"
    except RuntimeError as error:
        return str(error)


def _be(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet-{processes}", rank=rank, world_size=processes
    )
    torch.manual_seed(0)
    traffic = Traffic()
    found = {
        "losses": {name: loss_and_gradients(case, rank, processes, traffic) for name, case in LOSS_CASES.items()},
        "rankings": {name: rankings(name, rank, processes, traffic) for name in RANKINGS},
        "mixtures": {name: mixture_rankings(name, rank, processes, traffic) for name in RANKINGS},
        "ties": ties(rank, processes),
        "lists of ties": lists_of_ties(rank, processes),
        "lookups": {dtype: lookup(dtype, rank, processes, traffic) for dtype in DTYPES},
        "refusals": refusals(rank),
    }
    torch.save(found, folder / f"{processes}-{rank}.pt")
    distributed.destroy_process_group()


def main(folder: Path, processes: int) -> int:
    """Start the processes; returns 1 where one of them fails, and ends the others, which would wait for it."""
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_be, args=(rank, processes, folder)) for rank in range(processes)]
    for process in started:
        process.start()
    waiting = list(started)
    while waiting:
        waiting[0].join(0.2)
        if any(process.exitcode for process in started):
            for process in started:
                process.kill()
            return 1
        waiting = [process for process in waiting if process.exitcode is None]
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
