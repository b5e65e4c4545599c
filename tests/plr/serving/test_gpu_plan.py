"""The GPU plan: its order of computation in float64, its exactness by the parity rule, its shapes and its graphs.

By the kernels' formulas, and, in a process under Triton's interpreter, by the kernels.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plr.errors import EngineError
from plr.serving import Recommender, cuda_graphs, gpu_plan
from plr.serving import ranker as ranker_module
from plr.serving.cuda_graphs import Graphs
from plr.serving.gpu_plan import GPUPlan, Shape, why_not
from plr_kernels import use_backend
from plr_kernels.dispatch.backend import TRITON_INTERPRETED
from plr_kernels.forward_only import operator
from tests.plr.models.helpers import small_config
from tests.plr.serving.test_cuda_graphs import Recorder
from tests.plr.serving.test_engine import ITEMS, LENGTHS, MODELS, joined, padded, ragged, scored, trained
from tests.plr_kernels.harness import FACTOR, NUDGED_RUNS

if TRITON_INTERPRETED:
    from tests.plr_kernels.gpu import interpreter_overhead
    from tests.plr_kernels.gpu.interpreted_arithmetic import compute_as_gpus

    compute_as_gpus()
    interpreter_overhead.leave_out()


@pytest.fixture(params=["triton"] if TRITON_INTERPRETED else ["auto"])
def backend(request):
    with use_backend(request.param):
        yield request.param


@torch.no_grad()
def largest_errors(model, plan, lengths):
    """The plan's largest error, and that of the model on weights as rounded: each by the model in float64."""
    dtype = next(model.parameters()).dtype
    ids, offsets = ragged(lengths)
    batch = padded(ids, offsets, model.encoder.max_length)
    with use_backend("auto"):
        truth = scored(copy.deepcopy(model).double(), batch)
        generator = torch.Generator().manual_seed(3)
        allowed = float((scored(model, batch).double() - truth).abs().max())
        for _ in range(NUDGED_RUNS):
            nudged = copy.deepcopy(model)
            for weight in nudged.parameters():
                weight *= 1 + (torch.rand(weight.shape, generator=generator) - 0.5).to(dtype) * torch.finfo(dtype).eps
            allowed = max(allowed, float((scored(nudged, batch).double() - truth).abs().max()))
        shape = model.scorer(batch).states.shape
    found = plan.states(ids, offsets)
    assert (found.states.dtype, found.states.shape) == (dtype, shape)
    return float((joined(*found).double() - truth).abs().max()), allowed


def names(changes):
    return "-".join(map(str, changes.values()))


# The interpreter takes a second for each, and as long for every few histories.
FEW = [12, 1, 30] if TRITON_INTERPRETED else LENGTHS
SOME = [
    {"method": "base"},
    {"method": "base", "layers": 1, "backbone": "bert4rec"},
    {"method": "erl", "dim": 50, "heads": 1},
    {"method": "prl", "steps": 3, "backbone": "unisrec"},
    {"method": "plr"},
    {"method": "plr", "fast_state": "component", "backbone": "bert4rec", "streams": 3},
    {"method": "plr", "mixture": "states", "fast_state": "ranking", "pooling": "last", "layers": 3},
    {"method": "plr", "mixture": "states", "reasoning": False},
]


@pytest.mark.skipif(TRITON_INTERPRETED, reason="kernels have no float64")
@pytest.mark.parametrize("changes", MODELS, ids=names)
def test_in_float64_states_are_the_model_s(changes):
    model = trained(**changes).double()
    ids, offsets = ragged(LENGTHS)
    truth = scored(model, padded(ids, offsets, model.encoder.max_length))
    found = joined(*GPUPlan(model).states(ids, offsets))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("changes", SOME, ids=names)
def test_states_are_as_exact_as_the_model(backend, changes):
    model = trained(**changes)
    found, allowed = largest_errors(model, GPUPlan(model), FEW)
    assert found <= FACTOR * allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("changes", [SOME[0], SOME[4]], ids=names)
def test_states_of_half_precision_are_as_exact_as_the_model(backend, changes, dtype):
    """No factor: what is rounded less often than in the model cannot be further off than the worst of nine of it."""
    model = trained(**changes).to(dtype)
    found, allowed = largest_errors(model, GPUPlan(model), FEW)
    assert found <= allowed


@pytest.mark.parametrize("lengths", [[1], [12], [50], [1, 1], [7, 30, 2]], ids=str)
def test_few_histories_and_the_shortest_and_longest(backend, lengths):
    model = trained(method="plr", fast_state="component")
    found, allowed = largest_errors(model, GPUPlan(model), lengths)
    assert found <= FACTOR * allowed


