"""What docs/systems.md says of LARES' post-training: the measurement in small, and the committed table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.lares_reward import RESULTS, SETTINGS, change, run, table, training_rows


def test_the_published_setting_raises_the_reward_of_the_rows_it_is_given(tmp_path):
    """Ten steps on 64 rows, five seeds of everything random: the mean rise is more than three standard errors.

    The rewards are those of rollouts that training did not see, before and after; of recall, with both terms of the
    loss. Beside that the first term takes the rollouts of a row apart, whatever the seed.
    """
    rows = training_rows(tmp_path, users=40)
    settings = {"published": replace(SETTINGS["published"], steps=10)}
    records = []
    for seed in range(5):
        records += run(rows, seed, settings, [("both", "recall")], epochs=6, rollouts=16)
    assert [record["rows"] for record in records] == [64] * 5
    # As the rows were chosen, by other rollouts: there is something to rise and something to fall.
    assert all(0.2 < record["before"]["recall, rollouts"] < 0.8 for record in records)
    rise, error = change(records, "recall, rollouts")
    assert rise > 3 * error, (rise, error)
    assert change(records, "recall, T_0")[0] > 0
    assert all(record["after"]["log_p_spread"] > record["before"]["log_p_spread"] for record in records)


def test_changes_and_their_standard_errors():
    records = [{"before": {"a": 1.0}, "after": {"a": 1.0 + step}} for step in (1.0, 2.0, 6.0)]
    mean, error = change(records, "a")
    assert mean == pytest.approx(3.0)
    assert error == pytest.approx((7 / 3) ** 0.5)  # deviations 2, 1, 3: variance 14 / 2


def test_the_committed_table_is_that_of_its_record():
    record = json.loads((RESULTS / "lares_reward.json").read_text())
    assert (RESULTS / "lares_reward.md").read_text() == table(record["runs"])
