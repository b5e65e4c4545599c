"""The command: what it refuses, what it plans, and the same files whatever interrupts it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import polars as pl
import pytest

from plr.cli import main
from plr.config import Config
from plr.data import open_prepared, prepare
from plr.errors import ConfigError, NonFiniteLossError, NoReachableTargetError, RunError
from plr.evaluation import metrics
from plr.prepare.synthetic import generate
from plr.reproduce import EXPERIMENTS, figure2, figure5, runner, table1, table2, table3, theory
from plr.reproduce.report import keep_section, kept_sections, write_report
from plr.reproduce.reproduce import _facts, reproduce
from plr.reproduce.reproduce import _needed as needed
from plr.reproduce.request import Request, settings_of
from plr.reproduce.results import Estimate, Plot, Section, Table, signed
from plr.reproduce.sample import sampled
from plr.reproduce.study import Run, Study, System
from plr.reproduce.theory import contraction, ensemble
from plr.training import train

TINY = (
    "dim=8", "ffn_dim=8", "layers=1", "heads=1", "max_length=6", "epochs=1", "batch_size=512", "accelerator=cpu",
    "lr=0.01",
)  # fmt: skip


def requested(data, out, *what):
    methods = ("base", "erl", "lares", "plr-states", "plr", "lares-rpt")
    given = {"backbones": ("sasrec",), "methods": methods, "seeds": 1, "sample": 400, "settings": TINY}
    return Request(what=what or ("all",), data=str(data), out=str(out), **given)


def arguments(request):
    """The same request as it is typed."""
    settings = [part for each in request.settings for part in ("--set", each)]
    lists = ["--backbones", ",".join(request.backbones), "--methods", ",".join(request.methods)]
    options = ["--data", request.data, "--out", request.out, "--seeds", "1", "--sample", "400"]
    return ["reproduce", *request.what, *options, *lists, *settings]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "made.csv"
    generate(path, users=60, items=48)
    return path


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A finished reproduction of everything, and what the command said."""
    out = tmp_path_factory.mktemp("whole") / "report"
    said: list[str] = []
    reproduce(requested(data, out), said.append)
    return out, "\n".join(said)


def results(out: Path) -> dict[str, bytes]:
    """Return the files of a report by name, and the runs' weights."""
    kinds = ("report.*", "tables/*", "figures/*", "sections/*", "runs/*/model.safetensors", "runs/*/ranks_test.parquet")
    return {str(path.relative_to(out)): path.read_bytes() for kind in kinds for path in sorted(out.glob(kind))}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"what": ("table9",)}, r"what must be of table1, .*, all; found 'table9'"),
        ({"what": ()}, "name what to reproduce"),
        ({"out": ""}, "--out is missing"),
        ({"seeds": 0}, "seeds must be at least 1; found 0"),
        ({"processes": 0}, "processes must be at least 1; found 0"),
        ({"methods": ("base", "grl")}, r"methods must be of base, .*; found 'grl'"),
        ({"backbones": ("sasrec", "sasrec")}, "backbones must be different ones; found 'sasrec' twice"),
        ({"backbones": ("sasrec", "unisrec")}, r"unisrec reads text vectors .*; make them by plr embed-text"),
        ({"settings": ("dim",)}, r"takes FIELD=VALUE or SYSTEM:FIELD=VALUE; found 'dim'"),
        ({"settings": ("dims=3",)}, r"unknown field 'dims', the nearest known is 'dim'"),
        ({"settings": ("gru:dim=3",)}, r"SYSTEM is one of sasrec, .*; found 'gru'"),
        ({"settings": ("erl:devices=2",)}, "--set devices=2: .*; give --processes 2 or more"),
        ({"settings": ("seed=3",)}, "seed is set by the command itself"),
        ({"settings": ("method=erl",)}, "method is set by the command itself"),  # all rows were ERL's
        ({"settings": ("plr-states:mixture=distributions",)}, "mixture is set by the command itself"),
        ({"settings": ("plr:min_rating=4",)}, r"min_rating is set for all: --set min_rating=4"),  # it had no effect
        ({"settings": ("bert4rec:exclude_seen=true",)}, "exclude_seen is set for all"),
    ],
)
def test_what_cannot_work_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Request(**{"what": ("all",), "out": "somewhere", **given})


