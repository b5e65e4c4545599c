from __future__ import annotations

import itertools

import pytest

from bench.epochs import FIRST, SYSTEMS, Epochs, configurations, measure, table
from plr.data import prepare


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("epochs") / "data.txt"
    lines = [[f"u{user}", *(f"i{(user * 7 + step) % 24}" for step in range(5 + user % 9))] for user in range(40)]
    path.write_text("".join(" ".join(line) + "\n" for line in lines))
    return prepare(path)


def test_every_system_learns_every_target(dataset):
    configs = configurations(8, 4, [2], "unused")
    assert len(configs) == 3 * len(SYSTEMS)
    found = measure(configs, dataset, targets=16, share=1.0, rounds=2, clock=itertools.count().__next__)
    targets = len(dataset.target_positions("train"))
    for name, each in found.items():
        assert len(each["seconds"]) == 2
        assert abs(each["steps"] * 16 / targets - 1) < 0.3, name
    # The clock ticks once a turn, and a turn has all targets: nothing is scaled.
    assert {second for each in found.values() for second in each["seconds"]} == {1.0}
    assert found[FIRST]["ratio"] == 1
    assert found["ERL, sequence"]["positions"] < found["ERL, sequence, 2 a row"]["positions"]
    assert found["ERL, sequence, 2 a row"]["positions"] < found["ERL, prefix"]["positions"]
    assert len(table(found)) == 2 + len(configs)


def test_a_share_of_an_epoch_is_scaled_to_the_whole(dataset):
    ticks = itertools.count()
    system = Epochs(configurations(8, 4, [], "unused", [])[FIRST], dataset, 16, 0.25, lambda: next(ticks))
    system.turn()
    steps = round(len(system.order) / 4)
    assert system.steps == steps
    assert abs(system.seconds[0] * steps / len(system.order) - 1) < 0.1
