from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

# torch.compile finds what it kept by a key that does not name the instruction set: code made where ATEN_CPU_CAPABILITY
# said another one would be taken as it is, and counts wrongly. So each set has a folder of its own.
_COMPILED = Path(__file__).parents[1] / ".pytest_cache" / f"compiled-{torch.backends.cpu.get_cpu_capability()}"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(_COMPILED)

# A worker of pytest-xdist was started by python -c; several devices need a program in a file, as pytest is.
if not Path(sys.argv[0]).is_file():
    sys.argv[0] = __file__

# The tests' tensors are small: a second thread costs more in waiting than it saves in computing.
torch.set_num_threads(1)


# Of the files that take longest, in this order. Several processes get files in the order in which they stand (.ci/run):
# a long one begun last would keep all but one waiting.
LONGEST = (
    "plr_kernels/gpu/test_interpreted.py",
    "plr_kernels/gpu/test_compiled.py",
    "plr/training/test_one_law.py",
    "plr/reproduce/test_reproduce.py",
    "plr/training/test_distributed.py",
    "plr/training/test_systems.py",
    "plr_kernels/operators/test_parity.py",
    "plr_kernels/operators/test_traced.py",
    "plr/cli/test_kills.py",
    "test_tutorials.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first; the others, and each file's tests, stay in their order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def _nothing_for_other_runs_of_pytest():
    """What this run was told, and that it is one of several processes, is not for the runs that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name == "PYTEST_ADDOPTS" or name.startswith("PYTEST_XDIST")]:
            patch.delenv(name)
        yield


@pytest.fixture
def _default_dtype_restored():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)