def test_data_are_needed_by_all_but_table_4(tmp_path, capsys):
    assert main(["reproduce", "table2", "table4", "--out", str(tmp_path)]) == 2
    assert "--data is missing: table2 is measured on data" in capsys.readouterr().err
    assert main(["reproduce", "table1", "--data", "nowhere", "--out", str(tmp_path / "new")]) == 2
    assert "--data nowhere: no such file" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u1 a b c d e f\nu2 a b\n", "has 1 users with a test row; to compare systems takes two at least"),
        ("".join(f"u{user} a a a a a\n" for user in range(9)), "has 1 items; to compare"),
    ],
)
def test_data_on_which_nothing_can_be_compared_are_refused_before_anything_is_trained(text, message, write, capsys):
    path = write("data.txt", text)
    out = path.with_name("report")
    command = ["reproduce", "table2", "--data", str(path), "--out", str(out), "--preset", "small"]
    assert main(command) == 2
    assert f"{path}: {message}" in capsys.readouterr().err
    assert not (out / "runs").exists()
    assert main(["tune", "--data", str(path), "--out", str(out.with_name("search"))]) == 2
    assert f"{path}: {message}" in capsys.readouterr().err


def test_settings_are_of_all_or_of_one_system_and_later_ones_win():
    given = ("dim=8", "plr:dim=16", "bert4rec:lr=0.1", "ks=[5, 10]", "dim=32")
    assert settings_of(given, ("sasrec", "base")) == {"dim": 32, "ks": [5, 10]}
    assert settings_of(given[:2], ("sasrec", "plr")) == {"dim": 16}
    assert settings_of(("lr=1e-3", "temperature=1e-1", "clip=1"), ()) == {
        "lr": 1e-3, "temperature": 0.1, "clip": 1.0,
    }  # fmt: skip


def study(data, out, preset="quick", **given):
    return Study(Request(what=("all",), data=str(data), out=str(out), preset=preset, sample=0, **given))


@pytest.mark.parametrize("preset", ["quick", "small", "paper"])
def test_no_run_is_planned_twice(data, tmp_path, preset):
    made = study(data, tmp_path, preset)
    modules = [import_module(f"plr.reproduce.{name}") for name in EXPERIMENTS]
    planned = {run for module in modules for run in module.needs(made)}
    names = {run.name for run in planned}
    configurations = {json.dumps({**made.config(run).decisive(), "data": ""}, sort_keys=True) for run in planned}
    assert len(names) == len(planned) == len(configurations)


def test_a_run_that_diverges_is_named_and_the_others_go_on(data, tmp_path, monkeypatch):
    """Every run here: then tables and figures have nothing to show, and say so by having no rows."""

    def diverge(config, dataset, callbacks):
        raise NonFiniteLossError("step 3: the loss term 'diversity' is not finite")

    monkeypatch.setattr(runner, "train", diverge)
    made, said = study(data, tmp_path, settings=TINY), []
    modules = [import_module(f"plr.reproduce.{name}") for name in EXPERIMENTS if name != "table4"]
    runs = list(dict.fromkeys(run for module in modules for run in module.needs(made)))
    runner.train_runs(made, runs, dict.fromkeys(runs, 1.0), said.append)
    assert set(made.failed) == set(runs)
    assert re.fullmatch(
        r"\[1/\d+\] sasrec-base-seed0: its loss became NaN .*'diversity'.*; \d+ left, about .*", said[0]
    )
    for module in modules:
        section = module.section(made)
        assert not any(name in json.dumps(section.to_json()) for name in ("seed0", "seed1")), section.name


def rpt(made, **given):
    return made.config(Run(System("sasrec", "lares-rpt"), **given))


def test_lares_second_phase_is_where_it_is_named_and_follows_the_first(data, tmp_path):
    assert not {run for run in study(data, tmp_path).runs(study(data, tmp_path).table_2()) if run.first_phase}
    methods = ("base", "lares-rpt")
    made = study(data, tmp_path, methods=methods, settings=("lares:core_layers=2", "lares-rpt:lr=0.01"))
    (planned,) = {tuple(needed(made, {"table2": import_module("plr.reproduce.table2")}))}
    names = [run.name for run in planned]
    assert sorted(names) == sorted(f"{each}-seed{seed}" for each in
                                   ("sasrec-base", "sasrec-lares", "sasrec-lares-rpt", "bert4rec-base",
                                    "bert4rec-lares", "bert4rec-lares-rpt") for seed in (0, 1))  # fmt: skip
    for name in names:
        if "rpt" in name:
            assert names.index(name.replace("-rpt", "")) < names.index(name)
    first, second = made.config(Run(System("sasrec", "lares"), 1)), rpt(made, seed=1)
    assert (first.phase, second.phase, second.init) == ("spt", "rpt", first.out)
    assert (first.core_layers, second.core_layers, first.lr, second.lr) == (2, 2, 3e-3, 0.01)
    assert rpt(study(data, tmp_path, "paper", methods=methods), seed=0).reference_weight == 1.0
    with pytest.raises(ConfigError, match=r"sasrec-lares-rpt: starts from a run that may not be refitted"):
        rpt(study(data, tmp_path, methods=methods, settings=("refit=true",)), seed=0)


