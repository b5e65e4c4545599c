"""Tries an installed plr outside of its source: what is in the package, the operators, a small training.

    python .ci/try_wheel.py [--no-extensions]

With --no-extensions the C++ extensions may be missing, as on Windows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

import plr
import plr_kernels

PACKAGE_DATA = {
    plr: ["py.typed", "prepare/_cpp.pyi", "presets/plr-paper.yaml"],
    plr_kernels: ["py.typed", "_cpp.pyi"],
}


def run(*command: str) -> str:
    """Run `plr` in the current folder and return what it prints."""
    done = subprocess.run([sys.executable, "-m", "plr", *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"plr {' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def check_package(extensions: bool) -> None:
    """Raise where the package lacks a file, or is that of the source."""
    for package, files in PACKAGE_DATA.items():
        folder = Path(str(package.__file__)).parent
        assert Path(__file__).parents[1] not in folder.parents, f"{folder}: this is the source, not what was installed"
        for file in files:
            assert (folder / file).is_file(), f"{folder / file} is missing"
    if extensions:
        for name in ("plr_kernels._cpp", "plr.prepare._cpp"):
            assert find_spec(name) is not None, f"{name} was not built"


def check_operators(backends: list[str]) -> None:
    """Raise where a backend is wrong by more than rounding."""
    torch.manual_seed(0)
    states, items, targets = torch.randn(32, 16), torch.randn(500, 16), torch.randint(0, 500, (32,))
    truth = torch.nn.functional.cross_entropy(states.double() @ items.double().T, targets)
    for backend in backends:
        with plr_kernels.use_backend(backend):
            loss = plr_kernels.linear_cross_entropy(states, items, targets)
            _, best = plr_kernels.top_items(states, items, 5)
        torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0.0)
        assert torch.equal(best, (states @ items.T).topk(5).indices), backend


def check_commands() -> None:
    """Prepare, train, evaluate, recommend in an empty folder."""
    walks = [" ".join(f"i{(user * 7 + step) % 24}" for step in range(5 + user % 6)) for user in range(60)]
    lines = [f"u{user} {walk}\n" for user, walk in enumerate(walks)]
    Path("ring.txt").write_text("".join(lines), encoding="utf-8")
    assert "train" in run("--help")
    assert "plr-paper" in run("presets")
    run("prepare", "ring.txt", "--out", "data")
    sizes = ["--dim", "16", "--ffn_dim", "16", "--max_length", "10", "--batch_size", "32", "--epochs", "2"]
    run("train", "--data", "data", "--method", "plr", "--out", "run", *sizes, "--progress", "false")
    run("evaluate", "run")
    assert "i" in run("recommend", "run", "--history", "i1 i2 i3", "-k", "3")


def main() -> None:
    """Try everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-extensions", action="store_true", default=sys.platform == "win32")
    extensions = not parser.parse_args().no_extensions
    check_package(extensions)
    check_operators(["reference", "cpp"] if extensions else ["reference"])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        check_commands()
        os.chdir(Path(__file__).parents[1])
    print(f"plr {plr.__version__} as installed in {Path(str(plr.__file__)).parent} works")


if __name__ == "__main__":
    main()