def test_passes_of_several_shapes_are_put_in_order(backend, monkeypatch):
    monkeypatch.setattr(gpu_plan, "ONE_PASS", 0)
    monkeypatch.setattr(gpu_plan, "MOST_POSITIONS", 24)
    model = trained(method="plr", max_length=20)
    lengths = [12, 1, 9, 30, 2, 2, 16, 8, 17, 3, 5, 1, 1, 1]
    plan = GPUPlan(model, most_bytes=0)
    groups = plan._groups(torch.tensor(lengths).clamp(max=20).numpy())
    assert [(rows.tolist(), length) for rows, length in groups] == [
        ([1, 4], 8), ([5, 7], 8), ([9, 10], 8), ([11, 12], 8), ([13], 8), ([0], 16), ([2], 16), ([6], 16), ([3], 20),
        ([8], 20),
    ]  # fmt: skip
    found, allowed = largest_errors(model, plan, lengths)
    assert found <= FACTOR * allowed


@pytest.mark.skipif(TRITON_INTERPRETED, reason="the same as without")
def test_all_that_a_gpu_is_given_comes_from_pinned_memory(monkeypatch):
    """From other memory the host would wait until the passes before are done."""
    monkeypatch.setattr(gpu_plan, "ONE_PASS", 0)
    given = []
    monkeypatch.setattr(cuda_graphs, "_pinned", lambda inputs, device: given.append(inputs.numel()) or inputs)
    plan = GPUPlan(trained(method="base", max_length=20), most_bytes=0)
    plan.states(*ragged([20, 1]))
    assert given == [8 + 2, 20 + 2, 2]  # two passes, and the order of their rows


@pytest.mark.parametrize("changes", [{"method": "plr"}, {"method": "erl", "backbone": "bert4rec"}], ids=names)
def test_a_history_s_states_do_not_depend_on_others_of_its_pass(backend, changes):
    """To the bit: neither on real ones, whatever they are, nor on what fills a shape up."""
    model = trained(**changes)
    with torch.no_grad():
        model.items.embedding.weight[5] = torch.nan
        model.items.embedding.weight[0] = torch.inf  # with which rows are filled up
    plan = GPUPlan(model, most_bytes=0)
    ids, offsets = ragged([4, 12, 1, 7])
    ids = torch.where((ids == 5) | (ids == 0), 6, ids)
    whole = joined(*plan.states(ids, offsets))
    assert bool(whole.isfinite().all())
    # The shape is the same for three, filled up with a row of item 0.
    assert torch.equal(joined(*plan.states(ids[: offsets[3]], offsets[:4])), whole[:3])
    # And with a fourth that is not finite.
    ids[offsets[3] :] = 5
    others = joined(*plan.states(ids, offsets))
    assert torch.equal(others[:3], whole[:3])
    assert bool(others[3].isnan().any())


def test_an_offset_into_the_ids_and_no_histories(backend):
    plan = GPUPlan(trained(method="plr", fast_state="component"), most_bytes=0)
    ids, offsets = ragged([5, 3, 9])
    whole, part = plan.states(ids, offsets).states, plan.states(ids[5:], offsets[1:] - 5).states
    torch.testing.assert_close(whole[1:], part)
    assert torch.equal(plan.states(ids, offsets[1:]).states, part)
    none = plan.states(ids, offsets[:1])
    assert none.states.shape == (0, 5, 16)
    assert none.log_weights.shape == (0, 5)


def test_graphs_answer_as_launches_do(backend):
    model = trained(method="plr")
    recorder = Recorder()
    plan, launching = GPUPlan(model), GPUPlan(model, most_bytes=0)
    plan.graphs = Graphs(10, recorder)
    given = [ragged(lengths, seed=seed) for seed, lengths in enumerate([[3, 12], [9, 1], [2, 11], [4], [5], [10, 10]])]
    for ids, offsets in given:
        assert torch.equal(joined(*plan.states(ids, offsets)), joined(*launching.states(ids, offsets)))
    assert plan.graphs.replays == 4  # all but the first of each shape
    assert plan.graphs.shapes == [Shape(1, 8, "highest"), Shape(2, 12, "highest")]
    assert launching.graphs.why_not == "graphs are turned off"