def ended(config, plans, status, message):
    """A process that has said that and ends so, in the place of a run's."""
    plans.mkdir(parents=True, exist_ok=True)
    words = f"import sys; print({message!r}, file=sys.stderr); sys.exit({status})"
    with runner._log(plans, Path(config.out).name).open("wb") as log:
        return subprocess.Popen([sys.executable, "-c", words], stderr=log)


def test_what_a_process_has_said_is_no_sign_of_how_it_ended(data, tmp_path, monkeypatch):
    """A path or another error may have the words of one that is a run's own result."""
    made = study(data, tmp_path, settings=TINY, processes=2)
    message = "plr: nothing to reward: training has diverged is not finite/x.csv: no such file"
    monkeypatch.setattr(runner, "_started", lambda config, plans: ended(config, plans, 2, message))
    run = Run(System("sasrec", "base"), 0)
    with pytest.raises(RunError, match="sasrec-base-seed0 ended with status 2: plr: nothing to reward"):
        runner.train_runs(made, [run], {run: 1.0}, lambda line: None)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_phase_without_its_first_one_is_named(data, tmp_path, monkeypatch, processes):
    """And no process is started for it."""
    made, said = study(data, tmp_path, settings=TINY, methods=("lares-rpt",), processes=processes), []
    runs = [Run(System("sasrec", method), 0) for method in ("lares", "lares-rpt")]

    def diverge(*arguments, **options):
        raise NonFiniteLossError("a loss term is not finite")

    def started(config, plans):
        assert config.phase == "spt"
        return ended(config, plans, NonFiniteLossError.status, "plr: a loss term is not finite")

    monkeypatch.setattr(runner, "train", diverge)
    monkeypatch.setattr(runner, "_started", started)
    runner.train_runs(made, runs, dict.fromkeys(runs, 1.0), said.append)
    assert made.failed[runs[0]] == "its loss became NaN or infinite (a loss term is not finite)"
    assert made.failed[runs[1]] == "sasrec-lares-seed0 has no result"
    assert said[1] == "[2/2] sasrec-lares-rpt-seed0: sasrec-lares-seed0 has no result; 0 left"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_phase_with_nothing_to_reward_is_named_and_the_others_go_on(data, tmp_path, monkeypatch, processes):
    """Its first phase is no good, say after an epoch: that is this cell's result, and no reason to end the others."""
    made, said = study(data, tmp_path, settings=TINY, methods=("base", "lares-rpt"), processes=processes), []
    runs = [Run(System("sasrec", method), 0) for method in ("lares", "lares-rpt", "base")]
    monkeypatch.setattr("plr.training.initial.REACH", 0)  # none is among the first 0
    if processes == 2:  # which the processes' own would not see
        message = "plr: the --init run ranks no training row's target among the first 100: nothing to reward"

        def started(config, plans):
            if config.phase != "rpt":  # that processes train is the next test's
                train(config)
                return ended(config, plans, 0, "")
            return ended(config, plans, NoReachableTargetError.status, message)

        monkeypatch.setattr(runner, "_started", started)
    runner.train_runs(made, runs, dict.fromkeys(runs, 1.0), said.append)
    assert list(made.failed) == [runs[1]]
    assert re.fullmatch(r"the --init run ranks no .* the first \d+: nothing to reward", made.failed[runs[1]])
    assert made.folder(runs[2]).finished()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bar_moves_with_the_epochs_of_all_runs(data, tmp_path, monkeypatch, processes):
    made = study(data, tmp_path, settings=(*TINY, "epochs=3", "patience=3"), methods=("base",), processes=processes)
    runs, moved, bars = [Run(System("sasrec", "base"), seed) for seed in (0, 1)], [], []

    @contextlib.contextmanager
    def bar(what, total, **options):
        bars.append((what, total, options["unit"]))
        yield moved.append

    monkeypatch.setattr(runner, "ranking_progress", bar)
    runner.train_runs(made, runs, dict.fromkeys(runs, 1.0), lambda line: moved.append(line[:5]))
    assert bars == [("Training", 6, "epochs")]
    counts = [each for each in moved if isinstance(each, int)]
    assert sum(counts) == 6
    if processes == 1:
        assert moved == [1, 1, 1, 0, "[1/2]", 1, 1, 1, 0, "[2/2]"]


