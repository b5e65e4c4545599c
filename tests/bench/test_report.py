from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from bench import beside, report
from bench.plot import bars
from bench.records import OURS, Case, Report, ResultError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def content():
    """What pytest-benchmark writes, as far as the report reads it."""
    seconds = {
        OURS: {"forward": [0.010, 0.020, 0.010], "backward": [0.030] * 3, "both": [0.040, 0.050, 0.040]},
        "eager": {"forward": [0.030, 0.060, 0.030], "backward": [0.090] * 3, "both": [0.120, 0.150, 0.140]},
        "chunked": {"both": [0.080, 0.080]},  # too slow for a third round
    }
    probes = {
        "a": {"amount": 1e9, "phase": None, "seconds": [0.02, 0.01, 0.04]},  # at best 1e11 a second
        "b": {"amount": 1e9, "phase": None, "seconds": [0.03, 0.03, 0.03]},
    }
    extra = {OURS: {"forward": 2**20, "both": 2**21}, "eager": {"forward": 2**24, "both": 2**25}, "chunked": None}
    return {
        "machine_info": {
            "cpu": {"brand_raw": "A CPU"}, "cpu_capability": "AVX2", "threads": 2, "torch": "2.13",
            "python_version": "3.11", "instruction_set": "avx2", "settings": {"OMP_NUM_THREADS": "2"},
        },
        "commit_info": {"id": "0123456789", "dirty": False},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [
            {
                "fullname": "bench/test_some_loss.py::test_training_step[R5 V7]",
                "param": "R5 V7",
                "extra_info": {
                    "seconds": seconds,
                    "extra_bytes": extra,
                    "limit": {"unit": "flop", "work": {"forward": 5e8, "backward": 1.5e9}, "probes": probes},
                },
            }
        ],
    }  # fmt: skip


@pytest.fixture
def file(content, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    return path


def test_the_table(file, capsys):
    report.main([str(file)])
    machine, _, _, rule, forward, backward, both, _, rates = capsys.readouterr().out.splitlines()
    assert machine == (
        "A CPU, 2 threads, torch 2.13 (AVX2), plr_kernels (avx2), Python 3.11, OMP_NUM_THREADS=2, 2026-01-02, "
        "commit 0123456."
    )
    assert set(rule) == {"|", "-"}
    # The limit's 5e8 operations take 5 ms: 10, 20 and 10 ms are 2, 4 and 2 times that.
    assert forward == "| some_loss | R5 V7 | forward | 10 | eager 3 (3–3) | **3** | 2 (2–3) | 1, 16, – | 3, 3, 0 |"
    assert backward == "| some_loss | R5 V7 | backward | 30 | eager 3 (3–3) | **3** | 2 (2–2) | –, –, – | 3, 3, 0 |"
    # Ratios of the same round: 2 and 1.6 for the two rounds of the peer that is fastest, hence first.
    assert both == (
        "| some_loss | R5 V7 | both | 40 | chunked 1.8 (1.7–1.9); eager 3 (3–3.25) | **1.8** | 2 (2–2.25) "
        "| 2, 32, – | 3, 3, 2 |"
    )
    assert rates == "- some_loss, R5 V7: best rates in 10⁹ flop/s: a 100; b 33.3."


def test_only_the_whole(file, capsys):
    report.main([str(file), "--whole"])
    assert [line.split(" | ")[2] for line in capsys.readouterr().out.splitlines() if " | " in line] == ["pass", "both"]


def test_a_pass_without_limit_memory_or_peers(content):
    benchmark = content["benchmarks"][0]
    benchmark["extra_info"] = {"seconds": {OURS: {"forward": [0.001]}}, "extra_bytes": {OURS: None}}
    (case,) = [Case.of(benchmark)]
    assert case.row("forward") == "| some_loss | R5 V7 | forward | 1 | – | – | – | – | 1 |"


def test_a_limit_of_bytes_is_the_copy_of_its_own_phase(content):
    content["benchmarks"][0]["extra_info"]["limit"] = {
        "unit": "byte",
        "work": {"forward": 1e6, "backward": 2e6},
        "probes": {
            "copy, forward": {"amount": 1e6, "phase": "forward", "seconds": [0.005]},
            "copy, backward": {"amount": 2e6, "phase": "backward", "seconds": [0.015]},
        },
    }
    case = Case.of(content["benchmarks"][0])
    assert [case.ratio_to_limit(phase).median for phase in case.passes] == pytest.approx([2, 2, 2])


def test_peaks_of_whole_processes(content, file, capsys):
    content["benchmarks"][0]["extra_info"]["process_peak_bytes"] = {OURS: 2**30, "eager": 2**32}
    file.write_text(json.dumps(content))
    report.main([str(file)])
    assert capsys.readouterr().out.endswith(f"peak of a whole process: {OURS} 1024 MB, eager 4096 MB.\n")


def test_the_plot(file, tmp_path, capsys):
    report.main([str(file), "--plot", str(tmp_path / "plot.png")])
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_bars_are_relative_to_ours(content):
    drawn = bars(Case.of(content["benchmarks"][0]))
    assert list(drawn) == ["limit", OURS, "eager", "chunked"]
    assert [median for _, median, _ in drawn.values()] == pytest.approx([0.5, 1, 3, 1.8])


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "not JSON"), ("{}", "no 'machine_info'"), ("[]", "not written by"), (None, "cannot be read")],
)
def test_a_file_that_is_no_result_is_named(text, message, tmp_path):
    path = tmp_path / "wrong.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match=message) as stopped:
        report.main([str(path)])
    assert str(path) in str(stopped.value)


