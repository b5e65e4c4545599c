"""Options check themselves, say what they accept, and stand at one place each."""

import inspect
import re
from dataclasses import fields

import pytest

from plr.config import Config, read_fields, without_derived
from plr.errors import ConfigError
from plr.options import EncoderOptions, LARESPostTrainingOptions, Options, PLROptions, PRLOptions, TrainingOptions
from plr.presets import preset_path, preset_summaries

OPTIONS = [kind for kind in Config.__mro__ if issubclass(kind, Options) and kind not in (Config, Options)]


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (PLROptions, {"streams": 0}, "streams must be at least 1; found 0"),
        (PLROptions, {"streams": 1.5}, "streams must be a whole number; found 1.5"),
        (PLROptions, {"kl_weight": float("inf")}, "kl_weight must be a finite number, 0 or more; found inf"),
        (PLROptions, {"gate": 1}, "gate must be true or false; found 1"),
        (PRLOptions, {"temperature_scale": 0.5}, "temperature_scale must be a finite number, 1 or more; found 0.5"),
        (LARESPostTrainingOptions, {"rollouts": 1}, "rollouts must be at least 2: a rollout is judged by the others"),
        (EncoderOptions, {"dim": 6, "heads": 4}, "heads must be a divisor of dim=6; found 4"),
        (EncoderOptions, {"input_dropout": 1}, "input_dropout must be in [0, 1); found 1.0"),
        (Config, {"ks": [0, 5]}, "ks must be positive; found (0, 5)"),
        (Config, {"seed": 2**63}, "seed must be below 2^63; found 9223372036854775808"),
        (TrainingOptions, {"warmup_steps": -1}, "warmup_steps must be 0 or more; found -1"),
        (TrainingOptions, {"accumulate_batches": 0}, "accumulate_batches must be at least 1; found 0"),
        (TrainingOptions, {"optimizer": "sgd"}, "optimizer must be one of adam, adamw; found 'sgd'"),
        (TrainingOptions, {"schedule": "step"}, "schedule must be one of constant, linear, cosine; found 'step'"),
        (
            TrainingOptions,
            {"optimizer": "adamw", "lr": 0.1, "weight_decay": 10},
            "weight_decay must be below 1 / lr = 10 for optimizer 'adamw', which takes lr times it off each weight; f",
        ),
        (TrainingOptions, {"average_weights": 1}, "average_weights must be in [0, 1); found 1.0"),
        (Config, {"temperature": 0}, "temperature must be a finite number above 0; found 0.0"),
        (Config, {"backbone": "gru"}, "backbone must be one of "),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_the_options_and_by_the_configuration(kind, wrong, message):
    for refusing in (kind, Config):
        with pytest.raises(ConfigError, match=re.escape(message)):
            refusing(**wrong)


def test_every_option_has_one_place_with_a_default_and_a_help_text():
    found = {}
    for options in OPTIONS:
        own = list(inspect.get_annotations(options))
        documented = re.findall(r"^ {8}(\w+): ", options.__doc__, re.MULTILINE)
        assert documented == own, options
        for name in own:
            assert name not in found, f"{name} is an option of {options} and of {found[name]}"
            found[name] = options
    assert found.keys() == {each.name for each in fields(Config)} - {"provenance"}


def test_a_configuration_is_an_object_of_every_kind_of_options():
    config = Config(streams=3, dim=8)
    assert isinstance(config, PLROptions)
    assert isinstance(config, EncoderOptions)
    assert (config.streams, config.dim) == (3, 8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"method": "plr"}, "length"),
        ({"method": "base"}, "shuffled"),  # sequence rows are its default
        ({"method": "base", "batch_unit": "targets"}, "length"),
        ({"method": "plr", "training_rows": "sequence"}, "shuffled"),
        ({"method": "plr", "training_rows": "sequence", "batch_order": "length"}, "length"),
        ({"method": "plr", "batch_order": "shuffled"}, "shuffled"),
    ],
)
def test_sequences_are_shuffled_unless_batches_are_filled_by_targets(given, expected):
    assert Config(**given).batch_order == expected