def test_a_run_that_stops_early_moves_the_bar_by_the_epochs_that_it_leaves_out(data, tmp_path, monkeypatch):
    made, moved = study(data, tmp_path, settings=(*TINY, "epochs=5"), methods=("base",)), []

    @contextlib.contextmanager
    def bar(what, total, **options):
        yield moved.append

    def stops_early(config, dataset, callbacks):
        callbacks.on_train_epoch_end(None, None)

    monkeypatch.setattr(runner, "ranking_progress", bar)
    monkeypatch.setattr(runner, "train", stops_early)
    monkeypatch.setattr(runner, "outcome", lambda folder: "")
    run = Run(System("sasrec", "base"), 0)
    runner.train_runs(made, [run], {run: 1.0}, lambda line: None)
    assert moved == [1, 4]


def test_a_change_to_what_a_system_has_is_none_and_derived_defaults_are_no_surprise(data, tmp_path):
    made = study(data, tmp_path)
    assert made.system("sasrec", "plr", streams=2, gate=True) == System("sasrec", "plr")
    states = made.system("sasrec", "plr", mixture="states", kl_weight=0.0, fast_state="none")
    config = made.config(Run(states, 0))
    assert (config.kl_weight, config.fast_state) == (0.0, "none")


def test_what_is_set_of_a_part_is_not_in_the_variant_without_it(data, tmp_path):
    given = ("plr-states:contrastive_temperature=0.5", "plr-states:kl_limit=0.5", "plr:load_weight=0.1", "plr:steps=3")
    made = study(data, tmp_path, settings=given)
    found = {
        (form, name): made.config_of(system)
        for form, systems in table3.variants(made).items()
        for name, system in systems.items()
    }
    states, ours = found["plr-states", "full"], found["plr", "full"]
    assert (states.contrastive_temperature, states.kl_limit, ours.load_weight, ours.steps) == (0.5, 0.5, 0.1, 3)
    assert (found["plr-states", "w/o RCL"].contrastive_temperature, found["plr-states", "w/o RCL"].kl_limit) == (1, 0.5)
    assert (found["plr-states", "w/o KL"].contrastive_temperature, found["plr-states", "w/o KL"].kl_limit) == (0.5, 1)
    assert (found["plr", "w/o gate"].load_weight, found["plr", "w/o gate"].steps) == (0, 3)
    assert (found["plr", "w/o reasoning"].load_weight, found["plr", "w/o reasoning"].steps) == (0.1, 1)
    with pytest.raises(ConfigError, match="sasrec-plr: kl_limit needs kl_weight above 0; found"):
        table3.variants(study(data, tmp_path, settings=("plr:kl_limit=0.5",)))


def test_a_form_that_has_eight_steps_anyway_is_the_one_that_diversity_is_followed_through(data, tmp_path, monkeypatch):
    looked_at = {}
    for module in (contraction, ensemble):
        monkeypatch.setattr(module, "parts", lambda study, runs, name=module: looked_at.setdefault(name, runs) and [])
    made = study(data, tmp_path, settings=("plr:steps=8",))
    theory.section(made)
    names = {module: [run.name for run in runs] for module, runs in looked_at.items()}
    assert names[ensemble] == ["sasrec-plr-states-seed0", "sasrec-plr-seed0"]
    assert names[contraction] == ["sasrec-plr-states-steps8-seed0", "sasrec-plr-seed0"]
    assert [run.name for run in theory.needs(made)] == [*names[ensemble], "sasrec-plr-states-steps8-seed0"]


def test_a_form_that_takes_no_step_has_no_steps_to_look_at(data, tmp_path):
    made = study(data, tmp_path, settings=("plr:reasoning=false",))
    assert [run.name for run in theory.needs(made)] == [
        "sasrec-plr-states-seed0", "sasrec-plr-seed0", "sasrec-plr-states-steps8-seed0",
    ]  # fmt: skip
    assert [run.name for run in figure5.needs(made)] == ["sasrec-plr-states-seed0"]
    assert not figure5.needs(study(data, tmp_path, settings=("plr:reasoning=false", "plr-states:reasoning=false")))


