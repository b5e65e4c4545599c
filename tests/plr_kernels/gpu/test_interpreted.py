"""The "triton" backend's results without a GPU: this package's own tests, run by Triton's interpreter.

The interpreter is chosen when Triton is imported, hence a process of its own. Left to a GPU are what repeats a
computation already checked here (the same bits, autocast, compilation: the interpreter takes seconds for each). Beyond
a block float16 has bfloat16's blocks; only losses on candidates scale it, and are left here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plr_kernels.dispatch.backend import TRITON_INTERPRETED

pytest.importorskip("triton")

TESTS = Path(__file__).parents[1]
FILES = [
    "operators/test_parity.py",
    "operators/test_stream_attention.py",
    "operators/test_pairwise_kl.py",
    "operators/test_linear_cross_entropy.py",
    "operators/test_candidate_cross_entropy.py",
    "operators/test_info_nce.py",
    "operators/test_extremes.py",
    "operators/test_half_precision_sums.py",
    "operators/test_top_items.py",
    "operators/test_target_rank.py",
    "operators/test_top_mixture_items.py",
    "operators/test_saved_tensors.py",
    "operators/test_functional.py",
    "operators/test_traced.py",
    "operators/test_defaults.py",
    "operators/test_not_finite.py",
    "gpu/test_registration.py",
]
LEFT_TO_A_GPU = (
    "autocast or for_all_shapes or same_bits or (only_where_asked and stream) or unbiased or padding_reaches"
    " or accurate_as_a_product or first_ids"
    " or ((beyond_one_block or half_precision_sums) and float16 and not bfloat16 and not candidate)"
    " or reentrant or nested or on_cpu or copied or second_backward or retained or draw_the_same or sequence"
    " or large_tables or all_equal_items or ((equal_vectors_tie or temperatures) and 40)"
    " or make_fx or export or device or nothing_to_compute or dropout_of_the_layer or (vmap or jacrev)"
)


@pytest.mark.skipif(TRITON_INTERPRETED, reason="runs tests in such a process, and is in one")
def test_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    selection = f"(triton-cpu or registration) and not ({LEFT_TO_A_GPU})"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *FILES, "-k", selection]
    result = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
