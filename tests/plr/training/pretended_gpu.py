"""A GPU that is not there: tensors that say they are on it, and lie in the CPU's memory.

An operation fails there as it does on a GPU where its tensors are on two devices, its generator is the CPU's, or NCCL
would not take what is sent; and what makes the program wait for the device is counted, by the line of plr that asks.

As a program it takes two training steps of systems on it, and ranks: pretended_gpu.py FOLDER PROCESSES NAME..., of
`tests.plr.training.parity.CASES`, as one process or as the second of two whose first does the same. It prints
{name: {"waits": {line: how often in a step}, "sent": {collective operation: how often}}}.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as distributed
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import plr
from plr.config import Config
from plr.data import Share, prepare
from plr.evaluation import evaluation_batches, rank_rows
from plr.inputs import load_item_data
from plr.models import build_model
from plr.models.methods.lares_post_training import PostTrainedLARES
from plr.training.module import TrainingModule, build_optimizer, sample_items, training_rows
from plr.training.sharded_ranking import rank_over_shards
from tests.plr.training.parity import CASES, case_values

_setup_privateuseone_for_python_backend("pretended")
GPU = torch.device("pretended", 0)
_PACKAGE = str(Path(plr.__file__).parent.parent)

_MIXES = {"aten.copy_.default", "aten._to_copy.default"}
"""Operations that take tensors of two devices."""
_TAKES_INDEX = {f"aten.{name}" for name in ("index.Tensor", "index_put.default", "index_put_.default",
                                            "_index_put_impl_.default")}  # fmt: skip
"""Operations whose index may lie on the CPU: it is copied, which waits."""
_READS = {f"aten.{name}" for name in ("_local_scalar_dense.default", "nonzero.default", "_unique2.default",
                                      "repeat_interleave.Tensor", "equal.default", "masked_select.default",
                                      "bincount.default")}  # fmt: skip
"""Operations whose result has a size, or is a number, that only the device knows."""
_SENT_BY_NCCL = {torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8,
                 torch.int8, torch.bool}  # fmt: skip

waits: Counter[str] = Counter()
sent: Counter[str] = Counter()
_seeds: set[int] = set()  # of generators that pretend to be on the GPU


class OnGPU(Tensor):
    """A tensor on the GPU; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGPU:
        return Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=GPU
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def tolist(self) -> Any:
        _waits("tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


class _Watched(TorchDispatchMode):
    """Sees operations without such a tensor, too: those that make the first ones."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


def _waits(name: str) -> None:
    own = [frame for frame in traceback.extract_stack() if frame.filename.startswith(_PACKAGE + "/plr")]
    waits[f"{own[-1].filename.removeprefix(_PACKAGE + '/')}: {own[-1].line} ({name})" if own else name] += 1


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if function.namespace == "c10d":
        return _sent(function, args)
    name, given = str(function), tree_flatten((args, kwargs))[0]
    there = [each for each in given if isinstance(each, OnGPU)]
    here = [each for each in given if isinstance(each, Tensor) and not isinstance(each, OnGPU) and each.ndim]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if there and here and name not in _MIXES:
        indices = [each for each in args[1] if each is not None] if name in _TAKES_INDEX else []
        if any(all(each is not index for index in indices) for each in here):
            raise RuntimeError(f"{name}: tensors on the CPU, {[list(each.shape) for each in here]}, and on the GPU")
        _waits(name)
    for each in given:
        if there and isinstance(each, torch.Generator) and each.initial_seed() not in _seeds:
            raise RuntimeError(f"{name}: numbers for the GPU of a generator on the CPU")
    moved = name == "aten._to_copy.default" and device is not None and (device == GPU) != isinstance(args[0], OnGPU)
    if (there and name in _READS) or (moved and not kwargs.get("non_blocking")):
        _waits(name)
    if name == "aten.copy_.default":
        on_gpu = isinstance(args[0], OnGPU)
    else:
        on_gpu = bool(there) if device is None else device == GPU
    own_args, own_kwargs = tree_map(_as_on_cpu, (args, kwargs))
    own_kwargs.pop("pin_memory", None)
    with _disable_current_modes():
        result = function(*own_args, **own_kwargs)
    if not on_gpu or (name in _READS and not isinstance(result, Tensor | tuple)):
        return result
    known = {id(each.held): each for each in there}
    result = tree_map(lambda each: _on_gpu(each, known), result)
    return return_and_correct_aliasing(function, args, kwargs, result) if there else result


def _on_gpu(value: Any, known: dict[int, OnGPU]) -> Any:
    if not isinstance(value, Tensor):
        return value
    return known[id(value)] if id(value) in known else OnGPU(value)


def _as_on_cpu(value: Any) -> Any:
    if isinstance(value, OnGPU):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value == GPU else value


def _sent(function: Any, args: Any) -> Any:
    """Exchange with a process that does the same, and hence has the same."""
    for each in tree_flatten(args)[0]:
        if isinstance(each, Tensor) and not isinstance(each, OnGPU):
            raise RuntimeError(f"{function}: NCCL sends nothing that is on the CPU")
        if isinstance(each, Tensor) and not (each.is_contiguous() and each.dtype in _SENT_BY_NCCL):
            raise RuntimeError(f"{function}: NCCL sends no {each.dtype} of strides {each.stride()}")
    name, work = function._opname, FakeWork().boxed()
    sent[name] += 1
    if name == "allreduce_":
        return args[0], work
    if name == "allgather_":
        for every, own in zip(args[0], args[1], strict=True):
            for each in every:
                each.held.copy_(own.held)
        return args[0], work
    assert name == "alltoall_base_", name
    received, given, _, _, counts = args[:5]
    parts = given.held.split(counts) if counts else given.held.chunk(2)
    for_this = torch.cat([parts[1]] * 2)
    received.held.copy_(for_this if for_this.shape == received.shape else torch.zeros_like(received.held))
    return work


def _tensor(*args: Any, device: Any = None, made: Any = torch.tensor, **kwargs: Any) -> Tensor:
    """torch.tensor, of which no mode sees where it puts its numbers."""
    tensor = made(*args, **kwargs)
    return tensor if device is None else tensor.to(device)


def _generator(share: Share, device: Any, own: Any = Share.generator) -> torch.Generator:
    """Share.generator: there is none on this device."""
    if torch.device(device) == GPU and GPU not in share._generators:
        share._generators[GPU] = torch.Generator().manual_seed(share._seed)
        _seeds.add(share._seed)
    return own(share, device)


def _take_steps(name: str, folder: Path, count: int) -> dict[str, Any]:
    values = case_values(CASES[name], folder)
    values |= {"hidden_dropout": 0.1, "attention_dropout": 0.1, "input_dropout": 0.1, "adaptor_dropout": 0.1}
    if "sparse_adam" in values:
        values["sparse_adam"] = False  # such a tensor cannot be sparse
    sharded = values.pop("shard_items", False) and count > 1
    config = Config(**values, data=str(folder / "data.txt"), out=str(folder), devices=count, shard_items=sharded)
    dataset = prepare(config.data)
    item_data = load_item_data(config, dataset.item_ids, folder)
    model = build_model(config, item_data, part=(count - 1, count) if sharded else None)
    if isinstance(model, PostTrainedLARES):
        model.start_from(build_model(replace(config, phase="spt", init=None), item_data))
    sample_items(model, config, dataset)
    module = TrainingModule(model.train(), training_rows(dataset, config), config)
    module.log = lambda *_, **__: None
    module.trainer = SimpleNamespace(world_size=count, global_rank=count - 1, current_epoch=1, num_training_batches=7)
    with _Watched():
        model.to(GPU)
        loader = module.train_dataloader()
        optimizer = build_optimizer(model, config)
        module.on_train_epoch_start()
        for step in range(2):
            module.trainer.global_step = step
            batch = loader.dataset[next(iter(loader.sampler))]
            waits.clear()
            sent.clear()
            batch = batch.to(GPU, non_blocking=True)
            module.on_train_batch_start(batch, 0)
            module.training_step(batch, 0).backward()
            module.on_before_optimizer_step(optimizer)
            if config.clip and sharded:
                module.configure_gradient_clipping(optimizer, config.clip, "norm")
            optimizer.step()
            optimizer.zero_grad()
        result = {"waits": dict(waits), "sent": dict(sent)}
        rows = dataset.rows("valid", config.max_length)
        if sharded:
            ranking = rank_over_shards(model, rows, 16, count - 1, count, exclude_seen=True)
        else:
            ranking = rank_rows(model, evaluation_batches(rows, 16, "cpu"), exclude_seen=True)
    assert len(ranking)
    assert not isinstance(ranking.ranks, OnGPU)
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    if count > 1:
        distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    with patch("torch.tensor", _tensor), patch.object(Share, "generator", _generator):
        print(json.dumps({name: _take_steps(name, folder, count) for name in sys.argv[3:]}))
