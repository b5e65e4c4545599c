"""PLR as a mixture of distributions: its loss and ranking against the formulas, h_0's parts, two views, former runs."""

import math

import pytest
import torch

from plr.config import Config
from plr.errors import ConfigError
from plr.evaluation import rank_rows
from plr.models.methods.plr import PLRRecommender
from plr_kernels import use_backend
from tests.plr.models import published
from tests.plr.models.helpers import (
    assert_backends_agree,
    assert_equal_gradients,
    assert_every_parameter_learns,
    bidirectional,
    close,
    random_batch,
    scored_by_cosine,
    small_config,
    small_model,
    total,
)


def mixture(outcome, components, table, temperature):
    """p(v) = Σ_m g_m p_m(v), [B, V]."""
    return sum(
        outcome.gates[:, m, None] * published.softmax(components[:, m] @ table.T / temperature)
        for m in range(components.shape[1])
    )


def components_of(outcome, pooling, fast_state):
    pooled = outcome.states.sum(dim=2) / outcome.states.shape[2] if pooling == "mean" else outcome.states[:, :, -1]
    if fast_state == "added":
        return pooled + outcome.fast[:, None]
    return torch.cat([pooled, outcome.fast[:, None]], dim=1) if fast_state == "component" else pooled


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("fast_state", ["none", "added", "component"])
def test_loss_gradients_and_scores_are_those_of_the_mixture(pooling, fast_state):
    model = small_model(streams=3, pooling=pooling, fast_state=fast_state, temperature=0.7)
    batch = random_batch()
    outcome, table = model.run(batch), model.item_table()
    p = mixture(outcome, components_of(outcome, pooling, fast_state), table, 0.7)
    close(p.sum(dim=1), torch.ones(4, dtype=torch.float64))
    losses = model.losses(batch)
    assert list(losses) == ["next_item"]
    expected = -torch.log(p[torch.arange(4), batch.targets]).mean()
    close(losses["next_item"], expected)
    assert_equal_gradients(model, losses["next_item"], expected)
    close(model.scores(batch), torch.log(p))


def test_weights_are_the_gates_softmax_or_equal_without_one():
    outcome = small_model(streams=3, fast_state="component").run(random_batch())
    assert outcome.gates.shape == (4, 4)
    close(outcome.gates, torch.softmax(outcome.gate_scores, dim=1))
    assert outcome.gate_scores.std() > 0.1
    without = small_model(streams=3, gate=False, fast_state="component").run(random_batch())
    assert without.gates.tolist() == [[0.25] * 4] * 4


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_ranks_and_best_items_are_those_of_the_mixture(exclude_seen):
    model = small_model(streams=3, temperature=0.7).eval()
    batch = random_batch()
    with use_backend("reference"):
        ranking = rank_rows(model, [batch], exclude_seen=exclude_seen)
        scores = model.scores(batch).clone()
        own = scores.gather(1, batch.targets[:, None])
        if exclude_seen:
            for row, length in enumerate(batch.lengths.tolist()):
                scores[row, batch.item_ids[row, :length]] = -torch.inf
            scores.scatter_(1, batch.targets[:, None], own)
        assert ranking.ranks.tolist() == (1 + (scores > own).sum(dim=1)).tolist()
        best, ids = model.scorer(batch).top_items(model.item_table(), 5)
        close(best, model.scores(batch).topk(5).values)
        assert torch.equal(ids, model.scores(batch).topk(5).indices)


def test_cosine_scores_reach_the_mixture():
    model = scored_by_cosine(small_model(streams=2, temperature=0.3))
    batch = random_batch()
    outcome = model.run(batch)
    unit = torch.nn.functional.normalize(outcome.streams, dim=-1)
    p = mixture(outcome, unit, torch.nn.functional.normalize(model.item_table(), dim=-1), 0.3)
    close(model.losses(batch)["next_item"], -torch.log(p[torch.arange(4), batch.targets]).mean())
    close(model.scores(batch), torch.log(p))


@pytest.mark.parametrize("mixing", ["distributions", "states"])
def test_consistency_draws_the_views_of_each_distribution_together(mixing):
    """R-Drop: both views predict, and their symmetric divergence counts with a plus sign."""
    model = small_model(
        streams=2, mixture=mixing, fast_state="none", consistency_weight=0.3, contrastive_weight=0.0, kl_weight=0.0,
        hidden_dropout=0.4,
    )  # fmt: skip
    batch = random_batch()
    torch.manual_seed(6)
    losses = model.losses(batch)
    torch.manual_seed(6)
    table = model.item_table()
    outcome = model._run(table, batch.item_ids.repeat(2, 1), batch.lengths.repeat(2))
    streams = outcome.streams if mixing == "distributions" else outcome.slow[:, None]
    p = published.softmax(streams @ table.T)  # [2B, C, V]
    weights = outcome.gates if mixing == "distributions" else torch.ones(8, 1, dtype=torch.float64)
    mixed = (weights[:, :, None] * p).sum(dim=1)
    close(losses["next_item"], -torch.log(mixed[torch.arange(8), batch.targets.repeat(2)]).mean())
    if mixing == "distributions":  # one stream of each history, the draws made after those of the dropout
        drawn = torch.multinomial(outcome.gates.unflatten(0, (2, 4)).mean(dim=0), 1)[:, 0]
        assert drawn.unique().tolist() == [0, 1]
        p = p[torch.arange(8), drawn.repeat(2)]
    else:
        p = p[:, 0]
    divergences = [
        (published.divergence(a, b) + published.divergence(b, a)) / 2 for a, b in zip(p[:4], p[4:], strict=True)
    ]
    close(losses["consistency"], 0.3 * torch.stack(divergences).mean())
    assert losses["consistency"] > 1e-3