def test_a_result_of_other_benchmarks_is_named(content, file):
    del content["benchmarks"][0]["extra_info"]["seconds"][OURS]
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=f"no '{OURS}'"):
        report.main([str(file)])


def test_programs_beside_compute_until_they_are_no_longer_wanted(monkeypatch):
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(beside.subprocess, "Popen", Noted)
    with beside.programs(2):
        assert [program.poll() for program in started] == [None, None]
    assert [program.poll() for program in started] == [-signal.SIGKILL] * 2
    monkeypatch.setattr(beside, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended: 3"), beside.programs(1):
        pass


@pytest.mark.parametrize("arguments", [[], ["--run", "file.json"]])
def test_either_files_or_a_run(arguments, capsys):
    with pytest.raises(SystemExit):
        report.main(arguments)
    assert "give result files, or --run" in capsys.readouterr().err


def test_fewer_than_no_programs_beside(capsys):
    with pytest.raises(SystemExit):
        report.main(["--run", "--beside", "-1"])
    assert "--beside must be 0 or more, not -1" in capsys.readouterr().err


@pytest.mark.parametrize("probes", [{}, {"copy, backward": {"amount": 1, "phase": "backward", "seconds": [1.0]}}])
def test_a_limit_none_of_whose_probes_could_run(content, probes):
    info = content["benchmarks"][0]["extra_info"]
    info["limit"]["probes"] = probes
    info["failed"] = {"the limit's probe oneDNN": "RuntimeError: no such product"}
    case = Case.of(content["benchmarks"][0])
    assert case.ratio_to_limit("forward") is case.ratio_to_limit("both") is None
    assert case.notes()[-1] == "not measured: the limit's probe oneDNN: RuntimeError: no such product"


TESTS = """
import os, signal, time
import torch
from bench.limits import products
from bench.peers import compare, training_step
from bench.records import OURS

def test_training_step(benchmark):
    leaves = torch.ones(4, 3), torch.ones(5, 3)
    implementations = {
        OURS: training_step(lambda a, b: (a @ b.T).sum(), *leaves),
        "peer": training_step(lambda a, b: torch.einsum("rd,vd->", a, b), *leaves),
    }
    compare(benchmark, implementations, 2, products(4, 5, 3))
"""
FAILS = """
def test_that_fails(benchmark):
    raise RuntimeError("no such product")
"""
INTERRUPTED = """
def test_that_is_interrupted(benchmark):
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
"""
TERMINATED = """
def test_that_is_terminated(benchmark):
    os.kill(os.getpid(), signal.SIGTERM)
"""
ABORTS = """
import pytest

@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_that_aborts(benchmark, number):
    os.kill(os.getpid(), number)
"""


@pytest.fixture
def tests(tmp_path):
    """Writes a folder of benchmarks, in which the record of the real ones is made, and returns it."""

    def write(text):
        folder = tmp_path / "tests"
        folder.mkdir()
        (folder / "conftest.py").write_text("from bench.conftest import *\n")
        (folder / "test_some.py").write_text(text)
        return folder

    return write


def test_a_real_run(tests, tmp_path, capfd):
    target = tmp_path / "results" / "some.json"
    report.main(["--run", "--tests", str(tests(TESTS)), "--out", str(target), "--beside", "1"])
    printed = capfd.readouterr().out  # pytest's own output goes to stderr
    assert printed.count("| some |") == 3
    assert " threads, other programs that compute beside it: 1, torch" in printed
    (case,) = Report.read(target).cases
    assert all(len(rounds) == 2 for phases in case.seconds.values() for rounds in phases.values())
    machine = json.loads(target.read_text())["machine_info"]
    assert set(machine) >= {"torch", "threads", "cpu", "cpu_capability", "instruction_set", "settings"}
    assert "node" not in machine
    assert [path.name for path in target.parent.iterdir()] == ["some.json"]


def test_a_case_that_fails_is_named_and_takes_no_other_along(tests, tmp_path, capfd):
    folder = tests(FAILS + TESTS)
    (folder / "test_wrong.py").write_text("import no_such_module\n")
    target = tmp_path / "some.json"
    target.write_text("former")
    with pytest.raises(SystemExit, match=r"not measured: .*test_that_fails"):
        report.main(["--run", "--tests", str(folder), "--out", str(target)])
    found = Report.read(target)
    assert [case.operator for case in found.cases] == ["some"]
    (failing, message), (wrong, missing) = found.failed.items()
    assert wrong.endswith("test_wrong.py")
    assert "no_such_module" in missing
    assert failing.endswith("test_some.py::test_that_fails")
    assert message == "RuntimeError: no such product"
    assert f"- {failing}: not measured: {message}.\n" in capfd.readouterr().out


IGNORES_INTERRUPTS = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="SIGINT is ignored here, and by the processes begun here"
)


