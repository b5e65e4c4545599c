"""When shapes are captured, replayed and given up; what captures is a stand-in, as capturing needs a GPU."""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from plr.serving import cuda_graphs
from plr.serving.cuda_graphs import Captured, Graphs, capture

CPU = torch.device("cpu")


class Recorder:
    """Captures as CUDA does, as far as that shows: a replay computes from the same memory, into the same memory."""

    def __init__(self, sizes=None, fails=None):
        self.captured, self.replayed, self.sizes, self.fails = [], 0, sizes or {}, fails

    def __call__(self, run, inputs):
        if self.fails is not None:
            raise self.fails
        shape = len(inputs)
        self.captured.append(shape)
        outputs = run(inputs)

        def replay(others):
            self.replayed += 1
            inputs.copy_(others)
            for old, new in zip(outputs, run(inputs), strict=True):
                if old is not None:
                    old.copy_(new)

        return Captured(replay, outputs, self.sizes.get(shape, 1))


@pytest.fixture
def launched():
    """A function of which every call is noted."""
    calls = []

    def run(inputs):
        calls.append(len(inputs))
        return inputs * 2.0, None

    return SimpleNamespace(run=run, calls=calls)


def asked(graphs, launched, size, start=0):
    inputs = torch.arange(start, start + size)
    result, nothing = graphs(size, launched.run, inputs, CPU)
    assert nothing is None
    assert torch.equal(result, inputs * 2.0)
    return result


def test_a_shape_is_launched_then_captured_then_replayed(launched):
    recorder = Recorder()
    graphs = Graphs(10, recorder)
    asked(graphs, launched, 3)
    assert (recorder.captured, graphs.replays) == ([], 0)
    asked(graphs, launched, 3, 5)
    assert (recorder.captured, graphs.replays) == ([3], 1)
    kept = asked(graphs, launched, 3, 7)
    before = kept.clone()
    asked(graphs, launched, 3, 9)
    assert torch.equal(kept, before)  # an answer is not overwritten by the next
    assert (recorder.captured, graphs.replays, recorder.replayed) == ([3], 3, 3)
    assert graphs.shapes == [3]


def test_shapes_used_last_stay(launched):
    recorder = Recorder()
    graphs = Graphs(2, recorder)
    for size in (1, 1, 2, 2, 1, 3, 3):
        asked(graphs, launched, size)
    assert graphs.shapes == [1, 3]  # 2 was used longest ago
    assert graphs.bytes == 2
    asked(graphs, launched, 2)  # compiled long since: captured at once
    assert recorder.captured == [1, 2, 3, 2]
    assert graphs.shapes == [3, 2]


def test_several_small_graphs_make_room_for_a_large_one(launched):
    graphs = Graphs(10, Recorder({9: 10}))
    for size in (1, 1, 2, 2, 3, 3, 9, 9):
        asked(graphs, launched, size)
    assert graphs.shapes == [9]


