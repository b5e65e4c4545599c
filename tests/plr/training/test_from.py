"""Runs that go on from others on newer data: what they begin with, exact resumes, the chain, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plr.cli import main
from plr.config import Config
from plr.data import prepare
from plr.errors import ConfigError, DataError
from plr.files import sha256_of
from plr.inputs import load_item_data
from plr.items import ItemData
from plr.models import build_model
from plr.runs import RunFolder
from plr.training import RunError, train
from plr.training.matching import NEAR
from plr.training.module import build_optimizer
from plr.training.parent import Parent, digest_of
from plr.training.start import Start
from tests.plr.training.test_resume import Killed, assert_equal_runs, killed_in_mid_epoch

SMALL = {"dim": 8, "ffn_dim": 8, "layers": 1, "max_length": 10, "epochs": 2, "batch_size": 64, "lr": 0.01,
         "hidden_dropout": 0.1, "attention_dropout": 0.1, "progress": False, "accelerator": "cpu",
         "threads": 1}  # fmt: skip
NEW = [f"i{number}" for number in range(4, 28)]  # 4 of the ring's items retire, 4 are new
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*items are known", "ignore:.*they share one learned vector", "ignore:.*was refit on its validation rows"
)


@pytest.fixture(scope="module")
def files(small_data, tmp_path_factory):
    """The old data; newer ones, of other items; features and text vectors of all of them."""
    folder = tmp_path_factory.mktemp("newer")
    walks = [[NEW[(user * 5 + step) % len(NEW)] for step in range(5 + user % 7)] for user in range(70)]
    walks[0] = [*walks[0][:-2], "only-held-out", walks[0][-1]]  # a validation target that training does not hold
    newer = folder / "newer.txt"
    newer.write_text("".join(f"u{user} {' '.join(walk)}\n" for user, walk in enumerate(walks)))
    kinds = {f"i{number}": {"kind": [f"k{number % 5}", f"z{number // 8}"]} for number in range(24)}
    (folder / "old.json").write_text(json.dumps(kinds))
    kinds |= {f"i{number}": {"kind": ["k2", "a-new-kind"]} for number in range(24, 28)}
    (folder / "newer.json").write_text(json.dumps(kinds))
    texts = folder / "texts.tsv"
    texts.write_text("item\ttext\n" + "".join(f"i{n}\tthing {n % 5} of {n % 3} and {n % 7}\n" for n in range(28)))
    assert main(["embed-text", str(texts), "--out", str(folder / "text"), "--dim", "4"]) == 0
    return {"old": str(small_data), "newer": str(newer), **{name: str(folder / name) for name in (
        "old.json", "newer.json", "text")}}  # fmt: skip


SYSTEMS = {
    "ids": ({"method": "plr", "streams": 2}, {}),
    "cloze": ({"backbone": "bert4rec-cloze", "method": "base"}, {}),
    "features": ({"method": "base", "features": "old.json"}, {"features": "newer.json"}),
    "text": ({"backbone": "unisrec", "method": "base", "text_vectors": "text", "unisrec_mode": "transductive",
              "experts": 2}, {}),
}  # fmt: skip


def named(values, files):
    return {name: files.get(value, value) if isinstance(value, str) else value for name, value in values.items()}


@pytest.fixture(scope="module")
def parents(files, tmp_path_factory):
    """Made when asked for: the finished run on the old data of each system."""
    made = {}

    def parent(system):
        if system not in made:
            out = tmp_path_factory.mktemp("parents") / system
            train(Config(**SMALL, **named(SYSTEMS[system][0], files), data=files["old"], out=str(out)))
            made[system] = out
        return made[system]

    return parent


@pytest.fixture
def going_on(parents, files, tmp_path):
    def config(system="ids", **changes):
        first, changed = (named(each, files) for each in SYSTEMS[system])
        values = {**SMALL, **first, **changed, "data": files["newer"], "out": str(tmp_path / "next"), **changes}
        return Config(**{"from_run": str(parents(system)), **values})

    return config


def start_of(config):
    dataset = prepare(config.data)
    item_data = load_item_data(config, dataset.item_ids, RunFolder(Path(config.out)).item_data)
    return Parent.of(config).start(config, dataset, item_data), dataset, item_data


def neighbours(dataset, item):
    """The known items at most NEAR places from an item in training, by plain Python."""
    found = []
    for user in range(dataset.num_users):
        walk = dataset.items[dataset.offsets[user] : dataset.training_stop[user]].tolist()
        for place, here in enumerate(walk):
            if dataset.item_ids[here] == item:
                near = [*walk[max(0, place - NEAR) : place], *walk[place + 1 : place + 1 + NEAR]]
                found += [dataset.item_ids[other] for other in near]
    old = {f"i{number}" for number in range(24)}
    return [other for other in found if other in old]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("new_items", ["neighbours", "content", "random"])
def test_rows_are_matched_by_id_and_new_ones_start_as_said(system, new_items, parents, going_on):
    config = going_on(system, new_items=new_items)
    start, dataset, item_data = start_of(config)
    folder = RunFolder(parents(system))
    before, old_ids = load_file(folder.weights), folder.read_item_ids()
    ids = dataset.item_ids.to_list()
    drawn = build_model(config, item_data)
    names = drawn.own_rows()
    assert names
    assert start.counts == {"known": 20, "new": 5, "retired": 4}
    known = [ids.index(item) for item in old_ids if item in ids]
    for name in names:
        was, now = before[name], start.weights[name]
        for item in ids:
            row = now[ids.index(item)]
            if item in old_ids:
                assert torch.equal(row, was[old_ids.index(item)])
                continue
            near = neighbours(dataset, item)
            mean = now[known].double().mean(0)
            if new_items == "random":
                mean = drawn.state_dict()[name][ids.index(item)].double()
            elif new_items == "neighbours" and near:
                mean = torch.stack([was[old_ids.index(other)].double() for other in near]).mean(0)
            torch.testing.assert_close(row.double(), mean, rtol=1e-6, atol=1e-8)
    values = [name for name in before if name.startswith("items.fields")]
    for name in before.keys() - set(names) - set(values):
        assert torch.equal(start.weights[name], before[name]), name
    assert bool(values) == (system == "features")
    drawn.load_state_dict(start.weights)


def test_held_out_items_are_not_looked_at(going_on):
    """The item stands in a validation target alone: what it occurs with there is unknown to training."""
    start, dataset, _ = start_of(going_on())
    assert not neighbours(dataset, "only-held-out")
    ids = dataset.item_ids.to_list()
    known = [number for number, item in enumerate(ids) if item in {f"i{n}" for n in range(24)}]
    table = start.weights["items.embedding.weight"]
    torch.testing.assert_close(table[ids.index("only-held-out")], table[known].double().mean(0).float())


def test_text_vectors_of_another_encoder_are_told_by_the_known_items(going_on, files, tmp_path, recwarn):
    lines = Path(files["newer"]).with_name("texts.tsv").read_text().splitlines()
    changed = [f"{line} more" if line.startswith(("i4\t", "i5\t")) else line for line in lines]
    (tmp_path / "texts.tsv").write_text("\n".join([*changed, "i99\tsome new thing"]) + "\n")
    like = ["--like", files["text"]]
    for name, options, told in (("like", like, 0), ("other", ["--dim", "4"], 1)):
        assert main(["embed-text", str(tmp_path / "texts.tsv"), "--out", str(tmp_path / name), *options]) == 0
        recwarn.clear()
        start_of(going_on("text", text_vectors=str(tmp_path / name)))
        said = [str(each.message) for each in recwarn if "have other text vectors" in str(each.message)]
        assert len(said) == told
    assert "of 20 items have other text vectors than before" in said[0]


DAY = 86_400
FIRST = 1_600_000_000


def a_log(path, days):
    """Six users with one interaction a day."""
    lines = [f"u{user},i{(user + day) % 7},{FIRST + DAY * day}" for day in days for user in range(6)]
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("refit", "first", "second", "days", "said"),
    [(False, {}, {}, range(10), None),
     (True, {}, {}, range(10, 20), None),
     (True, {}, {}, range(11), f"targets up to {FIRST + 8 * DAY}, and the rows of validation begin at {FIRST + 8 * DAY}"
      f" here: .* give a --valid_time after {FIRST + 8 * DAY}"),
     (False, {}, {}, range(7), f"targets up to {FIRST + 7 * DAY}, and the rows of validation begin at .* and those of "
      f"the test begin at {FIRST + 6 * DAY}"),
     (False, {"split": "leave-one-out"}, {}, range(11), None),
     (True, {"split": "leave-one-out"}, {}, range(11), "was refit on its validation rows"),
     (False, {"split": "leave-k-out"}, {"leave_k": 2}, range(11), r"held out other rows .* \(leave_k: 1 there, 2 here"),
     (False, {}, {"split": "users"}, range(11), r"held out other rows .* \(split: time there, users here"),
     (False, {"split": "users"}, {}, range(11), None)],
    ids=["the-same", "later", "refit", "earlier", "one-out", "one-out-refit", "k-out", "users", "same-users"],
)  # fmt: skip
def test_rows_that_are_held_out_and_that_the_parent_was_trained_on_are_said(
    refit, first, second, days, said, tmp_path, recwarn
):
    by_users = "users" in (*first.values(), *second.values())
    split = {"valid_users": 0.3, "test_users": 0.3, "split_seed": 2} if by_users else {}  # two of the six users each
    sizes = {**SMALL, "method": "base", "epochs": 1, "refit": refit, **first, **(split if first else {})}
    train(Config(**sizes, data=a_log(tmp_path / "first.csv", range(10)), out=str(tmp_path / "first")))
    recwarn.clear()
    newer = a_log(tmp_path / "newer.csv", days)
    config = {**sizes, **split, **second, "data": newer, "out": str(tmp_path / "next")}
    train(Config(**config, from_run=str(tmp_path / "first")))
    told = [str(each.message) for each in recwarn if "--from" in str(each.message)]
    assert len(told) == (said is not None)
    if said is not None:
        assert re.search(said, told[0])


def test_rows_of_feature_values_are_matched_by_name(parents, going_on):
    start, _, item_data = start_of(going_on("features"))
    folder = RunFolder(parents("features"))
    old = ItemData.load(folder.item_data).features[0].value_names
    now = item_data.features[0].value_names
    assert "a-new-kind" in now
    assert now[0] == "a-new-kind"  # so that no number is what it was
    name = "items.fields.0.embedding.weight"
    before = load_file(folder.weights)[name]
    for value in set(old) & set(now):
        assert torch.equal(start.weights[name][now.index(value)], before[old.index(value)])
    assert torch.equal(start.weights[name][-1], before[-1])  # of items without a value


def test_values_of_an_earlier_version_are_named_by_the_file_alone(parents, going_on, files, tmp_path):
    earlier = tmp_path / "earlier"
    shutil.copytree(parents("features"), earlier)
    data = ItemData.load(earlier / "items.safetensors")
    fields = tuple(type(each)(each.name, each.offsets, each.values) for each in data.features)
    ItemData(data.num_items, fields).save(earlier / "items.safetensors")
    config = going_on("features", from_run=str(earlier))
    expected = start_of(going_on("features"))[0].weights
    found = start_of(config)[0].weights
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    own = Config.load(earlier / "config.yaml")
    own.features = files["newer.json"]  # which says the same of the old items
    own.save(earlier / "config.yaml")
    assert torch.equal(start_of(config)[0].weights["items.embedding.weight"], expected["items.embedding.weight"])
    kinds = json.loads(Path(files["old.json"]).read_text())
    (tmp_path / "anew.json").write_text(json.dumps(kinds | {"i0": {"kind": ["k3"]}}))
    own.features = str(tmp_path / "anew.json")
    own.save(earlier / "config.yaml")
    with pytest.raises(RunError, match=r"did not keep the names of feature values.*anew.json has changed since"):
        start_of(config)


@pytest.mark.parametrize("system", SYSTEMS)
def test_adams_moments_go_with_their_rows(system, parents, going_on):
    config = going_on(system)
    start, dataset, item_data = start_of(config)
    state = torch.load(parents(system) / "resume" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    model = build_model(config, item_data)
    optimizer = build_optimizer(model, config)
    start.set_moments(model, optimizer)
    old_ids, ids = RunFolder(parents(system)).read_item_ids(), dataset.item_ids.to_list()
    new = torch.tensor([item not in old_ids for item in ids])
    known = [old_ids.index(item) for item in ids if item in old_ids]
    for number, (name, parameter) in enumerate(model.named_parameters()):
        was, now = state[number], optimizer.state[parameter]
        assert float(now["step"]) == float(was["step"]) > 0
        if name in model.own_rows():
            for kind in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(now[kind][~new], was[kind][known])
            assert not now["exp_avg"][new].any()
            mean = was["exp_avg_sq"][known].double().mean(0).float().expand_as(now["exp_avg_sq"][new])
            torch.testing.assert_close(now["exp_avg_sq"][new], mean)
        elif not name.startswith("items.fields"):
            for kind in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(now[kind], was[kind])


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("held", [True, False])
def test_a_process_begins_with_its_rows(system, held, going_on, tmp_path):
    config = going_on(system)
    whole, _, item_data = start_of(config)
    start, path = whole, tmp_path / "start.safetensors"
    if not held:
        whole.save(path)
        start = Start.load(path, sha256_of(path), held=False)
        assert not start.weights
        assert not start.moments
        assert start.counts == whole.counts
    for process in range(3):
        model = build_model(config, item_data, part=(process, 3))
        optimizer = build_optimizer(model, config)
        start.set_weights(model)
        start.set_moments(model, optimizer)
        assert set(model.shared_rows()) == set(model.own_rows())
        for name, parameter in model.named_parameters():
            rows = model.items.held if name in model.own_rows() else slice(None)
            assert torch.equal(parameter, whole.weights[name][rows])
            for kind in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(optimizer.state[parameter][kind], whole.moments[name][kind][rows])
            assert optimizer.state[parameter]["step"] == whole.moments[name]["step"]


def test_without_the_parents_moments_adam_begins_anew(parents, going_on, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(parents("ids"), bare)
    shutil.rmtree(bare / "resume")
    train(going_on())
    with pytest.warns(UserWarning, match="last.ckpt is not there: Adam's moments start anew"):
        train(going_on(from_run=str(bare), out=str(tmp_path / "anew")))
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("next", "anew"))
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("kind", "number"), [("exp_avg", float("nan")), ("exp_avg_sq", -1.0), ("exp_avg_sq", float("inf")), ("step", -1.0)]
)
def test_moments_that_cannot_be_are_refused(kind, number, parents, going_on, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(parents("ids"), damaged)
    path = damaged / "resume" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["optimizer_states"][0]["state"][0][kind].view(-1)[-1] = number
    torch.save(checkpoint, path)
    name, parameter = next(iter(build_model(Config.load(damaged / "config.yaml"), ItemData(24)).named_parameters()))
    of = 1 if kind == "step" else parameter.numel()
    said = rf"last.ckpt: {kind} of {re.escape(name)} cannot be Adam's: 1 of {of} numbers are {number} .*; without that"
    with pytest.raises(RunError, match=said):
        train(going_on(from_run=str(damaged)))
    assert not (tmp_path / "next").exists()


def test_moments_of_the_other_optimizer_are_kept_with_a_warning(parents, going_on, tmp_path):
    other = {"optimizer": "adamw", "weight_decay": 0.1}
    with pytest.warns(UserWarning, match="was trained with optimizer 'adam', this run is with 'adamw': the moments"):
        train(going_on(**other, epochs=1))
    back = {"from_run": str(tmp_path / "next"), "out": str(tmp_path / "back"), "epochs": 1}
    with pytest.warns(UserWarning, match="was trained with optimizer 'adamw', this run is with 'adam'"):
        train(going_on(**back))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*optimizer")
        train(going_on(**back | other | {"out": str(tmp_path / "same")}))


@pytest.mark.parametrize("refit", [False, True])
def test_an_interrupted_run_resumes_exactly_without_its_parent(refit, parents, going_on, tmp_path, monkeypatch):
    parent = tmp_path / "parent"
    shutil.copytree(parents("ids"), parent)
    values = {"from_run": str(parent), "epochs": 6, "patience": 6, "refit": refit}
    train(going_on(**values))
    config = going_on(**values, out=str(tmp_path / "killed"))
    killed_in_mid_epoch(config, monkeypatch)
    shutil.rmtree(parent)
    train(config)
    assert_equal_runs(tmp_path / "next", tmp_path / "killed")
    assert not (tmp_path / "killed" / "resume" / "start.safetensors").exists()


def test_a_start_that_was_lost_is_made_again_and_a_damaged_one_refused(parents, going_on, tmp_path, monkeypatch):
    values = {"epochs": 6, "patience": 6}
    train(going_on(**values))
    config = going_on(**values, out=str(tmp_path / "killed"))
    killed_in_mid_epoch(config, monkeypatch)
    begun = tmp_path / "killed" / "resume" / "start.safetensors"
    content = begun.read_bytes()
    begun.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match=r"start.safetensors: not as the run wrote it.*to begin again from --from"):
        train(config)
    begun.unlink()
    other = tmp_path / "other"
    shutil.copytree(parents("ids"), other)
    metrics = json.loads((other / "metrics.json").read_text())
    (other / "metrics.json").write_text(json.dumps({**metrics, "files": {}}))
    Config(**{**asdict(Config.load(config_of(config))), "from_run": str(other)}).save(config_of(config))
    changed = Config(**{**asdict(config), "from_run": str(other)})
    with pytest.raises(RunError, match="began at other weights than"):
        train(changed)
    Config(**{**asdict(Config.load(config_of(config))), "from_run": config.from_run}).save(config_of(config))
    train(config)
    assert_equal_runs(tmp_path / "next", tmp_path / "killed")


def config_of(config):
    return RunFolder(Path(config.out)).config


def test_provenance_is_a_chain(parents, going_on, tmp_path):
    with pytest.warns(UserWarning, match="20 items are known, 5 are new and start at the mean of the items that they"):
        result = train(going_on())
    first, second = RunFolder(parents("ids")), RunFolder(tmp_path / "next")
    third = RunFolder(tmp_path / "third")
    train(going_on(from_run=str(second.path), out=str(third.path)))
    assert result["from"]["items"] == {"known": 20, "new": 5, "retired": 4}
    for child, parent in ((second, first), (third, second)):
        recorded = Config.load(child.config).provenance["parent"]
        assert recorded["run"] == str(parent.path)
        assert recorded["digest"] == digest_of(parent)
        assert recorded["weights"] == parent.hashes()["model.safetensors"]
    changed = Config.load(second.config)
    changed.provenance["parent"]["digest"] = "0" * 64  # another first run: the second is another, too
    changed.save(second.config)
    assert Config.load(third.config).provenance["parent"]["digest"] != digest_of(second)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": 16}, "does not fit this run .dim: 8 there, 16 here"),
        ({"streams": 3}, "streams: 2 there, 3 here"),
        ({"method": "erl"}, "method: 'plr' there, 'erl' here"),
        ({"backbone": "bert4rec", "training_rows": "prefix"}, "backbone: 'sasrec' there, 'bert4rec' here"),
        ({"max_length": 9}, "max_length: 10 there, 9 here"),
        ({"features": "newer.json"}, "its items have no feature fields, this run's 'kind'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, said, going_on, files, tmp_path):
    with pytest.raises(RunError, match=said):
        train(going_on(**named(changes, files)))
    assert not (tmp_path / "next" / "config.yaml").exists()


def test_parents_that_cannot_be_are_refused(parents, going_on, tmp_path):
    with pytest.raises(RunError, match="is the run's own folder"):
        train(going_on(out=str(parents("ids") / ".." / "ids")))
    with pytest.raises(FileNotFoundError, match="no run here"):
        train(going_on(from_run=str(tmp_path / "nowhere")))
    copy = tmp_path / "copy"
    shutil.copytree(parents("ids"), copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(DataError, match=r"model.safetensors: not as the run wrote it"):
        train(going_on(from_run=str(copy)))
    shutil.copyfile(parents("ids") / "model.safetensors", copy / "model.safetensors")
    (copy / "resume" / "last.ckpt").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"not a readable checkpoint.*without that file they start anew"):
        train(going_on(from_run=str(copy)))
    (copy / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match="the run is not finished"):
        train(going_on(from_run=str(copy)))
    assert not (tmp_path / "next").exists()
    with pytest.raises(ConfigError, match="new_items is for a run that goes on"):
        Config(new_items="random")


def test_the_command_takes_over_the_parents_options(parents, files, tmp_path, capsys, monkeypatch):
    parent, out = tmp_path / "parent", tmp_path / "out"
    shutil.copytree(parents("ids"), parent)
    command = ["train", "--from", str(parent), "--data", files["newer"], "--out", str(out)]
    step = "plr.training.module.TrainingModule.training_step"

    def killed(self, batch, index):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(step, killed)
        with pytest.raises(Killed):
            main(command)
    shutil.rmtree(parent)
    assert main(command) == 0  # with the options of the run that began
    assert main(command) == 2
    assert "no run here" in capsys.readouterr().err  # whose parent is needed for another
    run = Config.load(out / "config.yaml")
    for name, value in SMALL.items():
        assert getattr(run, name) == value
    assert (run.method, run.streams, run.new_items) == ("plr", 2, "neighbours")
    assert main(["train", "--from", str(out), "--data", files["old"], "--out", str(tmp_path / "b"), "--epochs", "1",
                 "--new_items", "random"]) == 0  # fmt: skip
    run = Config.load(tmp_path / "b" / "config.yaml")
    assert (run.epochs, run.new_items, run.dim) == (1, "random", 8)
