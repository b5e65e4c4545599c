"""Which implementation runs, and what is said where one cannot."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

import plr_kernels
from plr_kernels import pairwise_kl, use_backend
from plr_kernels.dispatch import backend
from plr_kernels.dispatch.backend import resolve
from plr_kernels.dispatch.errors import SettingError


def implementation_of(name):
    def run(*_):
        return name

    return run


FUSED = {name: implementation_of(name) for name in ("reference", "cpp", "triton")}
ONLY_REFERENCE = {"reference": implementation_of("reference")}
CPU = torch.zeros(1)


@pytest.fixture
def _everything_built(monkeypatch):
    monkeypatch.setattr(backend, "_MISSING", {"cpp": None, "triton": None})


@pytest.fixture(autouse=True)
def _auto():
    with use_backend("auto"):
        yield


class GPUTensor:
    """What `resolve` looks at, of a tensor on a GPU."""

    device = torch.device("cuda", 0)
    dtype = torch.float32


def chosen(implementations, tensor):
    return resolve("pairwise_kl", implementations, tensor)()


@pytest.mark.usefixtures("_everything_built")
def test_auto_takes_the_fused_backend_of_the_device():
    assert chosen(FUSED, CPU) == "cpp"
    assert chosen(FUSED, GPUTensor) == "triton"
    assert chosen(ONLY_REFERENCE, CPU) == "reference"
    assert chosen(ONLY_REFERENCE, GPUTensor) == "reference"
    assert chosen(FUSED, CPU.double()) == "reference"


def test_auto_falls_back_where_something_is_missing(monkeypatch):
    monkeypatch.setattr(backend, "_MISSING", {"cpp": "not built", "triton": "not installed"})
    assert chosen(FUSED, CPU) == "reference"
    assert chosen(FUSED, GPUTensor) == "reference"


@pytest.mark.usefixtures("_everything_built")
def test_forward_mode_derivatives_are_those_of_the_reference():
    torch.manual_seed(0)
    states, items, tangent = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(2, 3, 4)

    def loss(states):
        return pairwise_kl(states, items)

    _, derivative = torch.func.jvp(loss, (states,), (tangent,))
    (gradient,) = torch.autograd.grad(loss(leaf := states.requires_grad_()), leaf)
    torch.testing.assert_close(derivative, (gradient * tangent).sum())
    with use_backend("cpp"), pytest.raises(RuntimeError, match="'cpp' cannot run pairwise_kl: it has no forward-mode"):
        torch.func.jvp(loss, (states.detach(),), (tangent,))


def test_block_restores_and_call_stays():
    assert backend._selected == "auto"
    with use_backend("reference"):
        assert backend._selected == "reference"
        with use_backend("auto"):
            assert backend._selected == "auto"
        assert backend._selected == "reference"
    assert backend._selected == "auto"
    use_backend("reference")
    assert backend._selected == "reference"


def test_a_choice_that_is_kept_serves_several_blocks():
    reference = use_backend("reference")
    for _ in range(2):
        with reference:
            assert backend._selected == "reference"
            with use_backend("auto"), reference:
                assert backend._selected == "reference"
            assert backend._selected == "reference"
        assert backend._selected == "auto"


def leave_with_an_error():
    with use_backend("reference"):
        raise KeyError


def test_block_restores_after_an_error():
    with pytest.raises(KeyError):
        leave_with_an_error()
    assert backend._selected == "auto"


def test_unknown_name():
    with pytest.raises(ValueError, match="backend must be one of auto, reference, cpp, triton; found 'cuda'"):
        use_backend("cuda")
    assert backend._selected == "auto"


def test_missing_backend_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(backend, "_MISSING", {"cpp": "its extension was not built", "triton": None})
    monkeypatch.setattr(backend, "TRITON_INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"'cpp' cannot run: its extension was not built\. Accepted here: auto, ref"):
        use_backend("cpp")
    with pytest.raises(RuntimeError, match="'triton' cannot run: no GPU is visible"):
        use_backend("triton")
    assert backend.runnable_backends() == ("auto", "reference")
    monkeypatch.setattr(backend, "TRITON_INTERPRETED", True)
    assert backend.runnable_backends() == ("auto", "reference", "triton")
    with use_backend("triton"):
        assert chosen(FUSED, CPU) == "triton"


@pytest.mark.usefixtures("_everything_built")
def test_a_named_backend_never_falls_back(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend, "TRITON_INTERPRETED", False)
    with use_backend("triton"):
        assert chosen(FUSED, GPUTensor) == "triton"
        with pytest.raises(RuntimeError, match="'triton' cannot run pairwise_kl: it takes GPU tensors, found one"):
            chosen(FUSED, CPU)
        with pytest.raises(RuntimeError, match="'triton' cannot run pairwise_kl: this operator has only: reference"):
            chosen(ONLY_REFERENCE, GPUTensor)
    with use_backend("cpp"):
        with pytest.raises(RuntimeError, match="'cpp' cannot run pairwise_kl: it takes CPU tensors, found one"):
            chosen(FUSED, GPUTensor)
        with pytest.raises(RuntimeError, match="float64 is for the reference backend"):
            chosen(FUSED, CPU.double())
    with use_backend("reference"):
        assert chosen(FUSED, GPUTensor) == chosen(FUSED, CPU) == "reference"


def test_environment_variable():
    code = "from plr_kernels.dispatch import backend; print(backend._selected)"
    environment = {**os.environ, backend.ENVIRONMENT_VARIABLE: "reference"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "reference"


def test_compiled_function_follows_a_later_choice(monkeypatch):
    """The choice is guarded on: changing it compiles anew instead of running the earlier one."""
    from plr_kernels.pairwise_kl import operator

    monkeypatch.setattr(backend, "_MISSING", {"cpp": None, "triton": None})
    monkeypatch.setitem(operator.IMPLEMENTATIONS, "cpp", lambda states, *_: states.sum() * 0 + 42)
    compiled = torch.compile(pairwise_kl, fullgraph=True, backend="aot_eager")
    states, items = torch.randn(2, 3, 4), torch.randn(5, 4)
    with use_backend("cpp"):
        assert compiled(states, items).item() == 42
    with use_backend("reference"):
        torch.testing.assert_close(compiled(states, items), pairwise_kl(states, items))
    with use_backend("cpp"):
        assert compiled(states, items).item() == 42


@pytest.mark.parametrize(("chosen", "warned"), [("auto", True), ("reference", False)])
def test_an_installation_without_the_extension_says_so_once(chosen, warned):
    program = (
        "import sys; sys.modules['plr_kernels._cpp'] = None\n"  # its import now fails
        "import torch; torch.cuda.is_available = lambda: False\n"
        "import plr_kernels\n"
        "plr_kernels.info_nce(torch.ones(1, 2, 3), torch.ones(1, 2, 3))\n"
    )
    environment = {**os.environ, "PLR_KERNELS_BACKEND": chosen}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr.count("C++ backend is missing") == warned


UNUSABLE = {
    "PLR_KERNELS_BACKEND=x": "backend must be one of auto, reference, cpp, triton; found 'x'",
    "PLR_KERNELS_BACKEND=": "backend must be one of auto, reference, cpp, triton; found ''",
    "PLR_KERNELS_INSTRUCTION_SET=avx1024": (
        "the instruction set must be one of auto, .*generic.* on this CPU; found 'avx1024'"
    ),
    "PLR_KERNELS_WORKSPACE_MB=-1": "must be a whole number of megabytes, 0 or more; found '-1'",
    "PLR_KERNELS_WORKSPACE_MB=": "must be a whole number of megabytes, 0 or more; found ''",
}
# Each in a fork of one process, which has imported PyTorch.
IMPORTING = """
import os, sys, torch
for setting in sys.argv[1:]:
    if not os.fork():
        name, _, value = setting.partition("=")
        os.environ[name] = value
        try: import plr_kernels
        except ValueError as error: print(setting, type(error).__qualname__, type(error).__module__, error, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def said_on_import():
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    done = subprocess.run([sys.executable, "-c", IMPORTING, *UNUSABLE], capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.parametrize("setting", UNUSABLE)
def test_unusable_settings_are_found_on_import(setting, said_on_import):
    if "INSTRUCTION_SET" in setting:
        pytest.importorskip("plr_kernels._cpp")
    name = setting.partition("=")[0]
    expected = f"^{re.escape(setting)} SettingError plr_kernels.dispatch.errors {name}: {UNUSABLE[setting]}$"
    assert re.search(expected, said_on_import, re.MULTILINE), said_on_import


def test_an_instruction_set_that_this_cpu_lacks(monkeypatch):
    extension = pytest.importorskip("plr_kernels.extension")
    cpp = extension._cpp

    class OldCPU:
        @staticmethod
        def instruction_set(name):
            return cpp.instruction_set("generic") if name in ("auto", "generic") else None

    monkeypatch.setenv("PLR_KERNELS_INSTRUCTION_SET", "avx2")
    monkeypatch.setattr(plr_kernels, "_cpp", OldCPU)
    again = importlib.util.module_from_spec(extension.__spec__)
    with pytest.raises(SettingError, match="must be one of auto, generic on this CPU; found 'avx2'"):
        extension.__spec__.loader.exec_module(again)
