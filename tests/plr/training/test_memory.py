import ctypes
import os
import sys

import pytest
import torch

from plr.training.memory import ReturnFreedMemory

MIB = 2**20


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_freed_blocks_between_kept_ones_are_returned():
    blocks = [torch.ones(100_000 // 4) for _ in range(1000)]  # 95 MiB, none large enough for a mapping of its own
    blocks = blocks[::10]
    before = resident()

    ReturnFreedMemory().on_train_epoch_end(None, None)

    assert before - resident() > 50 * MIB
    assert all(bool((block == 1).all()) for block in blocks)
