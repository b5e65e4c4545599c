"""bench.gpu without a GPU: its cases at small sizes, its clockwork with the processor's clock, its result file."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import __main__ as program
from bench.gpu import parity, timing
from bench.gpu.cases import CASES, Sizes
from bench.records import OURS, Report

TINY = Sizes(batch=6, streams=3, suffix=2, prefix=5, heads=2, dim=32, items=40, candidates=20, k=4)
CPU = torch.device("cpu")


class ProcessorClock:
    def flush(self):
        pass

    def mark(self):
        return time.perf_counter()

    def seconds(self, start, stop):
        return stop - start

    def peak(self, run):
        run()
        return 1_000_000

    def captured(self, run):
        return run


@pytest.fixture
def eager(monkeypatch):
    """Nothing is compiled: what is tested here is not the compiler."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("operator", CASES)
def test_every_implementation_computes_the_same(operator):
    torch.manual_seed(0)
    case = CASES[operator](TINY, CPU, torch.float32)
    entry = timing.compare(case, ProcessorClock(), rounds=3)
    info = entry["extra_info"]
    # FlexAttention has no backward pass on processors.
    flex = {name for name in case.implementations if name.startswith("FlexAttention")}
    assert set(info["failed"]) == flex
    assert set(info["errors"]) == set(case.implementations) - flex
    assert max(info["errors"].values()) < 1e-4
    phases = ["forward", "backward", "both"] if case.backward else ["forward"]
    assert list(info["seconds"][OURS]) == [*(["captured"] if case.capture else []), *phases]
    assert all(len(values) == 3 for values in info["seconds"][OURS].values())
    assert entry["fullname"].startswith(operator)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("operator", ["stream_attention", "stream_attention_positions", "pairwise_kl"])
def test_flex_attention_computes_the_same_forward(operator):
    torch.manual_seed(0)
    case = CASES[operator](TINY, CPU, torch.float32)
    case = replace(case, leaves=tuple(leaf.detach() for leaf in case.leaves), backward=False)
    info = timing.compare(case, ProcessorClock(), rounds=1)["extra_info"]
    assert not info["failed"]
    assert len(info["errors"]) == len(case.implementations)
    assert max(info["errors"].values()) < 1e-4


def test_half_precision_is_compared_with_float32():
    torch.manual_seed(0)
    case = CASES["info_nce"](TINY, CPU, torch.bfloat16)
    exact = timing.exact_results(case)
    assert [tensor.dtype for tensor in exact] == [torch.float32] * 3
    ours = timing.backward(case, timing.forward(case, OURS))
    assert 0 < timing.error(ours, exact) < case.allowed_error


def test_exact_results_have_exact_products_whatever_is_set():
    seen = []
    case = CASES["top_items"](TINY, CPU, torch.float32)
    case = replace(case, formula=lambda *leaves: seen.append(torch.get_float32_matmul_precision()) or leaves[0])
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        timing.exact_results(case)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"]


