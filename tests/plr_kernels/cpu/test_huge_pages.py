"""Large gradients are written into huge pages: those of 4 KiB take twenty times the page faults."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

import plr_kernels

MAPS = Path("/proc/self/smaps")

pytestmark = pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells how memory is mapped")


def wants_huge_pages(address: int) -> bool:
    """Whether the mapping that holds the address has the flag "hg"."""
    inside = False
    for line in MAPS.read_text().splitlines():
        name, *others = line.split()
        if "-" in name and not name.endswith(":"):
            first, end = (int(bound, 16) for bound in name.split("-"))
            inside = first <= address < end
        elif inside and name == "VmFlags:":
            return "hg" in others
    raise AssertionError("no mapping holds the address")


def test_a_gradient_from_the_system_wants_huge_pages() -> None:
    """Memory for 40,000 items of 256 numbers comes from the system at each call; that of less may be used again."""
    states = torch.randn(2, 256, requires_grad=True)
    table = torch.randn(40_000, 256, requires_grad=True)
    plr_kernels.linear_cross_entropy(states, table, torch.tensor([1, 39_999])).backward()
    assert table.grad is not None
    assert wants_huge_pages(table.grad.data_ptr() + table.grad.nbytes // 2)
    assert not wants_huge_pages(table.data_ptr() + table.nbytes // 2)
