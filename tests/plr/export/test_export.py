"""plr export: files answer as their run, load without the project, and are not written where they would not."""

import json
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import numpy as np
import polars as pl
import pytest
import torch

import plr
from plr.cli import main
from plr.config import Config
from plr.errors import ConfigError, RunError
from plr.export import compiled, export, export_run, program
from plr.export.check import check_ranking
from plr.runs import RunFolder
from plr.serving import Recommender
from plr.serving.ragged import Ragged
from plr.training import train

PAGE = Path(__file__).parents[3] / "docs" / "export.md"
MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
needs_compiler = pytest.mark.skipif(not (which("g++") or which("clang++")), reason="no C++ compiler here")
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def trained(folder, data, **changes):
    values = {
        "data": str(data), "out": str(folder), "dim": 8, "ffn_dim": 8, "max_length": 6, "layers": 1, "epochs": 1,
        "method": "plr", "streams": 2, "steps": 1, "progress": False, "accelerator": "cpu", "threads": 1,
    }  # fmt: skip
    train(Config(**{**values, **changes}))
    return folder


@pytest.fixture(scope="module")
def mixture(small_data, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("mixture") / "beauty", small_data)


@pytest.fixture(scope="module")
def base(small_data, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("base") / "beauty", small_data, method="base", exclude_seen=True)


@pytest.fixture(scope="module")
def programs():
    """Traced ones, by k and exclude_seen."""
    return {}


@pytest.fixture
def _traced_once(programs, monkeypatch):
    """The run `mixture` as a program of PyTorch alone, traced when it is first asked for: it takes many seconds."""
    trace = program.portable

    def portable(recommender, k, exclude_seen):
        if (k, exclude_seen) not in programs:
            programs[k, exclude_seen] = trace(recommender, k, exclude_seen)
        return programs[k, exclude_seen]

    monkeypatch.setattr(program, "portable", portable)
    monkeypatch.setattr(compiled, "portable", portable)