@pytest.mark.parametrize(
    ("ends", "status"), [(TERMINATED, "-15"), pytest.param(INTERRUPTED, "130", marks=IGNORES_INTERRUPTS)]
)
def test_a_run_that_is_ended_leaves_what_it_measured_and_the_former_result(tests, tmp_path, ends, status):
    target = tmp_path / "some.json"
    target.write_text("former")
    message = rf"status {status}: .*some\.json was not written; .* is in .*some\.partial\.json"
    with pytest.raises(ResultError, match=message):
        report.measure(target, tests(TESTS + ends))
    assert target.read_text() == "former"
    assert len(Report.read(tmp_path / "some.partial.json").cases) == 1


def test_a_case_that_ends_its_process_is_named_and_takes_no_other_along(tests, tmp_path):
    """Two of them, between others of the same file, and a file that ends it already when it is collected."""
    folder = tests(TESTS + ABORTS + TESTS.replace("test_training_step", "test_behind"))
    (folder / "test_another.py").write_text(TESTS)
    (folder / "test_not_collected.py").write_text("import os\nos.abort()\n")
    target = tmp_path / "some.json"
    report.measure(target, folder)
    found = Report.read(target)
    assert [case.operator for case in found.cases] == ["another", "some", "some"]
    assert "under_way" not in json.loads(target.read_text())
    assert {name.rpartition("/")[2]: message for name, message in found.failed.items()} == {
        "test_some.py::test_that_aborts[6]": "the process ended with signal SIGABRT",
        "test_some.py::test_that_aborts[9]": "the process ended with signal SIGKILL",
        "test_not_collected.py": "the process ended with signal SIGABRT",
    }


def test_compiled_code_of_other_runs_is_not_used(tests, tmp_path, monkeypatch):
    """Such code of another number of threads aborts."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "former"))
    noting = f"open({str(tmp_path / 'found')!r}, 'w').write(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    report.measure(tmp_path / "some.json", tests(TESTS.replace("    leaves =", f"    {noting}\n    leaves =")))
    found = (tmp_path / "found").read_text()
    assert found != str(tmp_path / "former")
    assert not Path(found).exists()


def test_a_run_that_measured_nothing_leaves_the_former_result(tests, tmp_path):
    target = tmp_path / "some.json"
    target.write_text("former")
    with pytest.raises(ResultError, match=r"(?s)nothing was measured: .* was not written\n.*no such product"):
        report.measure(target, tests(FAILS))
    assert target.read_text() == "former"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.json", "tests"]
