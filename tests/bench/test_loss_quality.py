from __future__ import annotations

import json
import sys

import pytest
import torch

from bench import loss_quality
from bench.loss_quality import LOSSES, POINTS, Training, configuration, generated, main
from plr.inputs import load_dataset


@pytest.fixture(autouse=True)
def _threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_learns(loss, tmp_path):
    config = configuration(generated(tmp_path, 300), loss)
    training = Training(config, load_dataset(config))
    before = training.model.items.embedding.weight.detach().clone()
    training.until(1e-9)
    assert training.steps == 1  # a step is not divided
    for _ in range(3 * len(training.order)):
        training._step(next(training._batches))
    assert training.targets >= 3 * training.all_targets
    assert not torch.equal(before, training.model.items.embedding.weight)


def test_steps_sample_other_items(tmp_path):
    config = configuration(generated(tmp_path, 300), "gbce, uniform, 256")
    training = Training(config, load_dataset(config))
    sampler, drawn = training.model.sampler, []
    draw = sampler.draw
    sampler.draw = lambda targets: drawn.append(draw(targets)) or drawn[-1]
    for _ in range(2):
        training._step(next(training._batches))
    (first, _), (second, _) = drawn
    assert not torch.equal(first, second)


def test_every_ranking_is_recorded_and_a_finished_loss_is_left(tmp_path, monkeypatch, capsys):
    out = tmp_path / "record.json"
    arguments = ["--items", "300", "--minutes", "0.002", "--rows", "20", "--out", str(out)]
    first, second, _ = LOSSES
    monkeypatch.setattr(sys, "argv", ["loss_quality", *arguments, "--losses", first, second])
    ranked, told = loss_quality.ranked, []

    def interrupted(*given):
        told.append(len(json.loads(out.read_text())["runs"]) if out.exists() else 0)
        if len(told) == POINTS + 3:
            raise KeyboardInterrupt
        return ranked(*given)

    monkeypatch.setattr(loss_quality, "ranked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main()
    runs = json.loads(out.read_text())["runs"]
    one, other = runs.values()
    assert [len(one["points"]), len(other["points"])] == [POINTS, 2]
    assert [point["minutes"] for point in one["points"]] == sorted(point["minutes"] for point in one["points"])
    assert {"items", "targets_an_epoch", "rows_ranked", "hours_an_epoch"} <= one.keys()
    main()
    again = json.loads(out.read_text())["runs"]
    assert next(iter(again.values())) == one
    assert {len(run["points"]) for run in again.values()} == {POINTS}
    assert told[:1] == [0]
    assert len(told) == POINTS + 3 + POINTS