@pytest.mark.parametrize("settings", [(), ("exclude_seen=true", "max_length=7"), ("refit=true", "exclude_seen=true")])
def test_popularity_is_ranked_among_the_items_that_the_systems_rank(data, tmp_path, settings):
    """It was among all, and of the training interactions without validation, whatever the systems had."""
    made = study(data, tmp_path, settings=settings)
    config, dataset = made.config_of(System("sasrec", "base")), made.dataset
    items, offsets, roles = dataset.items.tolist(), dataset.offsets.tolist(), dataset.roles.tolist()
    counts = dataset.training_popularity(config.refit).tolist()
    ranks = []
    for target in (place for place, role in enumerate(roles) if role == 3):
        start = max(first for first in offsets if first <= target)
        seen = set(items[max(start, target - config.max_length) : target]) if config.exclude_seen else set()
        others = [counts[item] for item in set(items) - seen - {items[target]}]
        own = counts[items[target]]
        ranks.append(1 + sum(each > own for each in others) + sum(each == own for each in others) / 2)
    assert table2._popularity(made) == pytest.approx(metrics(ranks))
    (fact,) = (each for each in _facts(made) if each.startswith("data:"))
    assert ("all items are ranked" in fact) != config.exclude_seen
    assert (f"but those that the history's last {config.max_length} interactions" in fact) == config.exclude_seen
    if config.exclude_seen:
        longer = study(data, tmp_path, settings=(*settings, "plr:max_length=31"))
        (fact,) = (each for each in _facts(longer) if each.startswith("data:"))
        assert f"last {config.max_length} or 31 interactions" in fact
        assert "fewer by systems with a larger max_length" in fact


def test_rows_that_ask_for_items_unknown_to_training_are_counted(write, tmp_path):
    """The time split drops them; others do not, and a sample of users has some that the whole has not."""
    # Training has a b, b c, c a b; validation asks for c, x, c, and the test for y, z, a: x, y and z are new.
    path = write("data.txt", "u1 a b c y\nu2 b c x z\nu3 c a b c a\n")
    made = study(path, tmp_path, settings=("split=leave-one-out",))
    (rows,) = (part for part in table1.section(made).parts if part.name == "table1-rows")
    assert rows.header[2] == "of items that training does not have"
    assert rows.rows == [["train", 4, 0], ["valid", 3, 1], ["test", 3, 2]]


def test_repeats_are_one_pair_of_a_user_and_an_item_and_the_head_is_as_large_as_is_said(write, tmp_path):
    """36,000 interactions of 1,200 users with five items had a sparsity of -500 %."""
    path = write("repeats.txt", "u1 a a a a b b\nu2 b b b a a a\nu3 c c c c c c\n")
    asked = replace(requested(path, tmp_path / "report", "table1"), sample=0, settings=("split=leave-one-out",))
    statistics, rows = table1.section(Study(asked)).parts
    assert statistics.rows[0] == ["these data", 3, 3, 18, "44.44%"]  # of nine pairs five
    assert statistics.rows[1][-1] == "99.97%"
    assert "the most popular 33 % of the items (1) have" in rows.note


def test_sections_belong_together_where_the_settings_of_every_system_are_the_same(data, tmp_path):
    """The later of two that set one field counts: the order was ignored."""

    def identity(*settings: str) -> str:
        return Study(replace(requested(data, tmp_path), settings=(*TINY, *settings))).identity

    assert identity("lr=0.1", "lr=0.2") != identity("lr=0.2", "lr=0.1")
    assert identity("lr=0.1", "erl:lr=0.2") != identity("erl:lr=0.2", "lr=0.1")
    assert identity("lr=0.1", "clip=1") == identity("clip=1", "lr=0.1") != identity("lr=0.1")


def test_all_values_that_are_best_are_named():
    rows = [["kl_weight", "PLR", value, Estimate(mean)] for value, mean in ((0.0, 0.3), (0.1, 0.3), (1.0, 0.2))]
    assert figure2._best(rows) == "PLR kl_weight 0 and 0.1"
    assert figure2._best([["steps", "PLR", 1, Estimate(0.1)], *rows[1:]]) == "PLR steps 1; PLR kl_weight 0.1"


def test_published_settings_of_a_method_are_its_own_and_sizes_are_equal(data, tmp_path):
    made = study(data, tmp_path, "paper", settings=("unisrec:text_vectors=texts",))
    erl, ours = (made.config_of(System("sasrec", method)) for method in ("erl", "plr-states"))
    assert (erl.kl_weight, erl.temperature, ours.kl_limit) == (0.05, 0.07, 0.0)
    assert {(each.dim, each.batch_size, each.hidden_dropout) for each in (erl, ours)} == {(256, 2048, 0.5)}
    assert made.config_of(System("unisrec", "plr-states")).temperature == 0.07
    assert "unisrec" in made.backbones
    assert "unisrec" not in study(data, tmp_path).backbones


