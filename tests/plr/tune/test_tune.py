"""plr tune: what it refuses, what it draws, and the same trials whatever interrupts it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import polars as pl
import pytest
import torch

from plr.cli import main
from plr.config import Config
from plr.data import SequenceDataset
from plr.errors import ConfigError, NonFiniteLossError, RunError
from plr.runs import RunFolder
from plr.training.module import TrainingModule
from plr.tune import search as searching
from plr.tune import tune as tuning
from plr.tune.request import Request
from plr.tune.space import Choices, Range, Space
from plr.tune.systems import SYSTEMS
from plr.tune.tune import tune

SPACE = """
lr: {low: 1e-3, high: 0.03, log: true}
optimizer: [adam, adamw]
weight_decay: [0.0, 0.01]
epochs: 3
plr:
  streams: [1, 2]
"""
TINY = ("dim=8", "ffn_dim=8", "layers=1", "heads=1", "max_length=6", "batch_size=64", "accelerator=cpu")


def requested(data, out, **changes):
    given = {"systems": ("sasrec-base", "sasrec-plr"), "trials": 2, "seeds": 1, "settings": TINY}
    return Request(data=str(data), out=str(out), space=str(space_beside(out)), **{**given, **changes})


def space_beside(out: Path, text: str = SPACE) -> Path:
    path = out.parent / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """A finished search, and what the command said."""
    out = tmp_path_factory.mktemp("whole") / "search"
    said: list[str] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    tune(requested(small_data, out), said.append)
    torch.set_num_threads(before)
    return out, said


def record(out: Path) -> dict:
    """Return what a search found, without how long it took."""
    found = json.loads((out / "trials.json").read_text())
    for system in found["systems"].values():
        for trial in system["trials"]:
            del trial["seconds"]
    return found


def test_every_system_has_as_many_trials_and_the_first_is_the_default(whole):
    out, said = whole
    systems = record(out)["systems"]
    assert list(systems) == ["sasrec-base", "sasrec-plr"]
    for found in systems.values():
        assert [trial["number"] for trial in found["trials"]] == [0, 1]
        assert found["trials"][0]["settings"]["lr"] == 0.001
        assert found["trials"][1]["settings"]["lr"] != 0.001
        assert all(len(trial["by_epoch"]) == 3 for trial in found["trials"])
    assert "streams" in systems["sasrec-plr"]["trials"][0]["settings"]
    assert "streams" not in systems["sasrec-base"]["trials"][0]["settings"]
    frame = pl.read_csv(out / "trials.csv")
    assert frame["trial"].to_list() == [0, 1, 0, 1]
    assert len([line for line in said if line.startswith("[")]) == 6  # four trials, two final runs
    assert not list((out / "trials").iterdir())  # nothing is left of trials


def test_the_chosen_settings_are_those_of_the_best_validation_and_alone_are_tested(whole):
    out, _ = whole
    for name, found in record(out)["systems"].items():
        best = max(found["trials"], key=lambda trial: max(trial["by_epoch"]))
        assert found["chosen"] == best["number"]
        (final,) = found["final"]
        run = RunFolder(out / final["run"])
        assert final["valid"]["ndcg@10"] == max(best["by_epoch"])  # the same run again, to the bit
        assert {name: getattr(Config.load(run.config), name) for name in best["settings"]} == best["settings"]
        given = Config.load(out / "best" / f"{name}.yaml")
        assert given.decisive() == Config.load(run.config).decisive()
    report = (out / "report.md").read_text()
    assert "NDCG@10 − sasrec-base" in report
    assert report.count("\n| sasrec-plr |") == 3


def test_a_finished_search_repeated_trains_nothing(whole, small_data, monkeypatch):
    out, _ = whole
    before = (out / "report.md").read_bytes()
    monkeypatch.setattr(TrainingModule, "training_step", None)
    said: list[str] = []
    tune(requested(small_data, out), said.append)
    assert any("0 of 4 trials and 0 of 2 final runs" in line for line in said)
    assert (out / "report.md").read_bytes() == before


def test_two_processes_find_what_one_finds(whole, small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in the search of one process
    out, said = tmp_path / "two", []
    tune(requested(small_data, out, processes=2), said.append)
    assert record(out) == record(whole[0])
    assert len([line for line in said if line.startswith("[")]) == 6
    assert said[-1].startswith("[6/6] ")
    assert said[-1].endswith("; 0 left")
    assert not (out / "logs").exists()
    assert not any((out / "trials").iterdir())


@pytest.mark.parametrize(("processes", "threads"), [(1, 0), (2, 4), (3, 2), (20, 1)])
def test_processes_share_the_threads(processes, threads, small_data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(searching, "train", lambda config, dataset: seen.append(config.threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    search = searching.Search(requested(small_data, tmp_path / "search", processes=processes))
    system = search.request.tuned[0]
    search.train_final(system, searching.Trial(0, {}, "complete", [0.1], 1.0), seed=0)
    assert seen == [threads]


def test_a_process_that_fails_ends_the_search_with_what_it_said(small_data, tmp_path):
    out = tmp_path / "search"
    (out / "trials").mkdir(parents=True)
    (out / "trials" / "sasrec-plr-0").write_text("in the way")
    with pytest.raises(RunError, match=r"^[^\n]*trials/sasrec-plr-0[^\n]*$"):
        tune(requested(small_data, out, processes=2, trials=1, seeds=0), lambda line: None)
    (out / "trials" / "sasrec-plr-0").unlink()
    tune(requested(small_data, out, processes=1, trials=1, seeds=0), lambda line: None)
    assert [len(found["trials"]) for found in record(out)["systems"].values()] == [1, 1]


class Killed(BaseException):
    pass


def test_fewer_trials_than_there_are_is_a_search_of_so_many(whole, small_data, tmp_path):
    """A command with more may have been killed between two systems' trials."""
    out = tmp_path / "fewer"
    shutil.copytree(whole[0], out)
    tune(requested(small_data, out, trials=1), lambda line: None)
    for found in record(out)["systems"].values():
        assert [trial["number"] for trial in found["trials"]] == [0]
        assert found["chosen"] == 0
    assert "- 1 trials of each system" in (out / "report.md").read_text()