def example(kind):
    """The page's code for a format."""
    blocks = re.findall(r"(?:^    .*\n|^\n)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    (block,) = (textwrap.dedent(block) for block in blocks if f"beauty{kind}" in block and "import" in block)
    return block


@pytest.mark.parametrize("run", ["mixture", "base"])
def test_vectors_rank_as_the_run(run, request, tmp_path, capsys):
    folder = request.getfixturevalue(run)
    out = tmp_path / "beauty-vectors"
    assert main(["export", str(folder), "--to", "vectors", "--out", str(out)]) == 0
    assert "answers as the run does" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["items.parquet", "manifest.json", "vectors.npy"]
    facts = json.loads((out / "manifest.json").read_text())
    recommender = plr.Recommender.load(folder)
    assert (facts["run"], facts["metric"], facts["dim"]) == ("beauty", "inner product", 8)
    assert (facts["mixture"] is None) == (run == "base")
    assert pl.read_parquet(out / "items.parquet")["item"].to_list() == recommender.item_ids
    vectors = np.load(out / "vectors.npy")
    history = recommender.item_ids[:9]
    states, log_weights = recommender.user_states([history, history[:1]])
    scores = states.double().numpy() @ vectors.T.astype(np.float64)
    if log_weights is not None:  # the manifest's formula, written out
        p = np.exp(scores / facts["temperature"])
        scores = np.log((np.exp(log_weights.numpy())[:, :, None] * p / p.sum(-1, keepdims=True)).sum(1))
    answers = recommender.recommend([history, history[:1]], 24, exclude_seen=False)
    for row, answer in zip(scores, answers, strict=True):
        assert [each.score for each in answer] == pytest.approx(
            [row[recommender.item_ids.index(each.item)] for each in answer], abs=1e-5
        )
    export_run(folder, "vectors", out)  # again, in its place


@pytest.mark.parametrize("run", ["mixture", "base"])
def test_user_states_are_the_same_in_parts_and_by_pytorch(run, request):
    recommender = plr.Recommender.load(request.getfixturevalue(run))
    histories = [recommender.item_ids[: 1 + place] for place in range(9)]
    whole, parts = recommender.user_states(histories), recommender.user_states(histories, batch_size=2)
    assert torch.equal(whole.states, parts.states)
    recommender._ranker._engine = None
    torch.testing.assert_close(recommender.user_states(histories).states, whole.states, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="unknown must be"):
        recommender.user_states(histories, unknown="drop")


def run_example(kind, folder, *blocked):
    """Run the page's code in a process that cannot import these packages; return the items of its history."""
    code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n" + example(kind)
    code += "\nprint(json.dumps([ids[item] for item in items[0].tolist()]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected(folder, **options):
    recommender = plr.Recommender.load(folder)
    return [each.item for each in recommender.recommend([[recommender.item_ids[i] for i in (3, 14, 15)]], **options)[0]]


@pytest.mark.usefixtures("_traced_once")
def test_a_program_loads_with_torch_alone(mixture, tmp_path):
    export_run(mixture, "torch", tmp_path / "beauty.pt2")
    assert run_example(".pt2", tmp_path, "plr", "plr_kernels") == expected(mixture)
    loaded = torch.export.load(tmp_path / "beauty.pt2")
    spaces = {n.target.namespace for n in loaded.graph.nodes if isinstance(n.target, torch._ops.OpOverload)}
    assert spaces == {"aten"}
    for batch, width in ((1, 1), (1, 40), (7, 2)):
        scores, items = loaded.module()(torch.ones(batch, width, dtype=torch.int64), torch.full((batch,), width))
        assert scores.shape == items.shape == (batch, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["beauty.pt2"]


def test_a_full_disk_is_said_and_ends_no_process(mixture, tmp_path):
    resource = pytest.importorskip("resource", reason="no limits of files here")
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))\n"
    code += "import sys; from plr.cli import main; sys.exit(main(sys.argv[1:]))"
    target = tmp_path / "out" / "beauty.pt2"
    command = [sys.executable, "-c", code, "export", str(mixture), "--to", "torch", "--out", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert not list(target.parent.iterdir())


def test_a_program_that_needs_more_than_pytorch_is_refused(mixture):
    # With our operators as they are.
    traced = program.traced(plr.Recommender.load(mixture), 3, False, ordered_top=False)
    with pytest.raises(RunError, match=r"a run cannot be exported: its program needs more than PyTorch, plr_kernels\."):
        program.require_pytorch_alone(traced, "a run")


@needs_compiler
@pytest.mark.usefixtures("_traced_once")
def test_machine_code_loads_with_torch_alone(mixture, tmp_path, monkeypatch):
    from torch._inductor.config import aot_inductor

    # Compiled once, headers need not be precompiled, nor what calls the kernels optimised.
    for name, value in (("precompile_headers", False), ("compile_wrapper_opt_level", "O0")):
        if hasattr(aot_inductor, name):
            monkeypatch.setattr(aot_inductor, name, value)
    assert main(["export", str(mixture), "--to", "aoti", "--out", str(tmp_path / "beauty-compiled.pt2")]) == 0
    assert run_example("-compiled.pt2", tmp_path, "plr", "plr_kernels") == expected(mixture)
    facts = torch._inductor.aoti_load_package(str(tmp_path / "beauty-compiled.pt2")).get_metadata()["manifest"]
    assert {"format": "plr aoti", "run": "beauty", "k": 10}.items() <= json.loads(facts).items()
    assert [path.name for path in tmp_path.iterdir()] == ["beauty-compiled.pt2"]

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    with pytest.raises(RunError, match=r"cannot be compiled: no shape for this \(it takes a C\+\+ compiler"):
        export_run(mixture, "aoti", tmp_path / "other.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["beauty-compiled.pt2"]


@needs_onnx
def test_a_graph_loads_with_onnx_runtime_alone(base, tmp_path):
    export_run(base, "onnx", tmp_path / "beauty.onnx", k=5)
    assert run_example(".onnx", tmp_path, "plr", "plr_kernels", "torch") == expected(base, k=5)


@needs_onnx
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_a_graph_refuses_numbers_that_are_none(exclude_seen, base, tmp_path):
    """ONNX counts negative numbers from the end: -1, which stands for an unknown item, was the last item."""
    import onnxruntime

    export_run(base, "onnx", tmp_path / "run.onnx", k=5, exclude_seen=exclude_seen)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(tmp_path / "run.onnx", options, providers=["CPUExecutionProvider"])

    def answer(items, length):
        history = {"item_ids": np.array([items, items]), "lengths": np.array([len(items), length])}
        return session.run(None, history)[1]

    recommender = plr.Recommender.load(base)
    count, longest = len(recommender.item_ids), recommender.config.max_length
    for items, length in (
        ([3, -1], 2), ([-1, 3], 2), ([3, count], 2), ([3, 4], 0), ([3, 4], -1), ([3, 4], 3), ([3] * 2 * longest, 0)
    ):  # fmt: skip
        with pytest.raises(Exception, match=r"out of|Out of"):
            answer(items, length)
    padded = session.run(None, {"item_ids": np.array([[3, 4, -1]]), "lengths": np.array([2])})[1]
    assert padded[0].tolist() == answer([3, 4], 2)[0].tolist()


def test_vectors_of_the_page_rank(base, tmp_path):
    export_run(base, "vectors", tmp_path / "beauty-vectors")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "beauty").symlink_to(base)
    names = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(example("-vectors"), names)
    assert names["ids"].gather(names["items"][0]).to_list() == expected(base, exclude_seen=False)


def test_equal_scores_stand_by_their_number_and_few_items_leave_places(base):
    recommender = plr.Recommender.load(base)
    with torch.no_grad():
        recommender.model.items.embedding.weight[4:] = recommender.model.items.embedding.weight[4]
    recommender = Recommender(recommender.model, recommender.item_ids, recommender.config)
    ranking = program.Ranking(recommender, 24, True, ordered_top=False)

    def answer(histories, k, exclude_seen):
        found = ranking(torch.from_numpy(histories.padded(0)), torch.from_numpy(histories.lengths))
        return tuple(each.detach().numpy() for each in found)

    check_ranking(recommender, answer, 24, True)
    numbers = Ragged.of([[3, 9], list(range(20))])
    assert np.array_equal(answer(numbers, 24, True)[1], recommender.rank(numbers, 24)[1])


def fails(*_, **__):
    raise RuntimeError("no shape for this\nmore")


def off_by(change):
    def answer(histories, k, exclude_seen):
        scores, items = (each.copy() for each in change.recommender.rank(histories, k, exclude_seen=exclude_seen))
        change(scores, items)
        return scores, items

    return answer


def wrong_score(scores, items):
    scores[0, 0] += 0.01


def wrong_item(scores, items):
    items[-1, -1] = (set(range(24)) - set(items[-1].tolist())).pop()


def item_twice(scores, items):
    items[-1, -1] = items[-1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [(wrong_score, r"up to 0\.01 away; float32 rounding explains"), (wrong_item, "away"), (item_twice, "item twice")],
)
def test_an_export_that_answers_otherwise_is_not_written(mixture, tmp_path, monkeypatch, change, message):
    def load(recommender, *_):
        change.recommender = recommender
        return off_by(change)

    out = tmp_path / "vectors"
    monkeypatch.setattr(export, "load_vectors", load)
    with pytest.raises(RunError, match=message):
        export_run(mixture, "vectors", out)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_refused(mixture, tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match=r"ends in \.pt2"):
        export_run(mixture, "torch", tmp_path / "x.onnx")
    with pytest.raises(ConfigError, match="one of vectors, torch, aoti, onnx; found 'tensorrt'"):
        export_run(mixture, "tensorrt", tmp_path / "x")
    for name, value in (("k", 5), ("exclude_seen", False)):  # nothing in the folder would be of them
        with pytest.raises(ConfigError, match=f"{name} is of programs, torch, aoti and onnx: vectors have none"):
            export_run(mixture, "vectors", tmp_path / "vectors", **{name: value})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("kept")
    with pytest.raises(ConfigError, match="folder of something else"):
        export_run(mixture, "vectors", tmp_path / "mine")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert main(["export", str(mixture), "--to", "onnx", "--out", str(tmp_path / "x.onnx")]) == 2
    assert capsys.readouterr().err == (
        "plr: onnx needs onnx, onnxscript, onnxruntime, not installed here: pip install -e '.[export]'\n"
    )

    monkeypatch.setattr(torch.export, "export", fails)
    with pytest.raises(RunError, match="cannot trace it: no shape for this"):
        export_run(mixture, "torch", tmp_path / "x.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert RunFolder(mixture).require_finished()
