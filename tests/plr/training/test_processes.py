"""Processes that would each train the whole run, or that cannot be started, are refused first."""

import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from plr.config import Config
from plr.errors import RunError
from plr.lock import locked
from plr.training import machines, train


@pytest.mark.parametrize(
    ("variables", "devices", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, 1, "one of 2 processes .*plr train --devices 2"),
        ({"WORLD_SIZE": "4"}, 2, "one of 4 processes .* has --devices 2"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, 4, "several machines"),
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0"}, 1, "such as srun has started .*plr train --devices 3"),
        ({"SLURM_STEP_NUM_TASKS": "3"}, 3, "such as srun"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 1, "such as mpirun"),
    ],
)
def test_a_launchers_processes_are_refused(variables, devices, message, quick, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=message):
        train(Config(**quick, devices=devices))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_a_rank_that_no_launcher_gave_is_refused(variable, devices, quick, tmp_path, monkeypatch):
    """Such a process would train the whole run and write nothing."""
    monkeypatch.setenv(variable, "1")
    with pytest.raises(RunError, match=rf"{variable}=1 says that this process is not .*--devices {devices}\)"):
        train(Config(**{**quick, "devices": devices}))
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(variable, "0")
    if devices == 1:
        assert train(Config(**{**quick, "epochs": 1}))["test"]["rows"] == 60


TWICE = """
import time
from plr.config import Config
from plr.training import train, trainer

def slowly(*arguments, finish=trainer._finish):  # as the weights of a large model are hashed
    time.sleep(4)
    return finish(*arguments)

trainer._finish = slowly
train(Config(**OPTIONS, out="one"))
train(Config(**OPTIONS, out="two", from_run="one"))
"""


def test_a_program_may_train_twice_on_several_devices(quick, tmp_path):
    """The other processes, too, go on from one training to the next, and find there what the first has written."""
    options = {**quick, "devices": 2, "accelerator": "cpu", "epochs": 1, "threads": 1}
    del options["out"]
    (tmp_path / "twice.py").write_text(TWICE.replace("OPTIONS", repr(options)))
    program = [sys.executable, tmp_path / "twice.py"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two" / "metrics.json").exists()


def test_slurms_variables_and_checkpoints_in_the_working_folder_change_nothing(quick, tmp_path, monkeypatch):
    expected = train(Config(**{**quick, "epochs": 1, "out": str(tmp_path / "expected")}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"another job's")
    slurm = {"JOB_ID": "1234", "NTASKS": "4", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "train"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert train(Config(**{**quick, "epochs": 1}))["test"] == expected["test"]


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({}, {"nodes": 2}, "WORLD_SIZE is not set, and --nodes 2 --devices 1 are 2 processes; start .* torchrun"),
        ({"WORLD_SIZE": "2"}, {"nodes": 2, "devices": 2}, "WORLD_SIZE is 2, and --nodes 2 --devices 2 are 4 processes"),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
            {"nodes": 2, "devices": 2},
            "LOCAL_WORLD_SIZE=4, the number of processes of this machine, must be 2 for --nodes 2 --devices 2",
        ),
        ({"WORLD_SIZE": "4"}, {"nodes": 2, "devices": 2}, "LOCAL_WORLD_SIZE=0, the number .* must be 2"),
    ],
)
def test_machines_whose_processes_do_not_fit_the_run_are_refused(variables, options, message, quick, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=message):
        train(Config(**quick | options))


class Meeting:
    """`gather_rows` for threads in place of processes."""

    def __init__(self, count):
        self.barrier, self.said = threading.Barrier(count, timeout=20), [None] * count

    def gather_rows(self, values):
        self.said[int(threading.current_thread().name)] = values
        self.barrier.wait()
        every = torch.cat(self.said)
        self.barrier.wait()
        return every

    def compare(self, given, monkeypatch):
        """Return what each of the processes raises, None where nothing."""
        monkeypatch.setattr(machines, "gather_rows", self.gather_rows)
        monkeypatch.setattr(machines, "_SECONDS", 0.5)
        raised = [None] * len(given)

        def start(rank):
            try:
                machines.SameRun(*given[rank]).on_train_start(SimpleNamespace(global_rank=rank), None)
            except RunError as error:
                raised[rank] = str(error)

        threads = [threading.Thread(target=start, args=(rank,), name=str(rank)) for rank in range(len(given))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised


def test_machines_that_see_the_same_go_on(quick, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").touch()
    given = [(tmp_path, Config(**quick), "ab"), (tmp_path, Config(**quick | {"out": "elsewhere"}), "ab")]
    assert Meeting(2).compare(given, monkeypatch) == [None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        ({}, "ac", "process 1 of 2 has other data than process 0"),
        ({"seed": 8}, "ab", "process 1 of 2 has other options than process 0"),
        ({}, "ab", "process 1 of 2 does not see in --out .*file system that they share"),
    ],
)
def test_machines_that_see_other_things_are_refused(options, content, message, quick, tmp_path, monkeypatch):
    # Each has a folder with a run's files; only what the first writes now tells that they are two.
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        (folder / "config.yaml").touch()
    given = [(folders[0], Config(**quick), "ab"), (folders[1], Config(**quick | options), content)]
    raised = Meeting(2).compare(given, monkeypatch)
    assert raised[0] == raised[1] or "first" in raised[0]
    assert all(re.match(message, each) for each in raised), raised
    assert [path.name for folder in folders for path in folder.iterdir()] == ["config.yaml", "config.yaml"]


def test_several_devices_in_a_notebook_are_refused(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(RunError, match=r"devices=2 cannot be had in a notebook .*plr train --config run\.yaml"):
        train(Config(**quick, devices=2))
    assert not (tmp_path / "run").exists()


def test_more_devices_than_could_run(quick, tmp_path):
    with pytest.raises(RunError, match=r"--devices 9999: there are \d+ cores"):
        train(Config(**quick, devices=9999))
    assert not (tmp_path / "run").exists()


def test_a_program_that_cannot_be_run_again_is_refused(quick, tmp_path):
    code = (
        f"from plr.config import Config\nfrom plr.training import train\n"
        f"try:\n    train(Config(**{quick!r}, devices=2))\nexcept RuntimeError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "devices=2 needs a program in a file" in done.stdout, done.stderr
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_write_one_run(quick, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with locked(out), pytest.raises(RunError, match=f"process {os.getpid()} on host .* is writing here"):
        train(Config(**quick))
    assert not list(out.iterdir())
    train(Config(**{**quick, "epochs": 1}))
    assert not list(out.glob("*.lock"))