def test_killed_in_the_middle_of_a_trial_it_ends_as_undisturbed_and_looks_at_no_test_row(
    whole, small_data, tmp_path, monkeypatch
):
    looked_at = set()
    rows = SequenceDataset.rows

    def watched(self, split, *arguments, **options):
        looked_at.add(split)
        return rows(self, split, *arguments, **options)

    step, count = TrainingModule.training_step, 0

    def killing_step(self, batch, index):
        nonlocal count
        if self.config.lr != 0.001 and self.current_epoch == 2 and not count:  # the second trial's last epoch
            count += 1
            raise Killed
        return step(self, batch, index)

    monkeypatch.setattr(SequenceDataset, "rows", watched)
    monkeypatch.setattr(TrainingModule, "training_step", killing_step)
    request = requested(small_data, tmp_path / "killed", systems=("sasrec-base",), seeds=0)
    with pytest.raises(Killed):
        tune(request, lambda line: None)
    assert (tmp_path / "killed" / "trials" / "sasrec-base-1" / "resume" / "last.ckpt").exists()
    epochs = []
    begin = TrainingModule.on_train_epoch_start

    def begun(self):
        epochs.append(self.current_epoch)
        begin(self)

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", begun)
    tune(request, lambda line: None)
    assert epochs == [2]
    found, expected = (record(out)["systems"]["sasrec-base"]["trials"] for out in (tmp_path / "killed", whole[0]))
    assert found == expected
    assert looked_at == {"train", "valid"}


def test_a_trial_goes_on_where_the_pruner_speaks_numpy(small_data, tmp_path, monkeypatch):
    """As a median of other trials does: once there are four."""
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: np.bool_(False))
    step, count = TrainingModule.training_step, 0

    def killing_step(self, batch, index):
        nonlocal count
        if self.current_epoch == 2 and not count:
            count += 1
            raise Killed
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", killing_step)
    request = requested(small_data, tmp_path / "killed", systems=("sasrec-base",), trials=1, seeds=0)
    with pytest.raises(Killed):
        tune(request, lambda line: None)
    tune(request, lambda line: None)
    assert len(record(tmp_path / "killed")["systems"]["sasrec-base"]["trials"][0]["by_epoch"]) == 3


