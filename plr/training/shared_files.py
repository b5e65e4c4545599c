"""Files of tensors of which each process of a run has some rows: whole tables, that no process ever has."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
import torch.distributed as distributed
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plr.errors import RunError
from plr.files import atomic_path
from plr_kernels.distributed import ItemShard

__all__ = ["read_part", "write_together"]

_AT_A_TIME = 1 << 22
"""Numbers that are sent at a time: 16 MiB of float32."""

_DTYPES = {torch.float32: "F32", torch.int64: "I64"}
"""Those of models' weights and of Adam's moments, as safetensors calls them."""


def write_together(path: Path, whole: Mapping[str, Tensor], shared: Mapping[str, Tensor], shard: ItemShard) -> None:
    """Write one safetensors file, aside first, byte for byte as `safetensors.torch.save_file` writes whole tensors.

    All processes call it; the first writes, and has beside its own rows at most 16 MiB of another's at a time.

    Args:
        path: where to.
        whole: tensors of float32 or int64 that every process has.
        shared: tensors [rows, ...] of float32, of which every process has those of its shard.
        shard: which rows.
    """
    names = _in_order({**whole, **shared})
    if shard.rank:
        for name in names:
            if name in shared:
                for part in _parts(shared[name]):
                    distributed.send(part, group=shard.group, group_dst=0)
        return
    with atomic_path(path) as aside, open(aside, "wb") as file:
        file.write(_header(whole, shared, shard.items))
        for name in names:
            tensor = shared[name] if name in shared else whole[name]
            _write(file, tensor)
            for process in range(1, shard.processes if name in shared else 1):
                rows = shard.first_of(process + 1) - shard.first_of(process)
                left = rows * tensor[0].numel()
                while left:
                    part = tensor.new_empty(min(left, _AT_A_TIME))
                    distributed.recv(part, group=shard.group, group_src=process)
                    _write(file, part)
                    left -= len(part)
        file.flush()
        os.fsync(file.fileno())


def read_part(path: Path, rows: slice, shared: Collection[str] | None = None) -> dict[str, Tensor]:
    """Read a safetensors file: some rows of the tensors named in `shared`, by default of all, and the others whole.

    Raises:
        RunError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {
                name: file.get_slice(name)[rows] if shared is None or name in shared else file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 (not a dict)
            }
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error


def _header(whole: Mapping[str, Tensor], shared: Mapping[str, Tensor], items: int) -> bytes:
    tensors = {**whole, **shared}
    entries, offset = {}, 0
    for name in _in_order(tensors):
        tensor = tensors[name]
        shape = [items, *tensor.shape[1:]] if name in shared else [*tensor.shape]
        stop = offset + tensor.element_size() * torch.Size(shape).numel()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names as safetensors orders them: by the size of a number, the largest first, then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the numbers of a tensor, so many at a time."""
    yield from tensor.detach().flatten().split(_AT_A_TIME)


def _write(file: BinaryIO, tensor: Tensor) -> None:
    for part in _parts(tensor):
        file.write(part.cpu().numpy().tobytes())