def test_what_is_set_for_all_is_for_the_backbones_that_read_it_and_refused_where_one_is_named(data, tmp_path):
    given = ("text_vectors=texts", "features=features.json", "feature_fields=brand")
    made = study(data, tmp_path, settings=given)
    texts, ids = (made.config_of(System(backbone, "base")) for backbone in ("unisrec", "sasrec"))
    assert (texts.text_vectors, texts.features, texts.feature_fields) == ("texts", None, None)
    assert (ids.text_vectors, ids.features, ids.feature_fields) == (None, "features.json", ("brand",))
    with pytest.raises(ConfigError, match="sasrec-base: text_vectors is not read by backbone 'sasrec'"):
        study(data, tmp_path, settings=("sasrec:text_vectors=texts",)).config_of(System("sasrec", "base"))


def test_a_sample_has_whole_users_and_is_found_again(data, tmp_path):
    config = Config(data=str(data))
    folder = sampled(config, 200, tmp_path / "sample")
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert sampled(config, 200, folder) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another size"):
        sampled(config, 100, folder)
    sample, whole = open_prepared(folder, verify=True), prepare(data)
    assert 200 <= len(sample.items) < 240
    places = {user: place for place, user in enumerate(whole.user_ids)}
    for number, user in enumerate(sample.user_ids):
        own, theirs = (
            [data.item_ids[int(item)] for item in data.items[data.offsets[place] : data.offsets[place + 1]]]
            for data, place in ((sample, number), (whole, places[user]))
        )
        assert own == theirs
        assert torch_equal(sample, number, whole, places[user])


def torch_equal(sample, number, whole, place):
    parts = [
        each.roles[each.offsets[user] : each.offsets[user + 1]].tolist()
        for each, user in ((sample, number), (whole, place))
    ]
    stops = [int(each.training_stop[user] - each.offsets[user]) for each, user in ((sample, number), (whole, place))]
    return parts[0] == parts[1] and stops[0] == stops[1]


def test_a_deviation_is_shown_to_the_place_of_its_mean():
    assert str(Estimate(0.05629, 0.000253)) == "0.0563 ± 0.0003"
    assert str(Estimate(12.345, 0.5)) == "12.35 ± 0.50"
    assert str(Estimate(2e-5, 1e-6)) == "2.00e-05 ± 1.00e-06"
    assert str(Estimate(0.25)) == "0.2500"


def test_a_section_is_what_it_was_after_json_and_csv_has_all_digits():
    table = Table("t", "caption", ["a", "b"], [["x", Estimate(1 / 3, 0.1)], [None, 2.5]], "note")
    section = Section("table1", "Title", ["words", table, Plot("p", "caption", "<svg/>", table)])
    assert Section.from_json(json.loads(json.dumps(section.to_json()))) == section
    assert list(csv.reader(io.StringIO(table.csv()))) == [
        ["a", "b", "b sd"],
        ["x", repr(1 / 3), "0.1"],
        ["", "2.5", ""],
    ]


def test_a_report_has_the_sections_that_are_whole_and_of_it_and_no_other_files(tmp_path):
    table = Table("t", "caption", ["a"], [[1]])
    sections = [Section(f"table{number}", "", [replace(table, name=f"t{number}")]) for number in (1, 2, 3)]
    for section, identity in zip(sections, ("mine", "mine", "another's"), strict=True):
        keep_section(tmp_path, identity, section)
    write_report(tmp_path, "Title", [], sections)
    assert len(list((tmp_path / "tables").iterdir())) == 3
    damaged = tmp_path / "sections" / "table2.json"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    found, others = kept_sections(tmp_path, "mine")
    assert found == sections[:1]
    assert others == {
        "table2": f"{damaged} is damaged: reproduce it again", "table3": "of other data, preset or settings",
    }  # fmt: skip
    write_report(tmp_path, "Title", [], found)
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["t1.csv"]


def test_files_that_no_report_has_written_stay(tmp_path, capsys):
    """Anybody's figures lie in a folder figures: all of them were removed."""
    own = [tmp_path / "figures" / "mine.svg", tmp_path / "tables" / "mine.csv"]
    for path in own:
        path.parent.mkdir()
        path.write_text("mine")
    first, second = (
        [Section("table1", "", [Plot(name, "", "<svg/>", Table(name, "", ["a"], [[1]]))])] for name in ("t1", "t2")
    )
    write_report(tmp_path, "Title", [], first)
    write_report(tmp_path, "Title", [], second)
    assert sorted(path.name for path in tmp_path.glob("[ft]*/*")) == ["mine.csv", "mine.svg", "t2.csv", "t2.svg"]
    assert all(path.read_text() == "mine" for path in own)

    (tmp_path / "elsewhere").mkdir()
    report = tmp_path / "elsewhere" / "report.md"
    report.write_text("mine")
    assert main(["reproduce", "table4", "--out", str(report.parent)]) == 2
    assert f"--out {report.parent}: its report.md is not of plr reproduce" in capsys.readouterr().err
    assert [path.name for path in report.parent.iterdir()] == ["report.md"]