def test_killed_again_while_its_settings_are_drawn_a_trial_goes_on(whole, small_data, tmp_path, monkeypatch):
    request = requested(small_data, tmp_path / "killed", systems=("sasrec-base",), seeds=0)
    step, draw = TrainingModule.training_step, searching._drawn

    def killing_step(self, batch, index):
        if self.config.lr != 0.001 and self.current_epoch == 1:  # the second trial's
            raise Killed
        return step(self, batch, index)

    def killing_draw(trial, name, spec):
        if name == "optimizer":  # the second setting
            raise Killed
        return draw(trial, name, spec)

    for place, name, killing in ((TrainingModule, "training_step", killing_step), (searching, "_drawn", killing_draw)):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killing)
            with pytest.raises(Killed):
                tune(request, lambda line: None)
    tune(request, lambda line: None)
    found, expected = (record(out)["systems"]["sasrec-base"]["trials"] for out in (tmp_path / "killed", whole[0]))
    assert found == expected


def test_a_pruned_trial_ends_and_is_not_chosen(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: self.number == 1)
    tune(requested(small_data, tmp_path / "pruned", systems=("sasrec-base",), seeds=0), lambda line: None)
    found = record(tmp_path / "pruned")["systems"]["sasrec-base"]
    assert [(trial["state"], len(trial["by_epoch"])) for trial in found["trials"]] == [("complete", 3), ("pruned", 1)]
    assert found["chosen"] == 0


def test_a_trial_that_diverges_counts_and_all_that_do_are_an_error(small_data, tmp_path, monkeypatch):
    def diverged(*arguments, **options):
        raise NonFiniteLossError("step 3: the loss term 'next_item' is not finite")

    monkeypatch.setattr(searching, "train_without_test", diverged)
    said: list[str] = []
    with pytest.raises(RunError, match=r"none of the 2 trials of sasrec-base came to its end.*next_item. is not"):
        tune(requested(small_data, tmp_path / "diverged", systems=("sasrec-base",)), said.append)
    assert len([line for line in said if "first epoch: step 3: the loss term 'next_item' is not finite" in line]) == 2


def test_where_one_system_has_no_trial_to_choose_the_others_are_reported(small_data, tmp_path, monkeypatch):
    """The search ended with nothing but its storage: hours of the other systems' trials were not to be seen."""
    trained = searching.train_without_test

    def diverged(config, *arguments, **options):
        if config.method == "plr":
            raise NonFiniteLossError("step 3: the loss term 'next_item' is not finite")
        return trained(config, *arguments, **options)

    monkeypatch.setattr(searching, "train_without_test", diverged)
    out = tmp_path / "one half"
    with pytest.raises(RunError, match=r"trials of sasrec-plr came .*report.md; --trials with a larger number goes on"):
        tune(requested(small_data, out), lambda line: None)
    systems = record(out)["systems"]
    assert systems["sasrec-base"]["chosen"] is not None
    failures = [trial["failure"] for trial in systems["sasrec-plr"]["trials"]]
    assert failures == ["step 3: the loss term 'next_item' is not finite"] * 2
    assert "| sasrec-plr | 1 | failed |" in (out / "report.md").read_text()
    best = out / "best" / "sasrec-base.yaml"
    assert f"# plr train --config '{best}' --out RUN\n" in best.read_text()


TOO_LARGE = f"dim: [8, {10**13}]\nepochs: 1\n"


def test_a_trial_that_needs_too_much_memory_counts_and_the_search_goes_on(small_data, tmp_path):
    """It ended the search, and came again at each repetition: there was no going on from what had been found."""
    out = tmp_path / "large"
    request = requested(small_data, out, systems=("sasrec-base",), trials=6, seeds=1, settings=TINY[1:])
    space_beside(out, TOO_LARGE)
    tune(request, lambda line: None)
    found = record(out)["systems"]["sasrec-base"]
    failed = [trial for trial in found["trials"] if trial["settings"]["dim"] > 256]
    assert 0 < len(failed) < 6
    assert all(each["state"] == "failed" and "too little memory (" in each["failure"] for each in failed)
    assert len(found["final"]) == 1


