"""Processes that wait for others in C++, where Python hears of nothing: they end all the same, and say why."""

import multiprocessing
import os
import select
import signal
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import subprocess_script
from torch.distributed import TCPStore

from plr.errors import TERMINATED, RunError
from plr.signals import deferred, terminable
from plr.training import watch

FORK = multiprocessing.get_context("fork")
SECONDS = 15.0  # what ends does so after 3; what does not, after 60


def meet():
    """Wait where processes meet, as long as another one does not come."""
    TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=True)


def status_of(process):
    process.join(SECONDS)
    try:
        return process.exitcode
    finally:
        process.kill()
        process.join()


def started(command, monkeypatch):
    """Lightning's launcher of two processes, the other one with this command, as a run has it watched."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"})
    monkeypatch.setattr(subprocess_script, "_basic_subprocess_cmd", lambda: command)
    launcher = subprocess_script._SubprocessScriptLauncher(LightningEnvironment(), 2, 1)
    watch.keep_children(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
    return launcher


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGTERM, "plr: terminated; repeat"), (signal.SIGINT, "plr: interrupted; repeat")]
)
def test_a_process_that_waits_for_another_ends_on_a_signal(number, said, capfd):
    begun = FORK.Event()

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        with terminable(), watch.watched(2):
            begun.set()
            meet()

    process = FORK.Process(target=work)
    process.start()
    assert begun.wait(SECONDS)
    time.sleep(1)  # until it is where it waits
    os.kill(process.pid, number)
    assert status_of(process) == 128 + number
    assert said in capfd.readouterr().err


def test_a_signal_that_python_has_heard_of_is_left_to_it():
    begun, result = FORK.Event(), FORK.Queue()

    def work():
        with terminable(), watch.watched(2), deferred():
            begun.set()
            # Longer than the patience, as the writing of a large checkpoint.
            signal.sigtimedwait([signal.SIGUSR1], watch._PATIENCE + 1.5)
            result.put("written")

    process = FORK.Process(target=work)
    process.start()
    assert begun.wait(SECONDS)
    os.kill(process.pid, signal.SIGTERM)
    assert status_of(process) == TERMINATED
    assert result.get(timeout=SECONDS) == "written"


def test_a_process_ends_when_the_first_is_killed():
    """Before they have met; after that the connection tells."""
    there, held = os.pipe()  # the end of what is read comes when the last process is gone that can write

    def other():
        os.environ["LOCAL_RANK"] = "1"
        with watch.watched(2):
            os.write(held, b"1")
            meet()

    def first():
        os.environ[watch._LEADER] = str(os.getpid())
        FORK.Process(target=other).start()
        signal.pause()

    process = FORK.Process(target=first)
    process.start()
    os.close(held)
    assert os.read(there, 1) == b"1"
    process.kill()
    assert select.select([there], [], [], SECONDS)[0]
    assert os.read(there, 1) == b""
    os.close(there)


def test_the_first_process_says_that_another_has_failed_before_they_met(monkeypatch, capfd):
    def work():
        launcher = started([sys.executable, "-c", "import sys; sys.exit(3)"], monkeypatch)
        with watch.watched(2):
            launcher.launch(meet)

    process = FORK.Process(target=work)
    process.start()
    assert status_of(process) == 3
    assert "plr: another process of the run has ended with status 3, as it says above" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("status", "ours", "advice"), [(3, 3, "above"), (1, 2, "above; repeat the command to resume after .* epoch")]
)
def test_what_a_failed_collective_operation_raises_names_the_process_that_failed(status, ours, advice, monkeypatch):
    launcher = started([sys.executable, "-c", f"import sys; sys.exit({status})"], monkeypatch)

    def closed():
        raise RuntimeError("Connection closed by peer")

    told = f"another process of the run has ended with status {status}, as it says {advice}$"
    with pytest.raises(RunError, match=told) as raised, watch.watched(2):
        launcher.launch(closed)
    assert raised.value.status == ours  # NaN in one process alone is what NaN is to who started the run


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_a_process_that_fails_ends_those_that_it_has_started(error, monkeypatch):
    launcher = started([sys.executable, "-c", "import time; time.sleep(60)"], monkeypatch)
    found = []

    def fail():
        found.extend(watch._children)
        raise error

    with pytest.raises(type(error)), watch.watched(2):
        launcher.launch(fail)
    assert [process.poll() for process in found] == [-signal.SIGTERM]
    assert watch._children == []
    assert launcher.procs == []  # Lightning's observer has none to observe
