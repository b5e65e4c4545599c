"""Kill -9 at any moment: the resumed run ends with the metrics and the weights of an uninterrupted one."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import plr
from plr.cli import main
from plr.config import Config
from plr.files import atomic_path
from plr.serving import Recommender
from plr.training import RunError, train
from plr.training.callbacks import BestWeights, ResumePoint
from plr.training.module import TrainingModule


def assert_equal_runs(one: Path, two: Path):
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    for result in (first, second):
        del result["train_seconds_per_epoch"]
    assert first == second
    first, second = (load_file(run / "model.safetensors") for run in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_killed_processes_resume_exactly(quick, tmp_path):
    values = {**quick, "epochs": 12, "patience": 12}
    uninterrupted = tmp_path / "uninterrupted"
    train(Config(**{**values, "out": str(uninterrupted)}))

    out = tmp_path / "killed"
    config = tmp_path / "config.yaml"
    Config(**{**values, "out": str(out)}).save(config)
    command = [sys.executable, "-m", "plr", "train", "--config", str(config)]
    resume_point = out / "resume" / "last.ckpt"
    for epochs_before_kill in (1, 3):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        written, last = 0, None
        while written < epochs_before_kill and process.poll() is None:
            now = resume_point.stat().st_mtime_ns if resume_point.exists() else None
            if now != last:
                written, last = written + (now is not None), now
            time.sleep(0.002)
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "metrics.json").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert_equal_runs(uninterrupted, out)


class Killed(BaseException):
    pass


WHEN = ["before_best", "between_best_and_resume_point", "in_mid_epoch", "in_the_refit", "before_the_metrics"]


@pytest.mark.parametrize("when", WHEN)
def test_every_gap_between_two_writes(when, quick, tmp_path, monkeypatch):
    values = {
        **quick, "epochs": 6, "patience": 6, "refit": when in WHEN[-2:], "lr": 0.003, "average_weights": 0.8,
    }  # fmt: skip
    uninterrupted = tmp_path / "uninterrupted"
    train(Config(**{**values, "out": str(uninterrupted)}))

    def kill_in_epoch_three(original):
        def wrapped(self, trainer, *arguments):
            if trainer.current_epoch == 3:
                raise Killed
            return original(self, trainer, *arguments)

        return wrapped

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        if when == "before_best":
            patch.setattr(BestWeights, "on_train_epoch_end", kill_in_epoch_three(BestWeights.on_train_epoch_end))
        elif when == "between_best_and_resume_point":
            patch.setattr(ResumePoint, "on_train_epoch_end", kill_in_epoch_three(ResumePoint.on_train_epoch_end))
        elif when == "before_the_metrics":

            def kill(*arguments):
                raise Killed

            patch.setattr("plr.training.trainer.write_metrics", kill)
        else:
            step = TrainingModule.training_step

            def killing_step(self, batch, index):
                refitting = len(self.rows) > 270  # rows: 270 in training, 60 more with validation
                epoch = 1 if refitting else 3  # a refit is as long as the best epoch's number says
                if self.current_epoch == epoch and index == 2 and refitting == (when == "in_the_refit"):
                    raise Killed
                return step(self, batch, index)

            patch.setattr(TrainingModule, "training_step", killing_step)
        with pytest.raises(Killed):
            train(Config(**{**values, "out": str(out)}))
    train(Config(**{**values, "out": str(out)}))
    assert_equal_runs(uninterrupted, out)


@pytest.mark.parametrize(
    ("number", "status", "said", "raised"),
    [(signal.SIGTERM, 143, "plr: terminated", SystemExit), (signal.SIGINT, 130, "plr: interrupted", KeyboardInterrupt)],
)
def test_a_signal_ends_the_command_with_its_status(number, status, said, raised, quick, tmp_path, monkeypatch, capsys):
    """No unfinished run ends with status 0: what follows the command in a script would take it for finished."""
    values = {**quick, "epochs": 2, "lr": 0.003}
    train(Config(**{**values, "out": str(tmp_path / "uninterrupted")}))
    out = tmp_path / "ended"
    Config(**{**values, "out": str(out)}).save(tmp_path / "config.yaml")
    step = TrainingModule.training_step

    def signalled(self, batch, index):
        if self.current_epoch == 1 and index == 2:
            os.kill(os.getpid(), number)
        return step(self, batch, index)

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", signalled)
        assert main(["train", "--config", str(tmp_path / "config.yaml")]) == status
        with pytest.raises(raised) as ended:
            train(Config.load(tmp_path / "config.yaml"))
    assert raised is KeyboardInterrupt or ended.value.code == status
    assert f"{said}; repeat the command to resume after the last finished epoch" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    signal.signal(signal.SIGINT, inherited)
    assert not (out / "metrics.json").exists()
    train(Config.load(tmp_path / "config.yaml"))
    assert_equal_runs(tmp_path / "uninterrupted", out)


def test_what_a_kill_left_half_written_is_removed(quick, tmp_path, monkeypatch):
    """A kill -9 in the middle of writing a checkpoint leaves the file that was to be renamed, as large as it was."""
    config = Config(**{**quick, "epochs": 1})

    def killed(source, path):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(plr.files.os, "replace", killed)
        patch.setattr(plr.files, "_remove", lambda path: None)
        for place in (tmp_path / "run", tmp_path / "run" / "resume"):
            place.mkdir()
            with pytest.raises(Killed), atomic_path(place / "last.ckpt") as aside:
                aside.write_text("half")
    expected = train(Config(**{**quick, "epochs": 1, "out": str(tmp_path / "other")}))
    recorded = Config.load(tmp_path / "other" / "config.yaml").provenance
    Config(**{**asdict(config), "provenance": recorded}).save(tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "resume" / ".mine").write_text("kept")
    assert train(config)["test"] == expected["test"]
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == [".mine"]


def killed_in_mid_epoch(config, monkeypatch, epoch=3, batch=2):
    """Start the run, and end it in the middle of an epoch, at one of its batches; both count from 0."""
    step = TrainingModule.training_step

    def killing_step(self, rows, index):
        if self.current_epoch == epoch and index == batch:
            raise Killed
        return step(self, rows, index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", killing_step)
        with pytest.raises(Killed):
            train(config)


def test_a_resumed_run_knows_its_epoch(quick, tmp_path, monkeypatch):
    """PRL's loss has one term more from epoch `warmup_epochs` on, whether or not the run was killed before."""
    values = {**quick, "method": "prl", "epochs": 6, "patience": 6, "lr": 0.003, "warmup_epochs": 2, "noise": 0.1}
    train(Config(**{**values, "out": str(tmp_path / "uninterrupted")}))
    config = Config(**{**values, "out": str(tmp_path / "killed")})
    killed_in_mid_epoch(config, monkeypatch)
    train(config)
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "killed")
    other = Config(**{**values, "out": str(tmp_path / "never"), "warmup_epochs": 99})
    train(other)
    assert not torch.equal(*(load_file(tmp_path / run / "model.safetensors")["step_embedding.weight"]
                             for run in ("never", "killed")))  # fmt: skip