def test_defaults_that_need_too_much_memory_are_one_message(small_data, tmp_path, capsys):
    """The advice named options that plr tune does not have."""
    options = ["--data", str(small_data), "--out", str(tmp_path / "large"), "--systems", "sasrec-base"]
    assert main(["tune", *options, "--set", f"dim={10**13}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("plr: too little memory (")
    assert "lower --set batch_size, --set eval_batch_size, --set dim or --set max_length\n" in error


def test_memory_that_several_processes_share_fails_no_trial(small_data, tmp_path, monkeypatch):
    """Alone a trial may fit: what is found would depend on how many there were beside it."""
    monkeypatch.setattr(searching, "train_without_test", lambda *arguments, **options: bytearray(2**62))
    search = searching.Search(requested(small_data, tmp_path / "large", processes=2))
    search.out.mkdir()
    search.open()
    with pytest.raises(RunError, match=r"too little memory for 2 processes at a time .* fewer --processes"):
        search.run_trial(SYSTEMS["sasrec-base"])
    assert search.trials(SYSTEMS["sasrec-base"]) == []


def test_another_search_is_not_mixed_with_it(whole, small_data, tmp_path):
    out = tmp_path / "search"
    shutil.copytree(whole[0], out)
    with pytest.raises(RunError, match=r"holds another search of sasrec-base.*settings of dim: 8 -> 4"):
        tune(requested(small_data, out, settings=(*TINY, "dim=4")))
    request = requested(small_data, out)
    space_beside(out, SPACE.replace("0.03", "0.04"))
    with pytest.raises(RunError, match=r"space of lr: .*0.03.* -> .*0.04"):
        tune(request)


def test_what_the_space_and_set_fix_is_stated_for_each_system(small_data, tmp_path):
    """Of systems with other epochs than each other the tables would seem to be an equal search."""
    request = requested(small_data, tmp_path / "search", trials=1, settings=(*TINY, "plr:patience=2", "lr=0.001"))
    space_beside(tmp_path / "search", "hidden_dropout: [0.1, 0.2]\nplr: {epochs: 2}\nbase: {epochs: 1}\n")
    report = tune(request, lambda line: None).read_text(encoding="utf-8")
    assert f"- set for all: {', '.join(TINY)}, lr=0.001\n" in report
    assert "- set for sasrec-base, and not equally for all: epochs=1\n" in report
    assert "- set for sasrec-plr, and not equally for all: epochs=2, patience=2\n" in report
    systems = record(tmp_path / "search")["systems"]
    assert [found["fixed"]["epochs"] for found in systems.values()] == [1, 2]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_length_searched_with_the_history_left_out_is_stated(small_data, tmp_path, exclude_seen):
    """Of a longer history a larger max_length leaves fewer candidates: its validation is better by that alone."""
    settings = [each for each in TINY if not each.startswith("max_length")] + [f"exclude_seen={exclude_seen}".lower()]
    changes = {"trials": 1, "settings": (*settings, "plr:max_length=2", "lr=0.001", "epochs=1")}
    request = requested(small_data, tmp_path / "search", **changes)
    space_beside(tmp_path / "search", "max_length: [4, 8]\nhidden_dropout: [0.1, 0.2]\n")
    report = tune(request, lambda line: None).read_text(encoding="utf-8")
    assert ("max_length was searched with exclude_seen (sasrec-base):" in report) == exclude_seen
    assert ("left out (50 by sasrec, 2 by sasrec + plr)" in report) == exclude_seen


def test_the_tables_have_their_metrics_whatever_ks_the_runs_have(small_data, tmp_path):
    changes = {"systems": ("sasrec-base",), "trials": 1, "settings": (*TINY, "ks=[5]")}
    report = tune(requested(small_data, tmp_path / "search", **changes), lambda line: None)
    run = RunFolder(tmp_path / "search" / "runs" / "sasrec-base-trial0-seed0")
    expected = (pl.read_parquet(run.ranks("test"))["rank"] <= 20).mean()
    assert "recall@20" not in run.read_metrics()["test"]
    assert run.test_metric("recall@20") == pytest.approx(expected)
    assert f" {expected:.4f} " in report.read_text(encoding="utf-8")


def features_of(path: Path, classes: int) -> Path:
    path.write_text(json.dumps({f"i{number}": [f"c{number % classes}"] for number in range(24)}), encoding="utf-8")
    return path


@pytest.mark.parametrize("storage", [True, False])
def test_features_that_changed_in_place_are_another_search(small_data, tmp_path, storage):
    """Trials of both would be compared, and final runs of the old ones shown as those of the new."""
    out, features = tmp_path / "search", features_of(tmp_path / "features.json", 3)
    changes = {"systems": ("sasrec-base",), "trials": 1, "settings": (*TINY, f"features={features}")}
    request = requested(small_data, out, **changes)
    tune(request, lambda line: None)
    tune(request, lambda line: None)
    features_of(features, 5)
    if not storage:
        (out / "trials.db").unlink()
    expected = "features or text vectors are other ones" if storage else r"seed0 holds a run with other item features"
    with pytest.raises(RunError, match=expected):
        tune(request, lambda line: None)


def test_final_runs_of_a_search_whose_storage_is_gone_are_not_taken_for_anothers(whole, small_data, tmp_path):
    """Trials have the same numbers in both: the tables would show what other settings had measured."""
    out = tmp_path / "search"
    shutil.copytree(whole[0], out)
    (out / "trials.db").unlink()
    request = requested(small_data, out, systems=("sasrec-base",), settings=(*TINY, "dim=4"))
    space_beside(out, SPACE.replace("low: 1e-3", "low: 2e-3"))
    (final,) = (out / "runs").glob("sasrec-base-*")
    for number in (0, 1):  # whichever is chosen
        if not (there := final.with_name(f"sasrec-base-trial{number}-seed0")).exists():
            shutil.copytree(final, there)
    with pytest.raises(RunError, match=r"sasrec-base-trial\d-seed0 holds a run of another configuration \(dim: 8 -> 4"):
        tune(request, lambda line: None)


def test_a_storage_that_fails_in_the_middle_is_a_message(whole, small_data, tmp_path, monkeypatch):
    request = requested(small_data, tmp_path / "search", systems=("sasrec-base",), seeds=0)
    step, held = TrainingModule.training_step, sqlite3.connect(":memory:")

    def step_that_locks(self, batch, index):
        nonlocal held
        if self.config.lr != 0.001 and self.current_epoch == 1 and not held.in_transaction:  # the second trial's
            held = sqlite3.connect(tmp_path / "search" / "trials.db", isolation_level=None)
            held.execute("BEGIN EXCLUSIVE")
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", step_that_locks)
        message = r"trials.db: the storage of trials cannot be read or written \(database is locked\); repeat"
        with pytest.raises(RunError, match=message):
            tune(request, lambda line: None)
    held.close()
    tune(request, lambda line: None)
    found, expected = (record(out)["systems"]["sasrec-base"]["trials"] for out in (tmp_path / "search", whole[0]))
    assert found == expected


def test_a_file_that_is_no_storage_is_named(small_data, tmp_path):
    request = requested(small_data, tmp_path / "search", systems=("sasrec-base",))
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "trials.db").write_text("something else, longer than a page's head " * 9)
    with pytest.raises(RunError, match=r"not a storage of trials that can be used \(file is not a database\)"):
        tune(request)


def test_optuna_is_named_where_it_is_missing(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"plr tune needs Optuna: pip install -e '\.\[tune\]'"):
        tune(requested(small_data, tmp_path / "search"))


def test_the_plan_trains_nothing_and_help_needs_no_pytorch(small_data, tmp_path, capsys):
    settings = [part for each in (*TINY, "epochs=2") for part in ("--set", each)]
    options = ["--data", str(small_data), "--out", str(tmp_path / "plan"), "--trials", "3", "--plan"]
    assert main(["tune", *options, *settings]) == 0  # with the space that comes with plr
    said = capsys.readouterr().out
    assert "6 of 6 trials and 6 of 6 final runs to train: about" in said
    assert not (tmp_path / "plan" / "runs").exists()
    assert main(["tune", *options, *settings, "--set", "dim=4", "--pruner", "median"]) == 0  # nothing was searched yet
    code = "import sys\nfrom plr.cli import main\ntry: main(['tune', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": ""}, "--data is missing"),
        ({"out": ""}, "--out is missing"),
        ({"trials": 0}, "trials must be at least 1; found 0"),
        ({"seeds": -1}, "seeds must be at least 0; found -1"),
        ({"systems": ("sasrec-grl",)}, r"systems must be BACKBONE-METHOD.*; found 'sasrec-grl', the nearest known is"),
        ({"systems": ("bert4rec-cloze-plr",)}, "found 'bert4rec-cloze-plr'"),
        ({"systems": ("sasrec-plr", "sasrec-plr")}, "found 'sasrec-plr' twice"),
        ({"pruner": "best"}, "pruner must be one of none, median; found 'best'"),
        ({"settings": ("sasrec-plr:devices=2",)}, "--set devices=2: its other processes would repeat this command"),
        ({"settings": ("seed=3",)}, "seed is set by the command itself"),
        ({"settings": ("gru:dim=3",)}, r"SYSTEM is one of .*sasrec-plr-states.*; found 'gru'"),
        ({"settings": ("erl:dim=4",)}, "--set erl:dim=4: of sasrec-base, sasrec-plr none is of erl"),
        ({"settings": ("sasrec-plr:core=5",)}, "core is set for all: --set core=5"),  # config.yaml had it, the rows not
    ],
)
def test_requests_that_cannot_be_met(given, message):
    with pytest.raises(ConfigError, match=message):
        Request(**{"data": "d", "out": "o", **given})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr: [0.1]", "lrr: neither an option nor a system, the nearest known is 'lr'"),
        ("data: [a, b]", "data: not an option that can be searched; --set fixes options of all runs"),
        ("seed: [1, 2]", "seed: not an option that can be searched"),
        ("lr: []", r"lr: choices must be single values, one at least; found \[\]"),
        ("lr: [0.1, 0.1]", "lr: choices must be different ones"),
        ("lr: {low: 0.1}", r"lr: expected a list of choices, \{low: A, high: B\}"),
        ("lr: {low: 0.1, high: 0.01}", "lr: low must be below high"),
        ("lr: {low: 0, high: 0.01, log: true}", "with log above 0"),
        ("lr: {low: 0.1, high: many}", "lr: high must be a finite number; found 'many'"),
        ("layers: {low: 1, high: 2.5}", "layers: high must be a whole number; found 2.5"),
        ("layers: {low: 1, high: 3, step: 0.5}", "layers: step must be a whole number; found 0.5"),
        ("mixture: {low: 1, high: 2}", "mixture: not a number, hence a list of choices"),
        ("plr: 3", "plr: expected lines of 'option: …' below it; found 3"),
        ("plr: {streams: [0]}\nlr: [0.1]", r"sasrec-plr: streams must be at least 1; found 0"),
        ("lr: {low: 0.1, high: 20}", "sasrec-base: lr must be from 1e-12 to 10"),
        ("base: {streams: [2]}\nlr: [0.1]", "base: streams decides nothing in sasrec-base"),
        ("plr: {streams: [2]}", "nothing is searched for sasrec-base"),
        ("lr: [1", "not valid YAML"),
        ("lr: [0.1, 0.2]\nnegatives: [8, 16]", "sasrec-base: negatives needs a loss.*; nothing else"),
        ("lr: [0.1, 0.2]\ntemperature: [null, 1.0]", "temperature is the same whichever of its values"),
        ("lr: [0.1, 0.2]\npatience: often", "sasrec-base: patience must be a whole number; found 'often'"),
        ("lr: [0.1, 0.2]\nplr: {training_rows: [prefix], targets_per_row: [0, 4]}", "plr: targets_per_row is for"),
    ],
)
def test_spaces_that_cannot_be_searched(text, message, small_data, tmp_path):
    request = requested(small_data, tmp_path / "search")
    space_beside(tmp_path / "search", text)
    with pytest.raises(ConfigError, match=message) as refused:
        searching.Search(request)
    assert "space.yaml" in str(refused.value)


