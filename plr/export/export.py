"""One run, one format: written aside, checked against the run, then renamed into place."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plr.errors import ConfigError
from plr.export.check import Checked, check_ranking
from plr.export.compiled import load_compiled, write_compiled
from plr.export.program import load_onnx, load_program, write_onnx, write_program
from plr.export.vectors import load_vectors, write_vectors
from plr.files import atomic_path
from plr.serving import Recommender

FORMATS = ("vectors", "torch", "aoti", "onnx")
_SUFFIXES = {"vectors": "", "torch": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_run(
    run: str | Path, to: str, out: str | Path, *, k: int | None = None, exclude_seen: bool | None = None
) -> Checked:
    """Write a finished run in a format that other programs read; see docs/export.md.

    Args:
        run: the run's folder.
        to: one of `FORMATS`.
        out: the folder of vectors, or the file: .pt2 for torch and aoti, .onnx for onnx. What is there is replaced
            once the export has answered as the run does.
        k: how many items a history gets; None: 10, or all where there are fewer. Of programs, not of vectors.
        exclude_seen: do not return items of the history; None does as the run was evaluated. Of programs likewise.

    Returns:
        How well the export agrees with the run.

    Raises:
        ConfigError: an argument that cannot be, or packages of `plr[export]` that are not installed.
        RunError: the run cannot be exported, or the export answers otherwise than the run; `out` is as it was.
        FileNotFoundError: there is no finished run.
    """
    out = Path(out)
    _check_arguments(to, out)
    for name, given in (("k", k), ("exclude_seen", exclude_seen)):
        if to == "vectors" and given is not None:
            raise ConfigError(f"{name} is of programs, torch, aoti and onnx: vectors have none; found {given!r}")
    recommender = Recommender.load(run)
    k = recommender.checked_k(k)
    seen = recommender.config.exclude_seen if exclude_seen is None else exclude_seen
    manifest = _manifest(recommender, run, to, k, seen)
    write, load = _writer(to)
    with atomic_path(out) as aside:
        write(recommender, aside, manifest)
        return check_ranking(recommender, load(recommender, aside, manifest), k, seen)


def _writer(to: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    return {
        "vectors": (write_vectors, load_vectors),
        "torch": (write_program, load_program),
        "aoti": (write_compiled, load_compiled),
        "onnx": (write_onnx, load_onnx),
    }[to]


def _check_arguments(to: str, out: Path) -> None:
    if to not in FORMATS:
        raise ConfigError(f"to must be one of {', '.join(FORMATS)}; found {to!r}")
    suffix = _SUFFIXES[to]
    if suffix and out.suffix != suffix:
        raise ConfigError(f"out must be a file that ends in {suffix}, as {to} has it; found {str(out)!r}")
    if out.is_dir() and any(out.iterdir()) and (to != "vectors" or not _is_own_folder(out)):
        raise ConfigError(f"out must not be a folder of something else; found {str(out)!r}")
    if to == "vectors" and out.exists() and not out.is_dir():
        raise ConfigError(f"out must be a folder; found the file {str(out)!r}")
    missing = [name for name in _ONNX_PACKAGES if to == "onnx" and find_spec(name) is None]
    if missing:
        raise ConfigError(f"onnx needs {', '.join(missing)}, not installed here: pip install -e '.[export]'")


def _is_own_folder(folder: Path) -> bool:
    """Whether vectors were written there before."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["format"] == "plr vectors"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _manifest(recommender: Recommender, run: str | Path, to: str, k: int, exclude_seen: bool) -> dict[str, Any]:
    config = recommender.config
    facts = {
        "format": f"plr {to}",
        "format_version": 1,
        "run": str(Path(run).resolve().name),
        "system": config.title,
        "items": len(recommender.item_ids),
        "max_length": config.max_length,
    }
    return facts if to == "vectors" else {**facts, "k": k, "exclude_seen": exclude_seen}
