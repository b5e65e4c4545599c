"""The search of launch options, on kernels whose time is a formula of their options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.gpu import launches
from bench.gpu.cases import CASES
from bench.gpu.launches import KERNELS, Choice, neighbours, overridden, search
from bench.records import OURS
from plr_kernels.triton_shared import launch
from tests.bench.test_gpu import CPU, TINY, ProcessorClock

DEVICE = torch.device("cpu")


class FormulaClock(ProcessorClock):
    """Says what the last run said it took."""

    now = 0.0

    def mark(self):
        return self.now


def simulated(clock, cost):
    """A case of top_items that takes `cost(options)` seconds, or fails as it does."""
    case = CASES["top_items"](TINY, CPU, torch.float32)

    def ours(states, items):
        result = cost(launch.score_forward(1, 64, 2, DEVICE), launch.items_gradient(1, 64, 2, DEVICE))
        clock.now += abs(result)
        scores = (states @ items.T).topk(TINY.k).values
        return scores if result > 0 else scores * 2

    return replace(case, implementations={OURS: ours})


def test_the_search_finds_the_best_options_and_restores_the_module():
    def cost(forward, items):
        return (1 + abs(forward["num_warps"] - 2)) * (1 + abs(items["BLOCK_V"] - 16) / 16)

    clock, before = FormulaClock(), (launch.score_forward, launch.items_gradient)
    choices = [Choice("score_forward", {}), Choice("items_gradient", {})]
    lines = []
    gain = search(simulated(clock, cost), choices, clock, lines.append)
    assert [choice.changes for choice in choices] == [{"num_warps": 2}, {"BLOCK_V": 16}]
    assert gain == pytest.approx(cost(choices[0].chosen, choices[1].chosen))
    assert (launch.score_forward, launch.items_gradient) == before
    assert len(lines) == len(set(lines)) > 10  # nothing is tried twice


def test_options_that_fail_or_give_wrong_results_are_named_and_not_taken():
    def cost(forward, items):
        if forward["BLOCK_R"] > 128:
            raise RuntimeError("out of resources")
        faster = forward["num_stages"] > 2
        return -0.5 if faster else 1.0

    clock, lines = FormulaClock(), []
    choices = [Choice("score_forward", {})]
    assert search(simulated(clock, cost), choices, clock, lines.append) == 1.0
    assert choices[0].changes == {}
    assert any("BLOCK_R=256: RuntimeError: out of resources" in line for line in lines)
    assert any("num_stages=3: WrongResultError: off by" in line for line in lines)


def test_a_choice_may_mean_some_calls_only():
    choices = [Choice("stream_attention", {"backward": True}, changes={"num_warps": 2})]
    with overridden(choices):
        forward, backward = (launch.stream_attention(4, 64, 2, DEVICE, backward=value) for value in (False, True))
    assert backward["num_warps"] == 2
    assert forward["num_warps"] == launch.stream_attention(4, 64, 2, DEVICE, backward=False)["num_warps"] != 2


def test_neighbours_stay_in_range():
    options = {"num_warps": 16, "num_stages": 1, "BLOCK_R": 16, "GROUP": 4, "enable_fp_fusion": True}
    assert list(neighbours(options)) == [("num_warps", 8), ("num_stages", 2), ("BLOCK_R", 32)]


@pytest.mark.parametrize("operator", KERNELS)
def test_every_function_named_is_there(operator):
    assert set(KERNELS) == set(CASES) - {"user_states", "training_step"}  # which are more than kernels
    assert all(callable(getattr(launch, name)) for name, _ in KERNELS[operator])


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr("sys.argv", ["launches", "top_items"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU"):
        launches.main()