def test_an_option_that_another_searched_one_gives_an_effect_is_searched(small_data, tmp_path):
    request = requested(small_data, tmp_path / "search")
    space_beside(tmp_path / "search", "loss: [softmax, sampled_softmax]\nnegatives: [8, 16]\nlr: [0.01]\n")
    for searched in searching.Search(request).searched.values():
        assert set(searched) == {"loss", "negatives", "lr"}


@pytest.mark.parametrize(
    "text",
    [
        "heads: [2, 3]\ndim: [48, 96]\n",
        "heads: [1, 3]\ndim: {low: 8, high: 16}\n",
        "training_rows: [prefix, sequence]\ntargets_per_row: [0, 4]\n",
    ],
)
def test_a_value_that_fits_beside_another_searched_one_is_searched(text, small_data, tmp_path):
    """Each was tried beside the defaults alone, though settings that do not fit are drawn again."""
    settings = tuple(each for each in TINY if not each.startswith(("dim", "heads")))
    request = requested(small_data, tmp_path / "search", systems=("sasrec-plr",), settings=settings)
    space_beside(tmp_path / "search", text)
    (searched,) = searching.Search(request).searched.values()
    assert len(searched) == 2


def test_what_set_says_is_not_laid_to_the_space(small_data, tmp_path):
    with pytest.raises(ConfigError, match=r"^sasrec-base: patience must be at least 1; found 0"):
        searching.Search(requested(small_data, tmp_path / "search", settings=(*TINY, "patience=0")))