WITHOUT_EFFECT = [
    ({"method": "plr", "min_context": 10}, "min_context needs sequence rows (training_rows 'sequence'), and these are"),
    ({"method": "plr", "min_context": 1}, "min_context needs sequence rows (training_rows 'sequence'), and these are"),
    ({"method": "base", "training_rows": "prefix", "batch_unit": "targets"}, "batch_unit needs sequence rows"),
    (
        {"method": "plr", "consistency_weight": 0, "divergence_share": 0.5},
        "divergence_share needs kl_weight or consistency_weight above 0; found 0.5",
    ),
    ({"method": "base", "divergence_share": 0.5, "kl_weight": 1}, "divergence_share needs consistency_weight above 0"),
    ({"method": "plr", "contrastive_negatives": "others"}, "contrastive_negatives needs contrastive_weight above 0; f"),
    ({"method": "plr", "load_weight": 0.1, "gate": False}, "load_weight needs the gate; found 0.1"),
    ({"method": "prl", "divergence_share": 0.5}, "divergence_share needs a divergence: sasrec + prl has none; found"),
    ({"negatives": 64}, "negatives needs a loss that samples items: loss sampled_softmax, bce or gbce; found 64"),
    ({"sampler": "popularity"}, "sampler needs a loss that samples items: loss sampled_softmax, bce or gbce; found 'p"),
    ({"sparse_adam": False}, "sparse_adam needs a loss that samples items"),
    ({"loss": "bce", "method": "base", "logq": False}, "logq needs loss sampled_softmax: the others have no correct"),
    ({"loss": "bce", "method": "base", "gbce_t": 0.5}, "gbce_t needs loss gbce; found 0.5"),
    ({"optimizer": "adamw"}, "optimizer needs weight_decay above 0: without one adamw is adam; found 'adamw'"),
    ({"method": "plr", "kl_limit": 0.5}, "kl_limit needs kl_weight above 0; found 0.5"),
    ({"method": "erl", "kl_weight": 0, "kl_limit": 2}, "kl_limit needs kl_weight above 0; found 2.0"),
    ({"method": "plr", "streams": 1, "kl_weight": 0.3}, "kl_weight needs several states: streams or steps; found 0.3"),
    ({"method": "plr", "reasoning": False, "streams": 1, "kl_weight": 0.3}, "kl_weight needs several states: stre"),
    ({"method": "plr", "contrastive_temperature": 0.5}, "contrastive_temperature needs contrastive_weight above 0; fo"),
    (
        {"method": "lares", "trajectory_weight": 0, "step_weight": 0, "contrastive_temperature": 0.5},
        "contrastive_temperature needs trajectory_weight or step_weight above 0; found 0.5",
    ),
    (
        {"method": "prl", "progressive_weight": 0, "temperature_scale": 2},
        "temperature_scale needs progressive_weight a",
    ),
    ({"method": "prl", "contrastive_weight": 0, "noise": 0.1}, "noise needs contrastive_weight above 0; found 0.1"),
    ({"method": "prl", "contrastive_weight": 0, "warmup_epochs": 5}, "warmup_epochs needs contrastive_weight above 0"),
    ({"method": "plr", "streams": 1, "load_weight": 0.1}, "load_weight needs several streams; found 0.1"),
    ({"method": "plr", "reasoning": False, "steps": 3}, "steps needs reasoning true: without it no step is taken; fo"),
    ({"method": "plr", "reasoning": False, "trigger_std": 0.1}, "trigger_std needs reasoning true: without it no step"),
    ({"method": "plr", "reasoning": False, "pooling": "last"}, "pooling needs several steps: the mean of one is the"),
    ({"method": "plr", "pooling": "last"}, "pooling needs several steps: the mean of one is the last; found 'last'"),
    (
        {"backbone": "unisrec", "text_vectors": "texts", "from_run": "run", "new_items": "neighbours"},
        "new_items needs items with vectors of their own: an inductive unisrec's are their texts; found 'neighbours'",
    ),
]


