"""What the tables and figures measure, against its definition on small models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from plr.config import Config
from plr.data import prepare
from plr.models import IdItemEncoder, SequenceEncoder
from plr.models.methods.plr import PLRRecommender
from plr.options import EncoderOptions, PLROptions
from plr.reproduce import paper, table4
from plr.reproduce.estimate import seconds_of_run
from plr.reproduce.figure3 import thinned_rows
from plr.reproduce.figure4 import alternatives
from plr.reproduce.figure5 import _map_plot, attention_of, jensen_shannon
from plr.reproduce.learning_curves import learning_curve
from plr.reproduce.request import Request
from plr.reproduce.study import Run, Study, System
from plr.reproduce.table4 import PAPER_ITEMS, _latency, _operations, flops, paper_config
from plr.reproduce.theory.contraction import local_lipschitz, losses_by_steps, step_functions
from plr.reproduce.theory.ensemble import gain_by_user, gaps, rank_correlation, smallest_distance
from plr.runs import RunFolder
from plr.serving.engine import Engine
from plr_kernels import use_backend
from tests.plr.models.helpers import random_batch

ITEMS, STREAMS, STEPS = 29, 3, 2


@pytest.fixture(scope="module")
def model():
    encoder = SequenceEncoder(EncoderOptions(dim=8, ffn_dim=8, layers=2), causal=True)
    torch.manual_seed(0)
    made = PLRRecommender(IdItemEncoder(ITEMS, 8), encoder, PLROptions(streams=STREAMS, steps=STEPS))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.double().eval()


def test_the_table_of_operations_names_the_streams_and_steps_that_it_counts():
    rows = {row[0]: row[2] for row in _operations().rows}
    assert list(rows)[2:] == ["PLR as printed, M = 2, T = 2", "PLR (mixture), M = 2, T = 1"]
    # One more product of a state with the table of all items, and a step for each of two streams.
    second = 2 * PAPER_ITEMS * 256
    base = flops(paper_config("base"), PAPER_ITEMS, every_position=True)
    step = (flops(paper_config("plr-states"), PAPER_ITEMS, every_position=True) - base) / 2
    assert float(rows["PLR (mixture), M = 2, T = 1"].strip("%")) == pytest.approx(100 * (second + step) / base, abs=0.1)


def test_latency_is_the_engine_s_where_there_is_one_and_kept_as_such(tmp_path, monkeypatch):
    pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")
    made = []
    monkeypatch.setattr(table4, "PAPER_ITEMS", 300)
    monkeypatch.setattr(table4, "Engine", lambda model: made.append(model) or Engine(model))

    def latency():
        made.clear()
        return _latency(Study(Request(("table4",), out=str(tmp_path))))

    by_engine = latency()
    assert "by the inference engine;" in by_engine.note
    assert len(made) == len(table4.METHODS)
    assert latency().rows == by_engine.rows  # kept
    assert not made
    with use_backend("reference"):
        by_pytorch = latency()
    assert "by PyTorch, as the chosen backend is reference;" in by_pytorch.note
    assert by_pytorch.rows != by_engine.rows  # what the engine took is not shown for it
    assert not made


def test_each_system_is_the_first_to_answer_as_often_as_the_others(monkeypatch):
    answered = []
    monkeypatch.setattr(table4, "build_model", lambda config, items: torch.nn.Identity())
    names: list[str] = []

    def answer(*_):
        name = f"system {len(names)}"
        names.append(name)
        return lambda: answered.append(name)

    monkeypatch.setattr(table4, "_answer", answer)
    configs = {method: paper_config(method) for method in table4.METHODS}
    table4._timed(configs, 9, rounds=6)  # and two to warm up
    assert [answered[start] for start in range(0, len(answered), 4)] == names + names
    assert all(sorted(answered[start : start + 4]) == names for start in range(0, len(answered), 4))


@pytest.mark.parametrize("method", ["erl", "plr-states"])
def test_operations_grow_as_the_paper_says(method):
    """Table 4: within .2 points, norms and biases not being counted here."""
    base, other = (flops(paper_config(each), PAPER_ITEMS, every_position=True) for each in ("base", method))
    assert 100 * (other / base - 1) == pytest.approx(paper.TABLE_4[method][1], abs=0.2)
    assert base == pytest.approx(paper.TABLE_4["base"][0], rel=0.01)


def test_the_last_layer_at_the_last_position_is_less_work():
    config = paper_config("base")
    assert flops(config, 100, every_position=False) < flops(config, 100, every_position=True)


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce"])
@pytest.mark.parametrize("method", ["base", "prl"])
def test_how_long_a_run_takes_is_estimated_whatever_its_loss(quick, loss, method):
    config = Config(**quick, method=method, loss=loss)
    assert 0 < seconds_of_run(config, prepare(config.data), RunFolder(Path(config.out))) < 600


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.99])
def test_a_share_of_each_history_goes_and_never_all_of_it(small_data, rate):
    dataset = prepare(small_data)
    whole, thinned = dataset.rows("test", 100), thinned_rows(dataset, rate, 100)
    every = torch.arange(len(whole))
    before, after = whole.batch(every), thinned.batch(every)
    assert torch.equal(before.targets, after.targets)
    for row in range(len(whole)):
        size, kept = int(before.lengths[row]), int(after.lengths[row])
        assert size - kept == min(round(rate * size), size - 1)
        rest = iter(before.item_ids[row, :size].tolist())
        assert all(item in rest for item in after.item_ids[row, :kept].tolist())  # a subsequence


def test_what_goes_at_a_lower_rate_goes_at_a_higher_one_and_the_seed_decides(small_data):
    dataset = prepare(small_data)
    every = torch.arange(len(dataset.rows("test", 100)))
    some, more, again, other = (
        thinned_rows(dataset, rate, 100, seed).batch(every).item_ids
        for rate, seed in ((0.2, 0), (0.5, 0), (0.2, 0), (0.2, 1))
    )
    assert torch.equal(some, again)
    assert not torch.equal(some, other)
    # Items of a walk round the ring differ, but for its second turn.
    assert all(set(few) <= set(many) | {0} for few, many in zip(more.tolist(), some.tolist(), strict=True))


def test_the_model_sees_the_last_of_what_stays(small_data):
    dataset = prepare(small_data)
    long, short = (thinned_rows(dataset, 0.2, length).batch(torch.tensor([0])) for length in (100, 2))
    assert short.item_ids[0].tolist() == long.item_ids[0, int(long.lengths[0]) - 2 : int(long.lengths[0])].tolist()


def test_gaps_are_those_of_the_written_out_distributions():
    torch.manual_seed(0)
    states, items = torch.randn(5, STREAMS, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    gates = torch.rand(5, STREAMS, dtype=torch.float64)
    gates /= gates.sum(1, keepdim=True)
    targets = torch.randint(7, (5,))
    found = gaps(states, gates.log(), items, targets, 0.7)
    for n in range(5):
        p = [torch.softmax(states[n, m] @ items.T / 0.7, dim=0) for m in range(STREAMS)]
        y, g = targets[n], gates[n]
        uniform, gated = sum(p) / STREAMS, sum(g[m] * p[m] for m in range(STREAMS))
        pairs = [(a, b) for a in range(STREAMS) for b in range(STREAMS) if a != b]
        divergence = [(p[a] * (p[a].log() - p[b].log())).sum() for a, b in pairs]
        expected = {
            "uniform": -uniform[y].log(),
            "gated": -gated[y].log(),
            "member": -sum(each[y].log() for each in p) / STREAMS,
            "gated_member": -sum(g[m] * p[m][y].log() for m in range(STREAMS)),
            "expected_gap": (uniform * (uniform.log() - sum(each.log() for each in p) / STREAMS)).sum(),
            "pairwise_kl": sum(divergence) / len(pairs),
            "diversity": sum((states[n, a] - states[n, b]).square().sum() for a, b in pairs) / len(pairs),
            "information": sum(g[m] * (p[m] * (p[m].log() - gated.log())).sum() for m in range(STREAMS)),
        }
        for name, value in expected.items():
            torch.testing.assert_close(found[name][n], value, rtol=1e-10, atol=1e-12, msg=name)
    assert (found["member"] >= found["uniform"] - 1e-12).all()  # Theorem 4.1
    assert (found["gated_member"] >= found["gated"] - 1e-12).all()  # the proof of Theorem 4.6 has it the other way
    assert (found["expected_gap"] <= (STREAMS - 1) / STREAMS * found["pairwise_kl"] + 1e-12).all()  # of Proposition 4.2


def test_equal_streams_gain_nothing():
    states = torch.randn(3, 1, 4).expand(-1, STREAMS, -1)
    found = gaps(states, torch.full((3, STREAMS), -math.log(STREAMS)), torch.randn(7, 4), torch.tensor([0, 1, 2]), 1.0)
    for name in ("expected_gap", "pairwise_kl", "diversity", "information"):
        torch.testing.assert_close(found[name], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_tied_values_have_their_mean_rank():
    one, other = np.array([1.0, 1.0, 2.0, 3.0]), np.array([4.0, 5.0, 5.0, 6.0])
    # Ranks 1.5 1.5 3 4 and 1 2.5 2.5 4, each with the variance 1.125: their covariance is .9375 of n = 4.
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 0, 3, 1]):
        assert rank_correlation(one[order], other[order]) == pytest.approx(0.9375 / 1.125)
    assert math.isnan(rank_correlation(np.ones(4), other))


def test_a_gain_is_tested_over_users_however_many_rows_they_have():
    gains = np.array([0.1, 0.3, 0.2])
    once = gain_by_user(gains, np.array([3, 5, 9]))
    assert once[0] == 3
    assert once[1][0] == "+0.2000"
    many = np.array([3] * 50 + [5] + [9] * 7)  # the mean over rows would be .115, and p that of 58 rows
    assert gain_by_user(gains[np.searchsorted([3, 5, 9], many)], many) == once
    assert gain_by_user(gains, np.array([3, 3, 3])) == (1, [None, None, None])


def test_the_smallest_distance_is_found_across_blocks():
    items = torch.randn(1500, 3) * 100
    items[1400] = items[3] + torch.tensor([0.0, 0.5, 0.0])
    assert smallest_distance(items) == pytest.approx(0.5, rel=1e-3)


def test_steps_as_functions_give_the_models_states_and_their_norms_are_those_of_the_jacobian(model):
    batch = random_batch()
    table = model.item_table()
    with torch.no_grad():
        outcome = model.run(batch)
    functions = step_functions(model, batch, table)
    assert len(functions) == STEPS
    for t, (function, state) in enumerate(functions):
        torch.testing.assert_close(function(state), outcome.states[:, :, t], rtol=1e-12, atol=1e-12)
    for function, state in functions[1:]:
        found = local_lipschitz(function, state.detach(), iterations=100).detach()
        for row, stream in ((0, 0), (len(batch) - 1, STREAMS - 1)):

            def own(vector, row=row, stream=stream, function=function, state=state):
                replaced = state.clone()
                replaced[row, stream] = vector
                return function(replaced)[row, stream]

            jacobian = torch.autograd.functional.jacobian(own, state[row, stream].detach())
            largest = float(torch.linalg.svdvals(jacobian)[0])
            assert float(found[row, stream]) == pytest.approx(largest, rel=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("fast_state", ["none", "added", "component"])
def test_a_model_that_ends_after_all_its_steps_has_its_own_losses(pooling, fast_state):
    """With the last step's states or h_0 in its streams, too: they were always the mean of the steps alone."""
    torch.manual_seed(0)
    encoder = SequenceEncoder(EncoderOptions(dim=8, ffn_dim=8, layers=1), causal=True)
    options = PLROptions(streams=STREAMS, steps=STEPS, pooling=pooling, fast_state=fast_state)
    model = PLRRecommender(IdItemEncoder(ITEMS, 8), encoder, options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model, batch = model.double().eval(), random_batch()
    with torch.no_grad():
        table, outcome = model.item_table(), model.run(batch)
        found = losses_by_steps(model, outcome, table, batch.targets)
        scores = model.scorer(batch, table).scores(table)
    assert len(found) == STEPS
    own = -torch.log_softmax(scores, dim=1).gather(1, batch.targets[:, None])[:, 0]
    torch.testing.assert_close(found[-1]["gated"], own)
    assert not torch.allclose(found[0]["gated"], own)


def test_attention_is_aligned_at_the_most_recent_item(model):
    batch = random_batch()
    weights = attention_of(model, batch)
    outcome = model.run(batch, with_attention=True)
    for row, length in enumerate(batch.lengths.tolist()):
        raw = outcome.attention[1][0][row, 0, 2, :length]  # step 2, layer 1, head 1, stream 3
        torch.testing.assert_close(weights[row, 0, 0, 2, 1, :length], raw.flip(0))
        assert not weights[row, ..., length:].any()


def test_the_divergence_of_maps_is_none_for_equal_and_whole_for_disjoint_ones():
    equal = torch.tensor([[0.2, 0.8, 0.0], [0.2, 0.8, 0.0]])
    disjoint = torch.eye(4)
    assert float(jensen_shannon(equal)) == pytest.approx(0, abs=1e-7)
    assert float(jensen_shannon(disjoint)) == pytest.approx(2)


def test_an_oracle_chooses_among_every_step_and_stream(model):
    batch = random_batch()
    table = model.item_table()
    with torch.no_grad():
        found = list(alternatives(model, batch, table))
        outcome = model.run(batch)
    kinds = [kind for kind, _ in found]
    assert kinds.count("steps") == STEPS
    assert kinds.count("streams") == STREAMS
    assert kinds.count("steps and streams") == STEPS * STREAMS
    streams = [scorer.states for kind, scorer in found if kind == "streams"]
    torch.testing.assert_close(torch.stack(streams, dim=1), outcome.streams)
    assert np.isfinite(found[0][1].scores(table).detach().numpy()).all()


def test_a_resumed_runs_curve_is_whole_and_the_later_figure_counts(tmp_path):
    # Two logs; the epoch that was interrupted after validation (1) was run again. Training's own lines have no metric.
    for version, lines in (("version_9", "0,0.1\n0,\n1,0.2\n"), ("version_10", "1,0.25\n2,0.3\n")):
        folder = tmp_path / "logs" / "csv" / version
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("epoch,ndcg@10\n" + lines)

    assert learning_curve(RunFolder(tmp_path)) == {1: 0.1, 2: 0.25, 3: 0.3}


@pytest.mark.parametrize("cut", ["", "epoch,nd", "epoch,loss\n0,1.5\n", "epoch,ndcg@10\n0,0.1\n1,0.2"])
def test_a_log_that_a_kill_cut_off_counts_as_far_as_it_goes(tmp_path, cut):
    for number, content in enumerate((cut, "epoch,ndcg@10\n2,0.25\n")):
        folder = tmp_path / "logs" / "csv" / f"version_{number}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(content)
    assert learning_curve(RunFolder(tmp_path)) == ({1: 0.1, 3: 0.25} if "0,0.1" in cut else {3: 0.25})


def test_a_user_whose_id_looks_like_a_formula_is_drawn():
    maps = {r"$\frac$": [[[0.5, 0.25]]], "$x": [[[0.5, 0.25]]]}
    plot = _map_plot("figure5", "caption", maps, Run(System("sasrec", "plr"), 0))
    assert plot.svg.count("</svg>") == 1
    assert plot.data.rows[0][0] == r"$\frac$"
