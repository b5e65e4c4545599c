"""Operators in a child that was forked after they had run on two threads: right values, and no waiting for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("plr_kernels._cpp")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# More than a fair part of work for each of two threads, csrc/threads.cpp.
PROGRAM = """
import os, sys, threading
import numpy as np
import torch
import plr_kernels

torch.set_num_threads(2)
torch.manual_seed(0)
states, items = torch.randn(512, 64), torch.randn(4096, 64)
targets = torch.randint(4096, (512,))
views, others = torch.randn(2, 4, 512, 64)
query, prefix, stream = torch.randn(64, 4, 8, 32), torch.randn(64, 4, 256, 32), torch.randn(64, 4, 8, 3, 32)
weights = torch.full((128, 4), 0.25).log()

def gradients(function, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]

def compute():
    results = [
        *gradients(lambda *tensors: plr_kernels.linear_cross_entropy(*tensors, targets), states, items),
        *gradients(lambda *tensors: plr_kernels.pairwise_kl(*tensors), states.view(64, 8, 64), items),
        *gradients(plr_kernels.info_nce, views, others),
        *gradients(plr_kernels.stream_attention, query, prefix, prefix, stream, stream),
        *plr_kernels.top_items(states, items, 10),
    ]
    mixture = lambda *tensors: plr_kernels.mixture_cross_entropy(*tensors, targets[:128])
    results += gradients(mixture, states.view(128, 4, 64), weights, items)
    consistent = lambda *tensors: plr_kernels.consistent_mixture_cross_entropy(
        *tensors, targets[:64], targets[:64] % 4, weight=1.0
    )[0]
    results += gradients(consistent, states.view(64, 2, 4, 64), weights.view(64, 2, 4), items)
    return results

def forward():
    "The operators alone: nothing of PyTorch that would take a second thread."
    with torch.no_grad():
        return [
            plr_kernels.linear_cross_entropy(states, items, targets),
            plr_kernels.pairwise_kl(states.view(64, 8, 64), items),
            plr_kernels.info_nce(views, others),
            plr_kernels.stream_attention(query, prefix, prefix, stream, stream),
            *plr_kernels.top_items(states, items, 10),
        ]

def same(results):
    # By numpy: PyTorch would take a second thread.
    return all(np.array_equal(*pair) for pair in zip(results, expected, strict=True))

PARENT
read, write = os.pipe()
if os.fork() == 0:
    answer = b"failed"
    try:
        CHILD
        answer = b"right" if right else b"wrong"
    finally:
        os.write(write, answer)
        os._exit(0)
os.close(write)
print(os.read(read, 10).decode())
"""
USED = "expected = compute()"
COMPUTED = "right = same(compute())"
FORWARD = "torch.set_num_threads(2); right = same(forward())"
IN_A_THREAD = (
    "torch.set_num_threads(2); results = [];"
    "thread = threading.Thread(target=lambda: results.extend(forward())); thread.start(); thread.join();"
    "right = same(results)"
)


def answer(parent: str, child: str) -> str:
    """What a child says that a parent forks; a child that hangs is killed with its process group."""
    program = PROGRAM.replace("PARENT", parent).replace("CHILD", child)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "PLR_KERNELS_BACKEND": "cpp"}
    environment.pop("OMP_NUM_THREADS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=90)[0].strip()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return "hangs"


@pytest.mark.parametrize(
    ("parent", "child"),
    [
        pytest.param(USED, COMPUTED, id="one thread, since PyTorch gets no more"),
        pytest.param("expected = forward()", FORWARD, id="two threads of its own"),
        pytest.param("expected = forward()", IN_A_THREAD, id="in another thread"),
        pytest.param(f"{USED}; states @ items.T", f"states @ items.T; {COMPUTED}", id="PyTorch's products, too"),
        pytest.param(
            "torch.set_num_threads(1); expected = forward(); torch.set_num_threads(2); states @ items.T", FORWARD,
            id="PyTorch alone had used threads",
        ),
        pytest.param(
            USED, "p = os.fork() or os._exit(not same(compute())); right = os.waitpid(p, 0)[1] == 0", id="grandchild"
        ),
    ],
)  # fmt: skip
def test_a_forked_child_computes(parent, child):
    assert answer(parent, child) == "right"


def test_threads_that_pytorch_alone_lost_are_left_to_it():
    """A child forked before any operator ran keeps PyTorch's number of threads."""
    child = "right = torch.get_num_threads() == 2"
    assert answer("", child) == "right"
    assert answer(USED, child.replace("2", "1")) == "right"