@pytest.mark.parametrize(("given", "message"), WITHOUT_EFFECT)
def test_an_option_that_would_do_nothing_is_refused_unless_a_run_has_it(given, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(**given)
    # A run of an earlier version may have it: it reads, and resumes, as what it did.
    run = Config(**given, provenance={"plr": "1.0"})
    name = message.split()[0]
    without = {other: value for other, value in given.items() if other != name}
    assert run.decisive() == Config(**without).decisive()
    run.save(tmp_path / "config.yaml")
    written = (tmp_path / "config.yaml").read_text()
    value = given[name]
    assert f"\n{name}: {value}\n" not in written
    (tmp_path / "config.yaml").write_text(re.sub(rf"(?m)^{name}: .*", f"{name}: {value}", written))
    assert Config.load(tmp_path / "config.yaml").decisive() == run.decisive()
    fields_of_run = read_fields(tmp_path / "config.yaml")
    assert fields_of_run[name] == value
    del fields_of_run["provenance"]
    assert Config(**without_derived(fields_of_run)).decisive() == run.decisive()


def test_the_older_default_of_min_context_does_nothing_with_prefix_rows():
    """Runs of the bare backbone have it in their config.yaml."""
    given = Config(method="base", training_rows="prefix", min_context=1)
    assert given.decisive() == Config(method="base", training_rows="prefix").decisive()


@pytest.mark.parametrize(
    "given",
    [
        {"method": "plr", "training_rows": "sequence", "min_context": 10, "batch_unit": "targets"},
        {"method": "plr", "min_context": 38},  # what a run's config.yaml holds
        {"method": "base", "training_rows": "prefix", "min_context": 38},
        {"method": "erl", "divergence_share": 0.5},
        {"method": "plr", "consistency_weight": 0.1, "divergence_share": 0.5},
        {"method": "plr", "kl_weight": 0.0, "kl_limit": 0.0},  # no limit on nothing, as --preset plr-paper has it
        {"method": "plr", "mixture": "states", "streams": 1, "steps": 1, "kl_weight": 0.1},  # its default
        {"method": "plr", "streams": 1, "steps": 2, "kl_weight": 0.3, "kl_limit": 0.5},
        {"method": "plr", "streams": 1, "fast_state": "component", "load_weight": 0.1},
        {"method": "plr", "contrastive_weight": 0.1, "contrastive_temperature": 0.5},
        {"method": "plr", "steps": 2, "pooling": "last"},
        {"method": "plr", "reasoning": False, "mixture": "states", "steps": 2, "trigger_std": 0.02},  # its defaults
        {"method": "prl", "progressive_weight": 0.0, "noise": 0.1, "warmup_epochs": 5},
        {"method": "lares", "trajectory_weight": 0.0, "contrastive_temperature": 0.5},
        {
            "backbone": "unisrec",
            "unisrec_mode": "transductive",
            "text_vectors": "texts",
            "from_run": "run",
            "new_items": "neighbours",
        },
    ],
)
def test_what_has_an_effect_or_is_the_default_is_taken(given):
    config = Config(**given)
    assert {name: getattr(config, name) for name in given} == given


SAMPLED = {"loss": "sampled_softmax"}
APART = [
    ({**SAMPLED, "method": "lares"}, "loss must be softmax for method 'lares' on backbone 'sasrec'; found 'sam"),
    ({**SAMPLED, "method": "base", "backbone": "bert4rec-cloze"}, "loss must be softmax for method 'base' on backbone"),
    ({"loss": "bce", "method": "plr"}, "loss must be softmax or sampled_softmax for mixture 'distributions'"),
    ({"loss": "gbce", "method": "base", "sampler": "popularity"}, "sampler must be uniform for loss 'gbce', the power"),
    ({**SAMPLED, "weight_decay": 0.1}, "weight_decay must be 0 with sparse_adam, which would decay only the items"),
]


@pytest.mark.parametrize(("given", "message"), APART)
def test_losses_on_sampled_items_that_do_not_go_with_the_rest_are_refused(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(**given)


@pytest.mark.parametrize(
    "given",
    [
        {**SAMPLED, "weight_decay": 0.1, "sparse_adam": False},
        {**SAMPLED, "sampler": "popularity", "devices": 2},
        {"loss": "bce", "method": "plr", "mixture": "states", "sampler": "mixed"},
        {"loss": "gbce", "method": "prl", "gbce_t": 1.0},
    ],
)
def test_losses_on_sampled_items_that_do_are_taken(given):
    config = Config(**given)
    assert {name: getattr(config, name) for name in given} == given


def test_the_mixture_of_distributions_is_consistent_and_takes_one_step_by_default(tmp_path):
    weights = [Config(**given).consistency_weight for given in ({}, {"mixture": "states"}, {"method": "base"})]
    assert weights == [1, 0, 0]
    steps = [Config(**given).steps for given in ({}, {"mixture": "states"}, {"method": "erl"}, {"steps": 3})]
    assert steps == [1, 2, 2, 3]
    # A run of a version without the option had none.
    path = tmp_path / "config.yaml"
    path.write_text("method: plr\nmixture: distributions\nprovenance: {plr: 1.0}\n")
    assert Config.load(path).consistency_weight == 0


def test_runs_of_earlier_versions_had_batches_of_like_length(tmp_path):
    path = tmp_path / "config.yaml"
    for provenance, expected in ("{plr: 1.0}", "length"), ("null", "shuffled"):
        line = "" if provenance == "null" else f"provenance: {provenance}\n"
        path.write_text(f"method: base\n{line}")
        assert Config.load(path).batch_order == expected


def test_going_on_from_a_post_trained_run_is_refused_for_what_it_is():
    """Not for the lack of --init, with which it would be refused as well."""
    with pytest.raises(ConfigError, match="from_run is not for phase 'rpt'"):
        Config(method="lares", phase="rpt", from_run="run")


@pytest.mark.parametrize("preset", preset_summaries())
def test_a_preset_for_dot_products_leaves_cosines_their_temperature(preset):
    """At temperature 1 no item of V could have a probability above 1 / (1 + (V - 1) exp(-2))."""
    given = read_fields(preset_path(preset)) | {"backbone": "unisrec", "text_vectors": "texts"}
    if given.get("phase") == "rpt":
        given["init"] = "run"
    assert Config(**given).temperature == 0.07