def test_another_precision_of_products_is_another_graph(backend):
    plan = GPUPlan(trained(method="base"))
    plan.graphs = Graphs(10, Recorder())
    ids, offsets = ragged([3, 12])
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "highest", "medium", "medium", "highest"):
            torch.set_float32_matmul_precision(precision)
            plan.states(ids, offsets)
    finally:
        torch.set_float32_matmul_precision(before)
    assert plan.graphs.shapes == [Shape(2, 12, "medium"), Shape(2, 12, "highest")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="what CUDA says without a GPU")
def test_a_capture_that_cuda_refuses_is_said_and_all_is_launched(backend):
    plan = GPUPlan(trained(method="base"))
    ids, offsets = ragged([3, 12])
    first = plan.states(ids, offsets)
    with pytest.warns(UserWarning, match="launched one by one instead of as a CUDA graph: a capture failed"):
        second = plan.states(ids, offsets)
    assert torch.equal(first.states, second.states)


@pytest.mark.skipif(TRITON_INTERPRETED, reason="kernels do not run on it")
@pytest.mark.parametrize("changes", SOME, ids=names)
def test_nothing_is_read_back_from_the_device(changes):
    """On the meta device, where reading a value raises, as it does while a graph is captured."""
    model = trained(**changes).to("meta")
    plan = GPUPlan(model)
    rows, length = 4, 12
    states, _ = plan._run(torch.empty(rows * (length + 2), dtype=torch.int64, device="meta"), Shape(rows, length, ""))
    assert len(states) == rows


@pytest.mark.skipif(TRITON_INTERPRETED, reason="under TRITON_INTERPRET=1 nothing is compiled")
@pytest.mark.parametrize(
    ("changes", "steps", "gate"),
    [({"method": "base"}, 0, 0), ({"method": "plr", "streams": 2, "steps": 1}, 1, 2), ({"method": "plr"}, 2, 2)],
    ids=str,
)
def test_what_a_pass_enqueues(changes, steps, gate, monkeypatch):
    """docs/gpu-limits.md has the numbers: each operation takes some microseconds of a GPU."""
    pytest.importorskip("triton")
    from tests.plr_kernels.gpu.ahead_of_time import recorded_launches
    from tests.plr_kernels.gpu.test_compiled import EnqueuedOperations

    monkeypatch.setattr(operator, "resolve", lambda name, implementations, tensor: implementations["triton"])
    plan = GPUPlan(trained(**changes, layers=2, pooling="mean" if steps == 1 else "last").to("meta"))
    inputs = torch.empty(4 * 14, dtype=torch.int64, device="meta")
    with recorded_launches(90) as launches, EnqueuedOperations() as enqueued:
        plan._run(inputs, Shape(4, 12, ""))
    describing = {"expand", "permute", "split", "split_with_sizes", "t", "transpose", "unbind"}
    operations = [name for name in enqueued.names if name not in describing]
    products = [name for name in operations if name in ("addmm", "mm")]
    others = [name for name in operations if name not in ("addmm", "mm")]
    assert others == ["index_select", *(["_log_softmax"] if gate else [])]
    assert len(products) == 9 + 8 * steps + gate // 2
    assert len(launches) + len(operations) == 19 + 17 * steps + gate


def test_results_are_no_inference_tensors_and_float32_under_autocast(backend):
    model = trained(method="plr")
    ids, offsets = ragged([3, 12])
    expected = GPUPlan(model).states(ids, offsets)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        plan = GPUPlan(model)
        plan.graphs = Graphs(10, Recorder())
        for _ in range(3):
            users = plan.states(ids, offsets)
    assert not users.states.is_inference()
    assert not users.states.requires_grad
    assert torch.equal(joined(*users), joined(*expected))
    assert torch.equal(plan.states(ids, offsets).states, users.states)  # the graph's memory may be written outside


def test_what_is_no_history_is_named(backend):
    plan, (ids, offsets) = GPUPlan(trained(method="base")), ragged([2, 3])
    with pytest.raises(TypeError, match=r"ids must be an int64 tensor on the CPU; found torch\.int32"):
        plan.states(ids.int(), offsets)
    with pytest.raises(ValueError, match="offsets must be B \\+ 1 numbers"):
        plan.states(ids, offsets + 1)
    with pytest.raises(ValueError, match="every history needs an item; found 2 and 2 for history 1"):
        plan.states(ids, torch.tensor([0, 2, 2, 5]))
    with pytest.raises(ValueError, match="every history needs an item; found 10000000 and 2 for history 1"):
        plan.states(ids, torch.tensor([0, 10**7, 2]))
    for wrong in (61, -1):
        with pytest.raises(ValueError, match=rf"ids must be in \[0, V\) \(V=61\), found {wrong} in history 1"):
            plan.states(torch.tensor([1, 2, wrong]), torch.tensor([0, 1, 3]))


