"""What the Triton kernels ask of torch when they are launched."""

from __future__ import annotations

import pytest
import torch

from plr_kernels.triton_shared import launch


@pytest.fixture
def restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("older", ["highest", "high", "medium"])
def test_precision_of_the_older_interface(older):
    torch.set_float32_matmul_precision(older)
    assert launch.float32_precision() == older


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="PyTorch before 2.9 has the older one alone")
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [("highest", "tf32", "medium"), ("highest", "ieee", "highest"), ("high", "ieee", "highest"),
     ("high", "tf32", "high"), ("medium", "tf32", "medium")],
)  # fmt: skip
def test_precision_of_the_newer_interface(older, newer, expected):
    torch.set_float32_matmul_precision(older)
    torch.backends.cuda.matmul.fp32_precision = newer
    assert launch.float32_precision() == expected