def test_a_graph_beyond_the_limit_is_launched_and_said_once(launched):
    recorder = Recorder({5: 11, 6: 12})
    graphs = Graphs(10, recorder)
    asked(graphs, launched, 5)
    with pytest.warns(UserWarning, match="the graph of 5 takes 11 bytes, and all may take 10"):
        asked(graphs, launched, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (5, 6, 6, 6, 2, 2, 5):
            asked(graphs, launched, size)
    assert recorder.captured == [5, 6, 2]  # each once
    assert graphs.shapes == [2]
    assert graphs.why_not is None


def test_after_a_capture_that_failed_all_is_launched_and_said_once(launched):
    graphs = Graphs(10, Recorder(fails=torch.OutOfMemoryError("no room\nat all")))
    asked(graphs, launched, 4)
    with pytest.warns(UserWarning, match="launched one by one .*: a capture failed: OutOfMemoryError: no room"):
        asked(graphs, launched, 4)
    assert graphs.why_not == "a capture failed: OutOfMemoryError: no room"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (4, 5, 5, 5):
            asked(graphs, launched, size)
    assert graphs.shapes == []
    assert launched.calls == [4, 4, 4, 5, 5, 5]


def test_graphs_that_are_turned_off(launched):
    recorder = Recorder()
    graphs = Graphs(0, recorder)
    for _ in range(3):
        asked(graphs, launched, 4)
    assert (recorder.captured, graphs.why_not) == ([], "graphs are turned off")


def test_other_errors_are_not_taken_for_a_capture_that_failed(launched):
    graphs = Graphs(10, Recorder(fails=ValueError("a mistake")))
    asked(graphs, launched, 4)
    with pytest.raises(ValueError, match="a mistake"):
        asked(graphs, launched, 4)


def test_inputs_of_the_caller_are_not_kept(launched):
    graphs = Graphs(10, Recorder())
    inputs = torch.arange(3)
    for _ in range(2):
        graphs(3, launched.run, inputs, CPU)
    asked(graphs, launched, 3, 20)
    assert torch.equal(inputs, torch.arange(3))


def test_a_shape_is_not_captured_while_its_first_call_is_still_compiling():
    """A capture must not load a kernel: it would fail, and nothing be captured any more."""
    recorder = Recorder()
    graphs = Graphs(10, recorder)
    compiling, compiled = threading.Event(), threading.Event()

    def run(inputs):
        if threading.current_thread() is first:
            compiling.set()
            assert compiled.wait(60)
        return (inputs * 2.0,)

    first = threading.Thread(target=graphs, args=(3, run, torch.arange(3), CPU))
    first.start()
    assert compiling.wait(60)
    graphs(3, run, torch.arange(3), CPU)
    # What another thread has compiled meanwhile counts: it has run to its end.
    before = recorder.captured[:]
    compiled.set()
    first.join()
    graphs(3, run, torch.arange(3), CPU)
    assert (before, recorder.captured) == ([], [3])


def test_what_a_call_that_fails_was_to_compile_is_not_captured(launched):
    recorder = Recorder()
    graphs = Graphs(10, recorder)

    def fails(inputs):
        raise ValueError("out of memory, say")

    with pytest.raises(ValueError, match="out of memory"):
        graphs(3, fails, torch.arange(3), CPU)
    asked(graphs, launched, 3)
    assert recorder.captured == []
    asked(graphs, launched, 3)
    assert recorder.captured == [3]


class Heard(list):
    """Events, and the `current` stream."""


@pytest.fixture
def events(monkeypatch):
    """What `capture` asks of CUDA, in order, as a stand-in for CUDA hears it."""
    heard = Heard()
    heard.current = "the caller's"

    @contextmanager
    def stream(entered):
        before, heard.current = heard.current, entered
        try:
            yield
        finally:
            heard.current = before

    @contextmanager
    def graph(cuda_graph, stream, capture_error_mode):
        before, heard.current = heard.current, stream
        heard.append("begin")
        yield  # which may raise, and then the stream stays
        heard.append("end")
        heard.current = before

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: heard.current)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: heard.append("replay")))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_blas_handle", lambda: heard.append("handle"))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 100 + 7 * heard.count("run"))
    monkeypatch.setattr(cuda_graphs, "_capture_stream", lambda device: "of captures")
    clear = "_cuda_clearCublasWorkspaces"  # which a build without CUDA lacks
    monkeypatch.setattr(torch._C, clear, lambda: heard.append("clear"), raising=False)
    return heard


def test_each_graph_has_a_workspace_of_its_own(events):
    """That of the stream would go when any of its graphs is given up, and be written by all at once."""

    def run(inputs):
        events.append("run")
        return (inputs,)

    captured = capture(run, torch.arange(3))
    assert events == ["handle", "clear", "begin", "run", "end", "clear"]
    assert captured.bytes == 7 + 3 * 8


def test_a_capture_that_failed_leaves_no_workspace_and_the_caller_s_stream(events):
    def run(inputs):
        raise RuntimeError("cannot be captured")

    with pytest.raises(RuntimeError, match="cannot be captured"):
        capture(run, torch.arange(3))
    assert events == ["handle", "clear", "begin", "clear"]
    assert events.current == "the caller's"


def test_one_graph_is_captured_at_a_time(events):
    """PyTorch takes no more in a process; those of several recommenders are captured on one stream."""
    running, end = threading.Event(), threading.Event()

    def slow(inputs):
        running.set()
        assert end.wait(60)
        return (inputs,)

    def quick(inputs):
        return (inputs,)

    threads = [threading.Thread(target=capture, args=(run, torch.arange(3))) for run in (slow, quick)]
    threads[0].start()
    assert running.wait(60)
    threads[1].start()
    threads[1].join(0.5)
    assert events.count("begin") == 1
    end.set()
    for thread in threads:
        thread.join()
    assert events == ["handle", "clear", "begin", "end", "clear"] * 2


def test_pytorch_has_what_clears_workspaces():
    """A build without CUDA lacks it, but for its description."""
    description = Path(torch.__file__).parent / "_C" / "__init__.pyi"
    assert "def _cuda_clearCublasWorkspaces() -> None" in description.read_text(encoding="utf-8")