def test_a_range_in_steps_ends_where_it_is_written_to_end(tmp_path):
    """In binary .001 + 9 · .001 is more than .01, of which Optuna warned at each trial."""
    text = "lr: {low: 0.001, high: 0.01, step: 0.001}\nhidden_dropout: {low: 0.1, high: 0.55, step: 0.1}\n"
    found = Space(space_beside(tmp_path / "search", text)).of({SYSTEMS["sasrec-base"]: ()})
    searched, _ = found[SYSTEMS["sasrec-base"]]
    assert (searched["lr"].high, searched["hidden_dropout"].high) == (0.01, 0.5)


def test_the_more_special_entry_holds_and_numbers_are_read_as_numbers(tmp_path):
    path = space_beside(
        tmp_path / "search",
        "lr: {low: 1e-4, high: 1e-2, log: true}\ndim: [8, 16]\nlayers: {low: 1, high: 4, step: 2}\n"
        "sasrec: {dim: 32}\nplr: {dim: [4]}\nsasrec-plr: {dim: [2], streams: [1, 2]}\n",
    )
    found = Space(path).of({SYSTEMS[name]: {"streams"} if "base" in name else set() for name in (
        "sasrec-plr", "bert4rec-plr", "sasrec-base", "bert4rec-base")})  # fmt: skip
    searched = {system.name: each for system, (each, _) in found.items()}
    assert searched["bert4rec-base"]["lr"] == Range(1e-4, 1e-2, log=True)
    assert searched["bert4rec-base"]["layers"] == Range(1, 3, step=2, whole=True)
    assert {name: each.get("dim") for name, each in searched.items()} == {
        "sasrec-plr": Choices((2,)), "bert4rec-plr": Choices((4,)), "sasrec-base": None,
        "bert4rec-base": Choices((8, 16)),
    }  # fmt: skip
    assert found[SYSTEMS["sasrec-base"]][1] == {"dim": 32}


