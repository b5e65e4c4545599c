"""A function of tensors of fixed shapes, captured once as a CUDA graph for each shape and replayed from then on.

A launch takes the host some microseconds, and small batches hardly more of the GPU: replayed, all launches of a call
are one.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch
from torch import Tensor

__all__ = ["MOST_BYTES", "Captured", "Graphs", "capture", "moved"]

MOST_BYTES = 2**30
"""How much of the GPU's memory all graphs may hold."""
Outputs = tuple[Tensor | None, ...]
Run = Callable[[Tensor], Outputs]
_CAPTURING: Final = threading.Lock()  # of all graphs: PyTorch takes one capture at a time in a process


class Captured(NamedTuple):
    """A run with its memory.

    Attributes:
        replay: from other inputs, on the CPU, of the same shape.
        outputs: what a replay writes.
        bytes: how much memory the graph holds.
    """

    replay: Callable[[Tensor], None]
    outputs: Outputs
    bytes: int


def capture(run: Run, inputs: Tensor) -> Captured:
    """Capture `run` on the GPU that the inputs are on; it has run before with such inputs, so that all is compiled.

    What PyTorch's allocator reserves while it is captured is the graph's own.

    Raises:
        RuntimeError: it cannot be captured.
    """
    device = inputs.device
    graph = torch.cuda.CUDAGraph()
    # PyTorch leaves a thread on the stream of a capture that was broken off.
    with _CAPTURING, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        torch.cuda.current_blas_handle()  # this thread's: to make one allocates, which a capture forbids
        # Other threads may call what a capture forbids, such as waiting for the device.
        captured = torch.cuda.graph(graph, stream=_capture_stream(device), capture_error_mode="thread_local")
        with _own_workspace(), captured:
            before = torch.cuda.memory_reserved(device)
            outputs = run(inputs)
            held = torch.cuda.memory_reserved(device) - before
    used: list[torch.cuda.Stream] = []

    def replay(others: Tensor) -> None:
        current = torch.cuda.current_stream(device)
        if used and used[0] != current:
            current.wait_stream(used[0])  # which may still be reading the same memory
        used[:] = [current]
        inputs.copy_(_pinned(others, device), non_blocking=True)
        graph.replay()

    return Captured(replay, outputs, held + inputs.nbytes)


@contextmanager
def _own_workspace() -> Iterator[None]:
    """Let what is captured have a workspace of cuBLAS for itself, in the graph's own memory.

    PyTorch keeps one for each stream, which lies in the memory of the graph that is captured first; the others have its
    address. Replayed on several streams they would write to it at the same time, and as soon as one of them is given
    up, to memory that is not theirs: with any graph of a stream PyTorch 2.13 drops the stream's workspace, and
    Lightning drops all when a trainer ends.
    """
    # Not public: a version of PyTorch that lacks it keeps no workspaces to be cleared.
    clear: Callable[[], None] = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    clear()
    try:
        yield
    finally:
        clear()


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all captures on a device."""
    return torch.cuda.Stream(device)


class Graphs:
    """Graphs of a function, one for each shape, those used last: as many as some memory holds.

    The first call with a shape runs the function, which compiles kernels; the second captures it; later ones replay. A
    shape that has been given up for others is captured anew when it comes again. What cannot be captured is launched
    instead, with a warning that says why.

    Args:
        most_bytes: how much memory all graphs may hold; 0 captures nothing.
        capture: what captures.

    Attributes:
        why_not: why nothing more is captured; None where it is.
        replays: how many calls were replayed.
    """

    def __init__(self, most_bytes: int = MOST_BYTES, capture: Callable[[Run, Tensor], Captured] = capture) -> None:
        self.most_bytes = most_bytes
        self.why_not: str | None = None if most_bytes else "graphs are turned off"
        self.replays = 0
        self._capture = capture
        self._captured: OrderedDict[Hashable, Captured] = OrderedDict()
        self._launched: set[Hashable] = set()  # to the end, and thereby compiled
        self._too_large: set[Hashable] = set()
        self._lock = threading.Lock()  # a graph has one memory for inputs and outputs

    @property
    def bytes(self) -> int:
        """How much memory the graphs hold."""
        return sum(each.bytes for each in self._captured.values())

    @property
    def shapes(self) -> list[Hashable]:
        """The shapes that are captured, the one used last at the end."""
        return list(self._captured)

    def __call__(self, shape: Hashable, run: Run, inputs: Tensor, device: torch.device) -> Outputs:
        """Return run(inputs on the device), whose tensors are the caller's own.

        Args:
            shape: all that decides what `run` launches, but the inputs' values.
            run: int64 inputs on the device -> outputs; it waits for nothing.
            inputs: int64 on the CPU.
            device: where it runs.
        """
        with self._lock:
            captured = self._of(shape, run, inputs, device)
            if captured is not None:
                captured.replay(inputs)
                self.replays += 1
                return tuple(None if each is None else each.clone() for each in captured.outputs)
        outputs = run(moved(inputs, device))
        with self._lock:
            self._launched.add(shape)
        return outputs

    def _of(self, shape: Hashable, run: Run, inputs: Tensor, device: torch.device) -> Captured | None:
        """Return the shape's graph; None where the call is to be launched."""
        if shape in self._captured:
            self._captured.move_to_end(shape)
            return self._captured[shape]
        if self.why_not is not None or shape in self._too_large:
            return None
        if shape not in self._launched:  # or another thread's first call is still compiling, which a capture forbids
            return None
        try:
            captured = self._capture(run, moved(inputs, device))
        except RuntimeError as error:
            # PyTorch does not always recover from a capture that was broken off: no other is tried.
            first = (str(error).splitlines() or [""])[0]
            self.why_not = f"a capture failed: {type(error).__name__}: {first}"
            _warn(self.why_not)
            return None
        if captured.bytes > self.most_bytes:
            if not self._too_large:
                _warn(f"the graph of {shape} takes {captured.bytes:,} bytes, and all may take {self.most_bytes:,}")
            self._too_large.add(shape)
            return None
        self._captured[shape] = captured
        while self.bytes > self.most_bytes:
            self._captured.popitem(last=False)
        return captured


def _warn(reason: str) -> None:
    warnings.warn(f"kernels are launched one by one instead of as a CUDA graph: {reason}", stacklevel=2)


def _pinned(inputs: Tensor, device: torch.device) -> Tensor:
    """The inputs in memory that a GPU copies from while the host goes on; PyTorch keeps it until that is done."""
    return inputs.pin_memory() if device.type == "cuda" else inputs


def moved(inputs: Tensor, device: torch.device) -> Tensor:
    """The inputs, on the CPU, on the device in memory of their own; the host does not wait for it."""
    return _pinned(inputs, device).to(device, non_blocking=True, copy=True)