def test_a_wrong_result_of_ours_is_not_timed():
    case = CASES["top_items"](TINY, CPU, torch.float32)
    off = {OURS: lambda states, items: 1.001 * (states @ items.T).topk(TINY.k).values}
    case = replace(case, implementations=case.implementations | off)
    with pytest.raises(timing.WrongResultError, match=r"off by 0\.001 "):
        timing.compare(case, ProcessorClock(), rounds=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_results_that_are_not_finite_are_wrong(bad):
    assert not timing.error([torch.tensor([1.0, bad])], [torch.tensor([1.0, 2.0])]) <= 1.0


@pytest.mark.usefixtures("eager")
def test_a_peer_that_fails_is_named_and_left_out(monkeypatch):
    case = CASES["top_items"](TINY, CPU, torch.float32)

    def fails(states, items):
        raise torch.OutOfMemoryError("no room\nat all")

    monkeypatch.setitem(case.implementations, "eager (h @ E.T).topk(k)", fails)
    info = timing.compare(case, ProcessorClock(), rounds=2)["extra_info"]
    assert info["failed"] == {"eager (h @ E.T).topk(k)": "OutOfMemoryError: no room"}
    assert set(info["seconds"]) == {OURS, "the same under torch.compile"}


def test_slow_peers_take_part_in_few_rounds(monkeypatch):
    case = CASES["top_items"](TINY, CPU, torch.float32)
    case = replace(case, implementations={OURS: case.implementations[OURS], "slow": case.formula}, limit=None)
    monkeypatch.setattr(timing, "forward", lambda case, name: name)
    monkeypatch.setattr(timing, "backward", lambda case, output: [])

    class Counted(ProcessorClock):
        now = 0.0

        def mark(self):
            return self.now

    clock = Counted()
    monkeypatch.setattr(
        timing, "forward", lambda case, name: setattr(clock, "now", clock.now + (50 if name == "slow" else 1))
    )
    seconds = timing.in_turns(case, ["slow", OURS], clock, rounds=8)
    assert seconds["slow"]["forward"] == [50.0] * timing.SLOW_ROUNDS
    assert seconds[OURS]["forward"] == [1.0] * 8


class Properties:
    name, major, minor, total_memory, multi_processor_count = "A Chip 80GB", 9, 0, 80 * 2**30, 132


@pytest.fixture
def chip(monkeypatch, tmp_path):
    """The program on a GPU that is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # What optimisers ask: a PyTorch built with CUDA would look for a driver.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: Properties.name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    monkeypatch.setattr(program, "CudaClock", ProcessorClock)
    monkeypatch.setattr(program, "build", lambda operator, sizes, dtype: CASES[operator](TINY, CPU, torch.float32))
    monkeypatch.setattr(program, "BACKEND", "auto")
    return tmp_path


@pytest.mark.usefixtures("eager")
def test_the_program_writes_what_the_report_reads(chip, monkeypatch, capsys):
    verdicts = {name: parity.Verdict(name != "info_nce", "1 passed", []) for name in ("top_items", "info_nce")}
    monkeypatch.setattr(parity, "check", lambda operators: verdicts)
    with pytest.raises(SystemExit, match="failed: info_nce"):
        program.main(["--only", "top_items", "info_nce", "--rounds", "2"])
    (path,) = chip.glob("gpu-a-chip-80gb-*.json")
    content = json.loads(path.read_text())
    assert [entry["fullname"].split("::")[0] for entry in content["benchmarks"]] == ["top_items"]
    assert content["parity"]["info_nce"] == {"ok": False, "summary": "1 passed", "failed": []}
    table = path.with_suffix(".md").read_text()
    assert table.startswith("A Chip 80GB (sm_90), Triton ")
    assert "| top_items | R6 V40 D32 k4 float32 | captured |" in table
    assert table in capsys.readouterr().out
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    (case,) = Report.read(path).cases
    assert case.ratio_to_limit("captured") is not None


@pytest.mark.parametrize(("ok", "timed"), [(True, ["training_step"]), (False, [])])
@pytest.mark.usefixtures("eager")
def test_a_whole_step_needs_every_operator(chip, monkeypatch, ok, timed):
    asked = []

    def check(operators):
        asked.extend(operators)
        return {name: parity.Verdict(ok or name != "pairwise_kl", "", []) for name in operators}

    monkeypatch.setattr(parity, "check", check)
    with nullcontext() if ok else pytest.raises(SystemExit, match="failed: pairwise_kl"):
        program.main(["--only", "training_step", "--rounds", "1"])
    assert asked == list(parity.OPERATORS)
    (path,) = chip.glob("*.json")
    assert [entry["fullname"].split("::")[0] for entry in json.loads(path.read_text())["benchmarks"]] == timed


@pytest.mark.usefixtures("eager")
def test_one_case_that_breaks_does_not_take_the_others_along(chip, monkeypatch):
    def build(operator, sizes, dtype):
        if operator == "info_nce":
            raise RuntimeError("broken")
        return CASES[operator](TINY, CPU, torch.float32)

    monkeypatch.setattr(program, "build", build)
    with pytest.raises(SystemExit, match="failed: info_nce, bfloat16: RuntimeError: broken"):
        program.main(["--only", "info_nce", "top_items", "--rounds", "2", "--skip-parity"])
    (path,) = chip.glob("*.json")
    assert len(json.loads(path.read_text())["benchmarks"]) == 1


@pytest.mark.usefixtures("eager")
def test_memory_that_cannot_be_cleared_takes_no_result_along(chip, monkeypatch, capsys):
    def fails():
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", fails)
    program.main(["--only", "info_nce", "top_items", "--rounds", "2", "--skip-parity"])
    (path,) = chip.glob("*.json")
    assert len(json.loads(path.read_text())["benchmarks"]) == 2
    assert "not cleared: RuntimeError: captures_underway" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU"):
        program.main([])


def test_parity_runs_every_selection_and_reads_its_verdict(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('name', ['info_nce-triton-cuda', 'top_items-triton-cuda', 'top_items-cpp'])\n"
        "def test_parity(name):\n    assert name != 'top_items-triton-cuda'\n"
        "def test_registration():\n    pass\n"
    )
    verdicts = parity.check(("info_nce", "top_items", "pairwise_kl"), str(tmp_path))
    assert {name: verdict.ok for name, verdict in verdicts.items()} == {
        "info_nce": True, "top_items": False, "pairwise_kl": False, "registration and all else": True
    }  # fmt: skip
    assert verdicts["top_items"].failed[0].endswith("test_parity[top_items-triton-cuda]")
    assert "1 passed" in verdicts["info_nce"].summary
    assert "deselected" in verdicts["pairwise_kl"].summary  # no test at all


@pytest.mark.usefixtures("eager")
def test_what_breaks_the_gpu_for_a_process_stops_no_other_operator(chip, monkeypatch):
    """After an illegal access every call fails: the operators that follow are timed by another process."""
    broken, continued = [], []
    build = program.build

    def break_at_info_nce(operator, sizes, dtype):
        if operator == "info_nce":
            broken.append(operator)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return build(operator, sizes, dtype)

    def synchronize():
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def run(command, **_):
        broken.clear()
        continued.append(command[3:])
        with pytest.raises(SystemExit, match=r"^failed: top_mixture_items$"):
            program.main(command[3:])
        return SimpleNamespace(returncode=1)

    verdicts = {name: parity.Verdict(name != "top_mixture_items", "", []) for name in ("info_nce", "top_mixture_items")}
    monkeypatch.setattr(parity, "check", lambda operators: verdicts)
    monkeypatch.setattr(program, "build", break_at_info_nce)
    monkeypatch.setattr(program, "commit", dict)
    monkeypatch.setattr(program.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(SystemExit, match=r"failed: .*info_nce, bfloat16: RuntimeError: CUDA error.*; more"):
        program.main(["--only", "target_rank", "info_nce", "top_items", "top_mixture_items", "--rounds", "1"])
    (path,) = chip.glob("*.json")
    content = json.loads(path.read_text())
    assert [entry["fullname"].split("::")[0] for entry in content["benchmarks"]] == ["target_rank", "top_items"]
    assert {name: verdict["ok"] for name, verdict in content["parity"].items()} == {
        "info_nce": True,
        "top_mixture_items": False,
    }
    assert [command[1:3] for command in continued] == [["top_items", "top_mixture_items"]]