def test_differences_have_a_sign_and_do_not_shrink_to_nothing():
    """Two losses that differ in the seventh digit differed by -0.0000 (-0.0000 to +0.0000)."""
    values = (0.0, 0.01234, -0.5, -4.2e-7, 3e-5)
    assert [signed(value) for value in values] == ["+0.0000", "+0.0123", "-0.5000", "-4.20e-07", "+3.00e-05"]


class Page(HTMLParser):
    """Collects what a page refers to, and that its elements are closed."""

    def __init__(self):
        super().__init__()
        self.links, self.open, self.images = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "data")]
        self.images += tag == "img"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_has_everything_and_opens_without_a_network(whole):
    out, said = whole
    page = Page()
    page.feed((out / "report.html").read_text())
    assert not page.open
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert page.images == len(list((out / "figures").glob("*.svg"))) >= 10
    markdown = (out / "report.md").read_text()
    for name in EXPERIMENTS:
        assert (out / "sections" / f"{name}.json").exists()
    for title in ("Table 1", "Table 4", "Figure 2", "Figure 5", "Theorem 4.6"):
        assert title in markdown
    assert re.search(r"(\d+) of \1 runs to train: about", said)
    assert "left, about" in said


def test_every_number_names_a_run_that_is_there(whole):
    out, _ = whole
    runs = {path.name for path in (out / "runs").iterdir()}
    for path in (out / "tables").glob("*.csv"):
        for row in csv.DictReader(path.open()):
            for name in (row.get("run") or row.get("runs") or "").split("; "):
                assert not name or name in runs, (path.name, name)


def test_the_figures_are_those_of_the_runs(whole):
    out, _ = whole
    rows = list(csv.DictReader((out / "tables" / "table2.csv").open()))
    for row in rows[1:]:
        metrics = json.loads((out / "runs" / row["runs"] / "metrics.json").read_text())
        assert float(row["ndcg@20"]) == metrics["test"]["ndcg@20"]
    intact = [row for row in csv.DictReader((out / "tables" / "figure3.csv").open()) if row["removed"] == "0%"]
    assert [float(row["ndcg@20"]) for row in intact] == pytest.approx([float(row["ndcg@20"]) for row in rows[1:]])
    ranked = {row["runs"]: float(row["ndcg@20"]) for row in rows[1:]}
    oracles = list(csv.DictReader((out / "tables" / "figure4.csv").open()))
    assert {row["runs"] for row in oracles} >= {name for name in ranked if "erl" in name or "states" in name}
    for row in oracles:
        assert float(row["ndcg@20, as ranked"]) == pytest.approx(ranked[row["runs"]])
    # Two streams of one step: their steps are no other choice than they are, and one step is none.
    assert [row["oracle over"] for row in oracles if row["method"] == "PLR (mixture)"] == ["best stream"]


def test_the_mean_divergence_of_maps_does_not_shrink_to_nothing(whole):
    """Maps that differ by 4e-8 bits differed by 0.0000."""
    said = re.findall(r"(PLR .*): the streams' maps differ by (\S+) bits", (whole[0] / "report.md").read_text())
    rows = list(csv.DictReader((whole[0] / "tables" / "figure5-difference.csv").open()))
    assert [method for method, _ in said] == ["PLR as printed", "PLR (mixture)"]
    for method, shown in said:
        values = [float(row["Jensen-Shannon divergence"]) for row in rows if row["method"] == method]
        assert float(shown) == pytest.approx(sum(values) / len(values), rel=0.01)
        assert 0 < max(values) < 0.05  # what four decimals do not show


def test_settings_that_are_whole_numbers_are_shown_as_such(whole):
    rows = list(csv.DictReader((whole[0] / "tables" / "figure2.csv").open()))
    assert {row["value"] for row in rows if row["axis"] in ("streams", "steps")} <= {"1", "2", "3", "4"}
    assert all("." in row["value"] for row in rows if row["axis"] == "dropout")


def test_a_table_of_differences_says_of_how_many_users(whole):
    out, _ = whole
    users = pl.read_parquet(out / "runs" / "sasrec-base-seed0" / "ranks_test.parquet")["user"].n_unique()
    markdown = (out / "report.md").read_text()
    assert len(re.findall(rf"\d, over the {users} users with a test row", markdown)) == 3  # Table 2, and 3's two


