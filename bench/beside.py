"""Other programs that compute while something is measured: a machine is seldom the measured program's alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Ends with the process that started it, however that ends.
_PROGRAM = """
import os
import torch
torch.set_num_threads(1)
matrix = torch.randn(512, 512)
parent = os.getppid()
print("computes", flush=True)
while os.getppid() == parent:
    matrix @ matrix
"""


@contextmanager
def programs(count: int) -> Iterator[None]:
    """`count` processes that multiply matrices, with one thread each, all the while."""
    running: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True))
        for program in running:
            assert program.stdout is not None
            if not program.stdout.readline():
                raise RuntimeError(f"a program that was to compute beside the benchmarks ended: {program.wait()}")
        yield
    finally:
        for program in running:
            program.kill()
            program.communicate(timeout=10)
