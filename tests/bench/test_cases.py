"""Every benchmark runs, at its tiny shape: on this CPU, and as on one that has AVX2 and no more."""

from __future__ import annotations

import json
import re

import pytest
import torch

from bench import report
from bench.records import OURS, Report

BENCHMARKS = "".join(path.read_text(encoding="utf-8") for path in report.HERE.glob("test_*.py"))
AVX2 = {
    "PLR_KERNELS_INSTRUCTION_SET": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
CAPABILITY = torch.backends.cpu.get_cpu_capability()
# Where AVX2 is the most there is, both would be the same.
ENVIRONMENTS = {"AVX2": [AVX2], "AVX512": [{}, AVX2]}.get(CAPABILITY, [{}])


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: "AVX2" if environment else "as it is")
def test_all_run_and_only_a_probe_may_not(environment, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # nothing is compiled: what is tested here is not the compiler
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    target = tmp_path / "tiny.json"
    # All in one process: that each file has its own where they are measured is test_report.py's.
    assert report._measure_file(report.HERE, target, str(tmp_path / "cache"), "tiny", 1) == 0
    found, machine = Report.read(target), json.loads(target.read_text())["machine_info"]
    assert not found.failed
    print(report.table(found, whole=False))
    assert len(found.cases) == len(re.findall(r"^def test_", BENCHMARKS, re.MULTILINE))  # each has one such shape
    printed = capfd.readouterr().out
    for case in found.cases:
        for name, message in case.failed.items():
            assert name.startswith("the limit's probe"), (name, message)
            assert f"{case.operator}, {case.shape}: not measured: {name}: {message}.\n" in printed
        assert all(len(rounds) == 1 for rounds in case.seconds[OURS].values())
        assert len(case.peers) >= 1
        assert case.limit is None or case.ratio_to_limit(case.passes[-1]) is not None
    assert {name: machine["settings"].get(name) for name in environment} == environment
    if environment:
        assert (machine["cpu_capability"], machine["instruction_set"]) == ("AVX2", "avx2")
