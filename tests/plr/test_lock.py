"""One process writes a folder: a second is refused, what a dead one left is taken over."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import pytest

import plr.lock
from plr.errors import RunError
from plr.lock import LOCK, locked, process_is_gone

HOLD = "import sys, pathlib, plr.lock\nwith plr.lock.locked(pathlib.Path(sys.argv[1])):\n print(flush=True)\n input()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(params=["with the system's locks", "without"])
def both(request, monkeypatch):
    if request.param == "without":
        monkeypatch.setattr(plr.lock, "fcntl", None)


def test_a_living_holder_is_named_with_what_to_do(holder, tmp_path, both):
    with (
        pytest.raises(RunError, match=f"process {holder.pid} on host .* is writing here; wait for it, or choose"),
        locked(tmp_path),
    ):
        pass
    assert (tmp_path / LOCK).exists()


def test_what_a_killed_holder_left_is_taken_over_and_removed(holder, tmp_path, both):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_number_that_another_process_has_now_or_had_before_the_machine_began_again(tmp_path, monkeypatch):
    monkeypatch.setattr(plr.lock, "fcntl", None)
    me = json.loads(plr.lock._me())
    for changed in ({"begun": me["begun"] - 5}, {"boot": "another"}, {"pid": "x"}, {"pid": -1}):
        (tmp_path / LOCK).write_text(json.dumps({**me, **changed}))
        with locked(tmp_path):
            pass
    (tmp_path / LOCK).write_text(json.dumps(me))
    with pytest.raises(RunError, match=f"process {os.getpid()} on host"), locked(tmp_path):
        pass


def test_a_machine_whose_name_has_changed_knows_its_own_locks(tmp_path, monkeypatch):
    """As a container's does: the operating system's lock, which this process gets, and the machine's start tell."""
    with locked(tmp_path):
        left = (tmp_path / LOCK).read_text()
    (tmp_path / LOCK).write_text(left)  # as SIGKILL leaves it
    monkeypatch.setattr("socket.gethostname", lambda: "renamed")
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] == "renamed"
    (tmp_path / LOCK).write_text(json.dumps({**json.loads(left), "boot": "another start"}))
    with pytest.raises(RunError, match="cannot be seen from host 'renamed'"), locked(tmp_path):
        pass


def test_of_another_host_nothing_is_known(tmp_path, both):
    (tmp_path / LOCK).write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(RunError, match=rf"process 7 on host 'elsewhere' .*delete {tmp_path / LOCK}"), locked(tmp_path):
        pass
    (tmp_path / LOCK).unlink()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()


def test_a_file_system_without_locks_is_one_with_the_files_content(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(plr.lock.fcntl, "flock", refuse)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(RunError), locked(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_another_has_made_meanwhile_is_left_to_it(tmp_path):
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("another's")
    assert (tmp_path / LOCK).read_text() == "another's"


def _compete(folder, inside, most):
    for _ in range(200):
        try:
            with locked(folder):
                with inside.get_lock():
                    inside.value += 1
                    most.value = max(most.value, inside.value)
                with inside.get_lock():
                    inside.value -= 1
        except RunError:
            continue


def test_of_many_at_once_one_is_inside(tmp_path):
    context = multiprocessing.get_context("fork")
    inside, most = context.Value("i", 0), context.Value("i", 0)
    others = [context.Process(target=_compete, args=(tmp_path, inside, most)) for _ in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join()
        assert process.exitcode == 0
    assert most.value == 1
    assert not list(tmp_path.iterdir())


def test_processes_are_told_from_those_that_had_their_number():
    assert not process_is_gone(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert process_is_gone(ended.pid)