def test_the_space_that_comes_with_plr_is_one_for_every_system(small_data, tmp_path):
    names = tuple(name for name in SYSTEMS if not name.startswith("unisrec"))
    search = searching.Search(Request(data=str(small_data), out=str(tmp_path), systems=names, settings=TINY))
    assert all(len(found) >= 3 for found in search.searched.values())
    assert "mask_probability" in search.searched[SYSTEMS["bert4rec-cloze-base"]]
    assert "consistency_weight" not in search.searched[SYSTEMS["bert4rec-cloze-base"]]


def test_settings_that_the_data_refuse_are_drawn_again(small_data, tmp_path):
    """A warm-up of more steps than the data give is known only with the data: the search has to go on."""
    asked = requested(small_data, tmp_path / "search", systems=("sasrec-base",), trials=4, seeds=0)
    space_beside(tmp_path / "search", "epochs: 1\nwarmup_steps: [0, 1, 1000000]\n")
    tune(asked, lambda line: None)
    trials = record(tmp_path / "search")["systems"]["sasrec-base"]["trials"]
    assert [trial["settings"]["warmup_steps"] <= 1 for trial in trials] == [True] * 4


def test_settings_that_the_sampler_insists_on_are_drawn_at_random(small_data, tmp_path):
    """After five trials it proposes what it knows least, hence what was refused, and ended the search so."""
    settings = (*TINY, "lr=0.001", "epochs=1")
    changes = {"systems": ("sasrec-base",), "trials": 8, "seeds": 0, "settings": settings, "seed": 3}
    asked = requested(small_data, tmp_path / "search", **changes)
    space_beside(tmp_path / "search", "hidden_dropout: {low: 0.1, high: 0.6}\nwarmup_steps: [0, 500000, 1000000]\n")
    tune(asked, lambda line: None)
    trials = record(tmp_path / "search")["systems"]["sasrec-base"]["trials"]
    assert [trial["settings"]["warmup_steps"] for trial in trials] == [0] * 8
    assert len({trial["settings"]["hidden_dropout"] for trial in trials}) == 8


def test_a_search_whose_defaults_the_data_refuse_says_so(small_data, tmp_path):
    asked = requested(small_data, tmp_path / "search", settings=(*TINY, "warmup_steps=1000000"))
    with pytest.raises(RunError, match="warmup_steps must be below"):
        tune(asked, lambda line: None)
