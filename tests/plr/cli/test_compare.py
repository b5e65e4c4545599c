"""`plr compare`: which runs are one system, what is compared, what is refused, and the formats."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
import torch

from plr.cli.program import main
from plr.config import Config
from plr.errors import ConfigError
from plr.evaluation import Ranking, metrics, save_ranking
from plr.files import sha256_of
from plr.formats import rendered
from plr.runs import RunFolder
from plr.serving.compare import compare_runs

USERS = 30


def ranks_of(seed, shift):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(1, 15, (USERS,), generator=generator) + shift).double()


@pytest.fixture
def run(tmp_path):
    """Write the folder of a finished run and return it."""

    def write(name, seed=0, shift=0, data_hash="abc", users=USERS, **options):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        provenance = {"data_hash": data_hash}
        Config(data="d", out=str(folder.path), seed=seed, provenance=provenance, **options).save(folder.config)
        ranks = ranks_of(seed, shift)[:users]
        numbers = torch.arange(users)
        ids = pl.Series([str(number) for number in range(users)])
        save_ranking(folder.ranks("test"), Ranking(numbers, numbers, ranks), ids, ids)
        folder.metrics.write_text(json.dumps({"test": metrics(ranks)}))
        return str(folder.path)

    return write


def test_seeds_are_one_system_and_others_differ_by_what_is_named(run):
    paths = [run("a0", 0, 3, method="base"), run("b0", 0, 0, streams=2), run("a1", 1, 3, method="base", threads=1)]
    paths += [run("c0", 0, 1, streams=4), run("b1", 1, 0, streams=2)]
    first, two, four = compare_runs(paths)
    assert [system.name for system in (first, two, four)] == [
        "sasrec", "sasrec + plr, streams 2", "sasrec + plr, streams 4",
    ]  # fmt: skip
    assert [[folder.name for folder in system.folders] for system in (first, two, four)] == [
        ["a0", "a1"], ["b0", "b1"], ["c0"],
    ]  # fmt: skip
    for seed in (0, 1):
        assert two.values["ndcg@10"][seed] == pytest.approx(metrics(ranks_of(seed, 0))["ndcg@10"])
    assert two.comparison.difference == pytest.approx(two.mean("ndcg@10") - first.mean("ndcg@10"))
    assert two.comparison.low <= two.comparison.difference <= two.comparison.high
    assert (first.comparison, first.p_value, first.spread("ndcg@10") > 0, four.spread("ndcg@10")) == (
        None, None, True, None,
    )  # fmt: skip
    smaller, larger = sorted([two, four], key=lambda system: system.comparison.p_value)
    assert smaller.p_value == pytest.approx(min(1, 2 * smaller.comparison.p_value))
    assert larger.p_value == pytest.approx(max(smaller.p_value, larger.comparison.p_value))


def test_options_that_only_another_method_has_make_no_system(run):
    systems = compare_runs([run("a0", method="base", streams=2), run("a1", 1, method="base", streams=8), run("b")])
    assert [len(system.folders) for system in systems] == [2, 1]


def test_a_second_phase_from_each_seeds_own_first_is_one_system(run):
    phase = {"method": "lares", "phase": "rpt"}
    paths = [run("a", method="base"), *(run(f"l{seed}", seed, init=f"first{seed}", **phase) for seed in (0, 1))]
    assert [len(system.folders) for system in compare_runs(paths)] == [1, 2]


def test_second_phases_of_first_ones_with_other_settings_are_not_one_system(run, tmp_path):
    phase = {"method": "lares", "phase": "rpt"}
    paths = [run("a", method="base")]
    for seed, lr in enumerate((0.001, 0.001, 0.05)):
        first = RunFolder(Path(run(f"first{seed}", seed, method="lares", lr=lr)))
        first.weights.write_text(f"weights {seed}")
        paths.append(run(f"l{seed}", seed, init=str(first.path), **phase))
        second = RunFolder(Path(paths[-1]))
        config = Config.load(second.config)
        began = {**config.provenance, "init_hash": sha256_of(first.weights)}
        replace(config, provenance=began).save(second.config)
    _, *found = compare_runs(paths)
    assert [(system.name, len(system.folders)) for system in found] == [
        ("sasrec + lares, init lr 0.001", 2), ("sasrec + lares, init lr 0.05", 1),
    ]  # fmt: skip
    (tmp_path / "first2" / "model.safetensors").write_text("another's")
    assert [system.name for system in compare_runs(paths)][1:] == [
        "sasrec + lares, init found", "sasrec + lares, init not found",
    ]  # fmt: skip
    for seed in range(2):  # what is not known tells nothing apart
        (tmp_path / f"first{seed}" / "model.safetensors").unlink()
    assert len(compare_runs(paths)) == 2


@pytest.mark.parametrize("other", [{}, {"devices": 2}, {"threads": 3}, {"accelerator": "cpu"}])
def test_one_system_and_seed_counts_once_however_it_was_computed(run, other):
    paths = [run("a", method="base"), run("b", 1, streams=2), run("c", 1, streams=2, **other)]
    with pytest.raises(ConfigError, match=r"b and \S*c are one system with one seed \(1\).*; give one of them"):
        compare_runs(paths)


def test_second_phases_from_different_weights_are_two_runs_of_one_seed(run, tmp_path):
    phase = {"method": "lares", "phase": "rpt"}
    paths = [run("a", method="base"), *(run(f"l{n}", 0, init=f"first{n}", **phase) for n in (0, 1))]
    for n in (0, 1):
        folder = RunFolder(tmp_path / f"l{n}")
        config = Config.load(folder.config)
        replace(config, provenance={**config.provenance, "init_hash": f"{n}"}).save(folder.config)
    assert [len(system.folders) for system in compare_runs(paths)] == [1, 2]


def test_runs_with_other_features_in_the_same_file_are_not_one_system(run, tmp_path):
    paths = [run("a", method="base"), *(run(f"f{n}", n, method="base", features="f.json") for n in range(3))]
    for n, content in enumerate(("one" * 9, "one" * 9, "two" * 9)):
        folder = RunFolder(tmp_path / f"f{n}")
        config = Config.load(folder.config)
        replace(config, provenance={**config.provenance, "item_data_hash": content}).save(folder.config)
    _, one, two = compare_runs(paths)
    assert [len(system.folders) for system in (one, two)] == [2, 1]
    assert [system.name for system in (one, two)] == [
        f"sasrec, features f.json, item_data {each * 4}" for each in ("one", "two")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"data_hash": "other"}, "different data"),
        ({"exclude_seen": True}, "--exclude_seen"),
        ({"users": USERS - 1}, "cannot be compared"),
        ({"method": "base", "seed": 1}, "are one: sasrec"),
    ],
)
def test_what_cannot_be_compared_is_refused(run, capsys, second, expected):
    paths = [run("a", method="base"), run("b", **{"method": "plr", **second})]
    assert main(["compare", *paths]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.startswith("plr: ")
    assert "Traceback" not in message


def test_histories_left_out_to_other_lengths_are_stated(run, capsys):
    same = [run("a", method="base", exclude_seen=True, max_length=3), run("b", exclude_seen=True, max_length=3)]
    other = [run("c", method="erl", exclude_seen=True), run("d", method="base"), run("e", max_length=3)]
    for paths, expected in ((same, ""), (other[1:], ""), ([*same, other[0]], "3 by sasrec + plr, 50 by sasrec + erl")):
        assert main(["compare", *paths]) == 0
        shown = capsys.readouterr().out
        assert ("Not all ranked the same candidates" in shown) == bool(expected)
        assert expected in shown


def test_mistakes_on_the_command_line_are_named(run, tmp_path, capsys):
    one, two = run("a", method="base"), run("b")
    for arguments, expected in (
        ([one, one], "given twice"),
        ([one, str(tmp_path / "none")], "no run here"),
        ([one, two, "--metric", "map@10"], "recall@K"),
        ([one, two, "--out", str(tmp_path / "x.docx")], ".html"),
        ([one, two, "--ks", "[0]"], "ks must be positive"),
    ):
        assert main(["compare", *arguments]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "x.docx").exists()


def test_the_table_is_printed_or_written_in_the_format_of_the_ending(run, tmp_path, capsys):
    paths = [run("a", method="base"), run("b", shift=2)]
    assert main(["compare", *paths]) == 0
    text = capsys.readouterr().out
    expected = metrics(ranks_of(0, 2))["ndcg@10"]
    assert re.search(rf"^sasrec \+ plr +1 .*{expected:.4f}", text, re.MULTILINE)
    assert "Test rows of 30 users" in text
    assert main(["compare", *paths, "--out", str(tmp_path / "t.tex"), "--metric", "mrr", "--ks", "[5]"]) == 0
    latex = (tmp_path / "t.tex").read_text()
    assert r"recall@5 & ndcg@5 & mrr & mrr - first" in latex  # what is compared is shown, too
    assert f"{metrics(ranks_of(0, 2))['mrr']:.4f}" in latex
    assert main(["compare", *paths, "--format", "markdown"]) == 0
    assert "|---|---|" in capsys.readouterr().out


def test_every_format_keeps_what_stands_in_the_cells():
    rows = [["a_b", "50 %"], ["<x> & |y|", "±1"]]
    assert rendered(rows, "note", "markdown").splitlines()[2] == r"| <x> & \|y\| | ±1 |"
    assert r"a\_b & 50 \% \\" in rendered(rows, "note", "latex")
    assert r"$<$x$>$ \& |y| & $\pm$1 \\" in rendered(rows, "note", "latex")
    assert rendered(rows, "note", "text").splitlines()[2] == "<x> & |y|  ±1"

    found = []

    class Cells(HTMLParser):
        def handle_data(self, data):
            found.append(data)

    parser = Cells()
    parser.feed(rendered(rows, "note", "html"))
    assert [text for text in found if text.strip()][-5:] == ["a_b", "50 %", "<x> & |y|", "±1", "note"]
