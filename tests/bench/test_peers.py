from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.limits import Limit, Probe, copies, products, reads
from bench.peers import Step, compare, training_step
from bench.records import OURS
from plr_kernels import info_nce, linear_cross_entropy, pairwise_kl


class Benchmark:
    """As much of pytest-benchmark's fixture as `compare` uses."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, target, args, setup, rounds):
        for _ in range(rounds):
            setup()
            target(*args)


def square_sum(tensor):
    return (tensor**2).sum()


def test_a_step_returns_the_loss_and_all_gradients_and_times_its_phases():
    leaves = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    step = training_step(lambda a, b: (a * b).sum(), *leaves)
    loss, first, second = step()
    assert loss == 11
    assert torch.equal(first, leaves[1])
    assert torch.equal(second, leaves[0])
    assert list(step.seconds) == ["forward", "backward", "both"]
    assert step.seconds["both"] == pytest.approx(step.seconds["forward"] + step.seconds["backward"])


def test_an_undivided_step_has_no_phases():
    step = training_step(square_sum, torch.ones(3), divided=False)
    assert torch.equal(step()[1], torch.full((3,), 2.0))
    assert list(step.seconds) == ["both"]


def test_implementations_take_turns():
    turns = []

    def run(name):
        return lambda: turns.append(name) or [torch.ones(1)]

    benchmark = Benchmark()
    compare(benchmark, {OURS: run("ours"), "a": run("a"), "b": run("b")}, rounds=3)
    assert turns[3:12] == ["a", "b", "ours"] * 3
    assert {name: len(phases["forward"]) for name, phases in benchmark.extra_info["seconds"].items()} == {
        OURS: 3, "a": 3, "b": 3,
    }  # fmt: skip


def test_a_slow_peer_has_two_rounds(monkeypatch):
    monkeypatch.setattr("bench.limits.TIME_BUDGET", 0.0)
    benchmark = Benchmark()
    compare(benchmark, {OURS: lambda: [torch.ones(1)], "slow": lambda: [torch.ones(1)]}, rounds=4)
    assert len(benchmark.extra_info["seconds"][OURS]["forward"]) == 4
    assert len(benchmark.extra_info["seconds"]["slow"]["forward"]) == 2


def test_disagreement_is_an_error_unless_the_peer_is_unchecked():
    implementations = {OURS: lambda: [torch.ones(1)], "wrong": lambda: [torch.full((1,), 1.001)]}
    with pytest.raises(AssertionError, match=r"wrong disagrees by 0\.001"):
        compare(Benchmark(), implementations, rounds=1)
    compare(Benchmark(), implementations, rounds=1, unchecked=frozenset({"wrong"}))


def fails():
    raise RuntimeError("no such product\non this chip")


def test_a_peer_that_cannot_run_is_named_and_left_out():
    benchmark = Benchmark()
    compare(benchmark, {OURS: lambda: [torch.ones(1)], "broken": fails, "b": lambda: [torch.ones(1)]}, rounds=2)
    assert benchmark.extra_info["failed"] == {"broken": "RuntimeError: no such product"}
    assert list(benchmark.extra_info["seconds"]) == list(benchmark.extra_info["extra_bytes"]) == [OURS, "b"]


def test_a_peer_that_fails_later_keeps_its_rounds():
    calls = iter([[torch.ones(1)]] * 3)  # to warm up, and two rounds
    benchmark = Benchmark()
    compare(benchmark, {OURS: lambda: [torch.ones(1)], "breaks": lambda: next(calls)}, rounds=5)
    assert benchmark.extra_info["failed"] == {"breaks": "StopIteration: "}
    assert len(benchmark.extra_info["seconds"]["breaks"]["forward"]) == 2
    assert benchmark.extra_info["extra_bytes"]["breaks"] is None


def test_ours_must_run():
    with pytest.raises(RuntimeError, match="no such product"):
        compare(Benchmark(), {OURS: fails, "a": lambda: [torch.ones(1)]}, rounds=1)


def test_a_probe_that_cannot_run_is_named_and_left_out():
    limit = Limit("flop", {"forward": 1}, {"broken": Probe(1, fails), "a": Probe(1, lambda: None)})
    benchmark = Benchmark()
    compare(benchmark, {OURS: lambda: [torch.ones(1)]}, rounds=3, limit=limit)
    assert benchmark.extra_info["failed"] == {"the limit's probe broken": "RuntimeError: no such product"}
    assert list(benchmark.extra_info["limit"]["probes"]) == ["a"]
    assert len(benchmark.extra_info["limit"]["probes"]["a"]["seconds"]) == 3


def test_a_slow_probe_has_two_rounds(monkeypatch):
    limit = Limit("flop", {"forward": 1}, {"slow": Probe(1, lambda: None)})
    for _ in range(4):
        limit.measure(lambda run: 11.0)
    assert limit.probes["slow"].seconds == [11.0] * 2


def test_half_precision_may_differ_by_its_rounding():
    exact = torch.tensor([1.0, 0.7])
    compare(Benchmark(), {OURS: lambda: [exact.bfloat16()], "exact": lambda: [exact]}, rounds=1)


def test_extra_memory_counts_what_a_phase_needs_but_not_the_result():
    def forward(_):
        return [torch.ones(2**20 * 8) for _ in range(3)]  # 96 MB

    def backward(tensors):
        return [tensors[0]]

    benchmark = Benchmark()
    compare(benchmark, {OURS: Step("both", {"forward": forward, "backward": backward})}, rounds=1)
    extra = benchmark.extra_info["extra_bytes"][OURS]
    if extra is None:
        pytest.skip("the system does not tell the peak")
    assert extra["forward"] == pytest.approx(96 * 2**20, rel=0.1)
    assert extra["both"] == pytest.approx(64 * 2**20, rel=0.1)


@pytest.mark.parametrize(
    ("operator", "shapes", "limit"),
    [
        (pairwise_kl, [(3, 2, 4), (20, 4)], products(6, 20, 4, both=3)),
        (lambda *both: linear_cross_entropy(*both, torch.arange(6)), [(6, 4), (20, 4)], products(6, 20, 4, both=3)),
        (info_nce, [(3, 6, 4), (3, 6, 4)], products(6, 6, 4, groups=3)),
    ],
    ids=["pairwise_kl", "linear_cross_entropy", "info_nce"],
)
def test_the_limit_counts_the_operations_that_the_operator_declares(operator, shapes, limit):
    step = training_step(operator, *map(torch.randn, shapes), backend="cpp")
    outcome, counted = None, {}
    for name, phase in step.phases.items():
        with FlopCounterMode(display=False) as counter:
            outcome = phase(outcome)
        counted[name] = counter.get_total_flops()
    assert limit.work == ({"both": sum(counted.values())} if "both" in limit.work else counted)


def test_limits_measure_all_probes_and_say_what_they_did():
    for limit in (reads(forward=4096), products(8, 8, 8, backward=0), copies(forward=4096, backward=8192)):
        limit.measure()
        limit.measure()
        record = limit.record()
        assert all(len(probe["seconds"]) == 2 for probe in record["probes"].values())
    assert record["work"] == {"forward": 4096, "backward": 8192}
    assert [probe["amount"] for probe in record["probes"].values()] == [4096, 8192]
    assert products(8, 8, 8, backward=0).work == {"forward": 1024}
    reading = reads(forward=4096)
    assert (reading.unit, reading.work) == ("byte", {"forward": 4096})
    assert {probe.amount for probe in reading.probes.values()} == {4096}