@pytest.mark.skipif(TRITON_INTERPRETED, reason="the CPU counts as a GPU there")
def test_models_that_pytorch_computes_are_named(monkeypatch):
    model = trained(method="base")
    with use_backend("reference"):
        assert why_not(model) == "the chosen backend is reference"
    if not torch.cuda.is_available():
        assert why_not(model) == "the backend triton cannot run here"
    monkeypatch.setattr(gpu_plan, "runnable_backends", lambda: ("auto", "triton"))
    assert why_not(model) == "items.embedding.weight is on cpu, not on a GPU"
    monkeypatch.setattr(gpu_plan, "TRITON_INTERPRETED", True)
    assert why_not(model) is None
    assert why_not(copy.deepcopy(model).bfloat16()) is None
    assert "is torch.float64; all must be one of" in why_not(copy.deepcopy(model).double())
    mixed = copy.deepcopy(model)
    mixed.encoder.layers[0].ffn_in.half()
    assert why_not(mixed).startswith("encoder.layers.0.ffn_in.weight is torch.float16; all must be")
    assert why_not(trained(method="lares")) == "LARESRecommender is computed by PyTorch"
    assert why_not(trained(method="base", backbone="bert4rec-cloze")) == "ClozeRecommender is computed by PyTorch"
    model.encoder.layers[0].query.register_forward_hook(lambda *_: None)
    assert why_not(model) == "encoder.layers.0.query has hooks"
    with pytest.raises(EngineError, match=r"the GPU plan cannot take the model: encoder\.layers\.0\.query has hooks"):
        GPUPlan(model)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What the engine cannot take, and the plan can."""
    monkeypatch.setattr(ranker_module, "why_not", lambda model: "on a GPU")
    monkeypatch.setattr(ranker_module, "why_no_plan", lambda model: None)


NAMES = [f"i{item}" for item in range(ITEMS)]


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("changes", [{"method": "plr"}, {"method": "erl"}], ids=names)
def test_a_recommender_answers_by_the_plan(backend, changes):
    model = trained(**changes)
    recommender = Recommender(model, NAMES, small_config(**changes), gpu="launches")
    histories = [["i3", "i5"], ["i9"] * 40, ["i1"]]
    assert recommender.engine is None
    assert recommender.gpu_plan.graphs.why_not == "graphs are turned off"
    with use_backend("auto"):
        module = Recommender(model, NAMES, small_config(**changes), gpu="module")
        assert module.gpu_plan is None
        by_module = module.recommend(histories, k=ITEMS)
    calls = []
    states = recommender._ranker._plan.states
    recommender._ranker._plan.states = lambda *histories: calls.append(0) or states(*histories)
    by_plan = recommender.recommend(histories, k=ITEMS)
    assert calls
    for one, other in zip(by_plan, by_module, strict=True):
        ours, theirs = ({each.item: each.score for each in row} for row in (one, other))
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    vectors = recommender.user_states(histories)
    torch.testing.assert_close(joined(*vectors), joined(*module.user_states(histories)), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_plan_is_of_the_model_as_it_was():
    model = trained(method="plr")
    recommender = Recommender(model, NAMES, small_config())
    assert recommender.gpu_plan.graphs.why_not is None
    for copied in (copy.deepcopy(recommender), pickle.loads(pickle.dumps(recommender))):
        assert copied.gpu_plan is not None
        assert copied.gpu_plan is not recommender.gpu_plan
    with use_backend("reference"):
        assert recommender.gpu_plan is None
    assert recommender.gpu_plan is not None
    with torch.no_grad():
        model.encoder.layers[0].query.bias += 1
    assert recommender.gpu_plan is None
    with pytest.raises(ValueError, match="gpu must be one of graphs, launches, module; found 'off'"):
        Recommender(model, NAMES, small_config(), gpu="off")


def test_on_a_cpu_the_engine_comes_first():
    recommender = Recommender(trained(method="plr"), NAMES, small_config())
    if not TRITON_INTERPRETED:
        assert recommender.gpu_plan is None


@pytest.mark.skipif(TRITON_INTERPRETED, reason="runs tests in such a process, and is in one")
def test_under_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    selection = "triton and (exact or others)"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", selection]
    result = subprocess.run(command, cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
