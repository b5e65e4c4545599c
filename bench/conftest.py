"""Records what the benchmarks measure: after every case, whether or not others fail."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.beside import programs
from bench.failures import failure
from bench.records import ROUND_DIGITS, write_record

# Environment variables that change what runs, or how fast.
SETTINGS = (
    "PLR_KERNELS_INSTRUCTION_SET", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS", "OMP_NUM_THREADS", "GLIBC_TUNABLES", "LD_PRELOAD", "TORCHDYNAMO_DISABLE",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FILE", help="write what was measured, after every benchmark")
    parser.addoption("--add", action="store_true", help="with --record: to what the file holds already")
    parser.addoption("--rounds", type=int, metavar="N", help="no more rounds than these, to try the benchmarks")
    parser.addoption("--beside", type=int, default=0, metavar="N", help="beside N other programs that compute")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: a shape of the paper's size; -m 'not large' leaves them out")
    config.addinivalue_line("markers", "tiny: a shape that only shows that everything runs")
    if (target := config.getoption("--record")) is not None:
        config.pluginmanager.register(Recorder(config, target), "recorder")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    most = config.getoption("--rounds")
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if most is not None and "rounds" in params:
            params["rounds"] = min(params["rounds"], most)


@pytest.fixture(autouse=True, scope="session")
def _beside_other_programs(pytestconfig: pytest.Config) -> Iterator[None]:
    with programs(pytestconfig.getoption("--beside")):
        yield


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add what the figures depend on, and leave out the machine's name and its CPU's two hundred flags."""
    for name in ("node", "release"):
        machine_info.pop(name, None)
    machine_info["cpu"].pop("flags", None)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["instruction_set"] = instruction_set()
    machine_info["settings"] = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    machine_info["beside"] = config.getoption("--beside")
    machine_info["libc"] = " ".join(platform.libc_ver())


def instruction_set() -> str:
    """The one that the C++ kernels run with."""
    try:
        from plr_kernels import extension
    except ImportError:
        return "not built"
    return extension.instruction_set()


class Recorder:
    """Writes the result file of `--record`: the benchmarks that were measured and {fullname: message} of the others.

    While one runs it stands under "under_way": there it is found if it ends the process.
    """

    def __init__(self, config: pytest.Config, target: Path) -> None:
        machine = config.hook.pytest_benchmark_generate_machine_info(config=config)
        config.hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine)
        self.target = target
        self.content: dict[str, Any] = {
            "machine_info": machine,
            "commit_info": config.hook.pytest_benchmark_generate_commit_info(config=config),
            "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "failed": {},
            "benchmarks": [],
        }
        if config.getoption("--add") and target.exists():
            self.content |= json.loads(target.read_text(encoding="utf-8"))
        self.pytest_runtest_logfinish()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.content["failed"][report.nodeid] = str(report.longrepr).strip().splitlines()[-1]
            write_record(self.target, self.content, ROUND_DIGITS)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.content["under_way"] = nodeid
        write_record(self.target, self.content, ROUND_DIGITS)

    def pytest_runtest_logfinish(self) -> None:
        self.content.pop("under_way", None)
        write_record(self.target, self.content, ROUND_DIGITS)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        try:
            outcome = yield
        except Exception as error:
            self.content["failed"][item.nodeid] = failure(error)
            raise
        else:
            benchmark = getattr(item, "funcargs", {}).get("benchmark")
            if benchmark is not None and "seconds" in benchmark.extra_info:
                entry = {"fullname": item.nodeid, "param": benchmark.param, "extra_info": benchmark.extra_info}
                self.content["benchmarks"].append(entry)
            return outcome