def test_a_damaged_resume_point_is_named(quick, tmp_path):
    train(Config(**{**quick, "epochs": 1}))
    run = tmp_path / "run"
    (run / "metrics.json").unlink()
    whole = (run / "resume" / "last.ckpt").read_bytes()
    for write, reason in (
        (lambda path: path.write_bytes(b"not a checkpoint"), r"it is cut off, damaged or something else\); delete it"),
        (lambda path: path.write_bytes(b""), r"it is empty\); delete it"),
        (lambda path: path.write_bytes(whole[: len(whole) // 2]), r"it is cut off, damaged or something else\)"),
        (lambda path: path.write_bytes(_with_a_flipped_bit(whole)), r"\S+ in it is damaged\); delete it"),
        (lambda path: torch.save(Path("unpickled"), path), r"its content is not a checkpoint's\); delete it"),
        (lambda path: torch.save([1], path), "it lacks callbacks, epoch"),
        (lambda path: torch.save({"epoch": 0}, path), "it lacks callbacks, loops, optimizer_states"),
        (lambda path: _of_another_version(whole, path), "holds nothing of EarlyStopping, for another version of plr"),
    ):
        write(run / "resume" / "last.ckpt")
        with pytest.raises(RunError, match=r"last\.ckpt: .*" + reason) as raised:
            train(Config(**{**quick, "epochs": 1}))
        assert "weights_only" not in str(raised.value)
        assert "\n" not in str(raised.value)
    (run / "resume" / "last.ckpt").write_bytes(whole)
    best = run / "resume" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-1] + b"!")
    with pytest.raises(RunError, match=r"best\.safetensors: not as the run wrote it.*delete .*resume to train"):
        train(Config(**{**quick, "epochs": 1}))


def _with_a_flipped_bit(whole):
    """In the middle of the largest tensor, where torch would not see it."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        place = whole.index(archive.read(largest)) + largest.file_size // 2
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


def _of_another_version(whole, path):
    checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
    checkpoint["callbacks"] = {}
    torch.save(checkpoint, path)


def test_files_that_an_unfinished_run_has_lost(quick, tmp_path):
    config = Config(**{**quick, "epochs": 1})
    expected = train(config)
    run = tmp_path / "run"
    for name in ("metrics.json", "items.parquet"):
        (run / name).unlink()
    assert train(config)["test"] == expected["test"]
    assert Recommender.load(run).recommend([["i1"]], 1)

    (run / "metrics.json").unlink()
    (run / "resume" / "best.safetensors").unlink()
    with pytest.raises(RunError, match=r"best\.safetensors: no readable weights .*resume to train from the start"):
        train(config)
    (run / "config.yaml").unlink()
    other = Config(**{**quick, "epochs": 1, "lr": 0.5})
    with pytest.raises(RunError, match=r"holds resume/last\.ckpt of a run whose config\.yaml is missing"):
        train(other)


@pytest.mark.parametrize("method", ["base", "prl", "plr"])
def test_options_of_other_methods_decide_nothing(method, quick, tmp_path, monkeypatch):
    """So a run goes on whose config.yaml holds former defaults of another method."""
    values = {**quick, "method": method, "training_rows": "prefix"}
    with monkeypatch.context() as patch:
        patch.setattr("plr.training.trainer.write_metrics", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(Config(**values))
    path = Path(values["out"]) / "config.yaml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("mixture:", "streams:"))]
    path.write_text("\n".join([*lines, "streams: 2"]))  # as before there were mixtures
    if method == "plr":
        with pytest.raises(RunError, match=r"mixture: 'states' -> 'distributions'.*; give --config .*config.yaml, or"):
            train(Config(**values))
    else:
        assert train(Config(**values))["test"]["rows"] == 60
