from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

from bench.summary import scores_of_runs
from bench.tuning import OWN, SHARED, SYSTEMS, chosen, drawn, settled
from plr.config import Config

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def test_the_first_trial_is_untuned_and_the_same_one_shares_its_values():
    assert drawn("base", 0) == {}
    for trial in range(1, 7):
        shared = [{name: drawn(method, trial)[name] for name in SHARED} for method in OWN]
        assert all(values == shared[0] for values in shared)


@pytest.mark.parametrize("method", OWN)
def test_values_of_a_field_come_equally_often(method):
    known = {field.name for field in fields(Config)}
    for name, values in (SHARED | OWN[method]).items():
        assert name in known
        counts = Counter(drawn(method, trial)[name] for trial in range(1, 1 + 4 * len(values)))
        assert counts == dict.fromkeys(values, 4)


def test_the_first_of_equally_good_trials_is_chosen():
    trials = [{"ndcg@10": value, "number": number} for number, value in enumerate((0.1, 0.3, 0.2, 0.3))]
    assert chosen(trials)["number"] == 1


def test_a_search_is_settled_when_its_second_half_found_nothing_better():
    for best, expected in ((0, True), (2, True), (3, False), (4, False)):
        values = [0.1] * 5
        values[best] = 0.2
        assert settled([{"ndcg@10": value, "number": number} for number, value in enumerate(values)]) is expected


def test_every_system_has_a_search_space_and_can_be_configured():
    assert set(OWN) == set(SYSTEMS)
    for values in SYSTEMS.values():
        Config(data="d", out="o", **values)


def test_the_committed_table_has_what_its_record_has():
    methods = json.loads((RESULTS / "tuning-beauty.json").read_text())["methods"]
    lines = (RESULTS / "tuning-beauty.md").read_text().splitlines()
    for name, found in methods.items():
        row = next(line for line in lines if line.startswith(f"| {name} |"))
        best = chosen(found["trials"])
        assert f"| {found['trials'][0]['ndcg@10']:.4f}, {best['ndcg@10']:.4f} |" in row
        assert " | ".join(scores_of_runs(found["final"])) in row