def test_killed_and_repeated_it_ends_with_the_same_files(data, whole, tmp_path):
    """From what is left when runs, measurements, sections and the report are missing."""
    finished, _ = whole
    expected = results(finished)
    out = tmp_path / "report"
    shutil.copytree(finished, out)
    names = ("erl", "plr-streams4", "plr-states-steps3", "plr-steps2")  # in the order in which they are trained
    lost = [out / "runs" / f"sasrec-{name}-seed0" for name in names]
    again = ("table2", "figure2", "figure4")  # and the sections of the others are kept
    for folder in [*lost, out / "tables", out / "figures"]:
        shutil.rmtree(folder)
    for path in [*out.glob("report.*"), *sorted((out / "measured").glob("ceiling*.json"))[::2]]:
        path.unlink()
    for name in again:
        (out / "sections" / f"{name}.json").unlink()
    request = requested(data, out, *again)
    command = [sys.executable, "-m", "plr", *arguments(request)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not (lost[1] / "config.yaml").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.html").exists()
    said: list[str] = []
    reproduce(request, said.append)
    assert results(out) == expected
    assert f"{len(lost)} of" not in said[1]  # the first of them was finished before the kill


def test_a_run_of_other_settings_is_not_taken_for_one(data, whole, capsys):
    out, _ = whole
    assert main([*arguments(requested(data, out)), "--set", "lr=0.5"]) == 2
    assert "holds a run of another configuration (lr: 0.01 -> 0.5)" in capsys.readouterr().err


def test_a_run_of_other_settings_that_no_table_needs_is_not_compared_with(data, whole, tmp_path):
    """Neither as the bare backbone of the differences, nor as the twin of the oracles."""
    out = tmp_path / "report"
    shutil.copytree(whole[0] / "runs", out / "runs")
    shutil.copytree(whole[0] / "data", out / "data")
    asked = replace(requested(data, out, "table2"), methods=("erl", "plr"))
    reproduce(asked, lambda _: None)
    same = list(csv.DictReader((out / "tables" / "table2.csv").open()))
    assert all(row["NDCG@10 − reference"] for row in same[1:])  # the base's run is there
    reproduce(replace(asked, settings=(*TINY, "base:lr=0.5")), lambda _: None)
    other = list(csv.DictReader((out / "tables" / "table2.csv").open()))
    assert len(other) == len(same) == 3
    assert not any(row["NDCG@10 − reference"] for row in other)


def test_what_was_measured_counts_for_the_settings_and_rows_that_it_was_measured_with(data, tmp_path):
    """The weights may be those of a run with other candidates: Figure 3 showed what was measured among those."""
    out = tmp_path / "report"
    asked = replace(requested(data, out, "figure3"), methods=("base",))
    reproduce(asked, lambda _: None)
    run = Run(System("sasrec", "base"), 0)
    before = Study(asked).folder(run).hashes()
    shutil.rmtree(out / "runs")
    other = replace(asked, settings=(*TINY, "exclude_seen=true"))
    reproduce(other, lambda _: None)
    study = Study(other)
    assert study.folder(run).hashes() == before
    row = next(csv.DictReader((out / "tables" / "figure3.csv").open()))
    assert row["removed"] == "0%"
    assert float(row["ndcg@20"]) == pytest.approx(study.test_metric(run, "ndcg@20"), rel=1e-12)
    # Else it is not measured again, and other test rows are not those that it is of.
    assert study.measured("robustness", run, lambda: pytest.fail("is kept"), seed=0)["0.0"]["ndcg@20"]
    study.dataset = replace(study.dataset, content_hash="another")
    assert study.measured("robustness", run, lambda: 1, seed=0) == 1


def test_a_run_with_other_features_in_the_same_file_is_not_taken_for_one(tmp_path):
    data, features = tmp_path / "made.csv", tmp_path / "features.json"
    generate(data, users=60, items=48)
    request = replace(requested(data, tmp_path / "out"), sample=0, settings=(*TINY, f"features={features}"))
    run = Run(System("sasrec", "base"), 0)

    def written(classes: int) -> Study:
        items = Study(replace(request, settings=TINY)).dataset.item_ids
        features.write_text(json.dumps({item: [f"c{number % classes}"] for number, item in enumerate(items)}))
        return Study(request)

    train(written(3).config(run))
    assert written(3).finished(run)
    with pytest.raises(RunError, match=r"sasrec-base-seed0 holds a run with other item features or text vectors"):
        written(5).finished(run)
    features.unlink()  # the run's own copy is enough
    assert Study(request).finished(run)