def test_every_parameter_learns_on_both_kinds_of_encoder():
    for wrap in (lambda model: model, bidirectional):
        assert_every_parameter_learns(wrap(small_model(streams=3, fast_state="component")).train(), random_batch())


def test_equal_streams_stay_equal_and_the_default_start_keeps_them_apart():
    """Equal streams get equal gradients: symmetry has to be broken at the start."""
    batch = random_batch()
    cosine = {}
    for std in (0.0, None):
        model = small_model(spread=0.0, streams=2, trigger_std=std)
        one, two = model.run(batch).streams.unbind(1)
        cosine[std] = torch.nn.functional.cosine_similarity(one, two).mean().item()
    assert cosine[0.0] == pytest.approx(1.0)
    assert cosine[None] < 0.99


def test_gate_entropy_is_logged():
    model = small_model(streams=4, gate=False)
    model.losses(random_batch())
    assert model.extra_metrics["gate_entropy"].item() == pytest.approx(math.log(4), rel=1e-6)
    assert model.extra_metrics["load_entropy"].item() == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"fast_state": "component"}, {"mixture": "states"}], ids=str)
def test_the_load_term_is_zero_where_all_are_used_alike_and_pulls_there(options):
    model, batch = small_model(streams=3, load_weight=0.7, **options), random_batch()
    gates = model.run(batch).gates
    mean = [sum(column) / 4 for column in gates.T.tolist()]
    expected = 0.7 * (math.log(len(mean)) + sum(share * math.log(share) for share in mean))
    losses = model.losses(batch)
    assert list(losses)[-1] == "load"
    assert losses["load"].item() == pytest.approx(expected, rel=1e-9)
    torch.optim.SGD(model.parameters(), 1e-3).step(lambda: model.losses(batch)["load"].backward())
    assert model.losses(batch)["load"] < losses["load"]
    with torch.no_grad():
        for parameter in model.gate.parameters():
            parameter.zero_()
        if model.fast_gate is not None:
            for parameter in model.fast_gate.parameters():
                parameter.zero_()
    assert model.losses(batch)["load"].item() == pytest.approx(0, abs=1e-12)


def test_a_mixture_has_no_single_embedding():
    with pytest.raises(RuntimeError, match="a mixture of distributions has no single embedding"):
        small_model().user_embedding(random_batch())


@pytest.mark.parametrize("fast_state", ["none", "component"])
def test_backends_agree(fast_state):
    batch = random_batch()
    model = small_model(spread=0.2, fast_state=fast_state)
    assert_backends_agree(model, lambda model: total(model.losses(batch)))


class TestDefaults:
    def test_of_a_mixture_of_distributions(self):
        config = small_config()
        chosen = (config.mixture, config.streams, config.trigger_std, config.fast_state)
        assert chosen == ("distributions", 4, 1.0, "none")
        assert (config.kl_weight, config.contrastive_weight) == (0.0, 0.0)

    def test_of_a_mixture_of_states(self):
        config = small_config(mixture="states")
        assert (config.trigger_std, config.fast_state) == (0.02, "ranking")
        assert (config.kl_weight, config.contrastive_weight) == (0.1, 1.0)

    @pytest.mark.parametrize("method", ["erl", "prl"])
    def test_of_other_methods(self, method):
        config = small_config(method=method)
        assert (config.kl_weight, config.contrastive_weight) == (0.1, 1.0)

    @pytest.mark.parametrize(("mixing", "refused"), [("distributions", "ranking"), ("states", "component")])
    def test_parts_of_the_fast_state_that_do_not_fit(self, mixing, refused):
        with pytest.raises(ConfigError, match=f"fast_state must be one of .* for mixture {mixing}; found '{refused}'"):
            small_config(mixture=mixing, fast_state=refused)

    def test_a_run_of_before_the_option_mixes_states(self, tmp_path):
        path = tmp_path / "config.yaml"
        small_config(mixture="states").save(path)
        lines = [line for line in path.read_text().splitlines() if not line.startswith("mixture:")]
        path.write_text("\n".join(lines))
        assert Config.load(path).mixture == "states"  # provenance stands in every run's config.yaml
        path.write_text("method: plr\n")
        assert Config.load(path).mixture == "distributions"


def test_built_from_its_options_alone():
    config = small_config(streams=2)
    model = small_model(streams=2)
    assert isinstance(model, PLRRecommender)
    assert model.options.mixes_distributions == config.mixes_distributions


@pytest.mark.parametrize("mixing", ["distributions", "states"])
def test_without_reasoning_streams_are_linear_maps_of_the_fast_state(mixing):
    model = small_model(streams=3, reasoning=False, mixture=mixing)
    batch = random_batch()
    outcome = model.run(batch)
    assert outcome.states.shape == (4, 3, 1, outcome.fast.shape[1])
    for m, (weight, bias) in enumerate(zip(model.heads.weight.chunk(3), model.heads.bias.chunk(3), strict=True)):
        close(outcome.streams[:, m], outcome.fast @ weight.T + bias)
    names = {name for name, _ in model.named_parameters()}
    assert not any(name.startswith(("trigger", "step_embedding")) for name in names)
    assert_every_parameter_learns(small_model(streams=3, reasoning=False, mixture=mixing).train(), batch)


def test_streams_without_reasoning_start_as_large_as_the_fast_state():
    model = small_model(spread=0.0, streams=4, reasoning=False)
    outcome = model.run(random_batch())
    assert 0.3 < (outcome.streams.std() / outcome.fast.std()).item() < 3
