"""What only a GPU shows, without one: where tensors lie, what waits for the device, what NCCL gets, whose files fit."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as distributed
from lightning.pytorch.accelerators import MPSAccelerator
from torch.nn.parallel import DistributedDataParallel

from plr.config import Config
from plr.data import prepare
from plr.errors import RunError
from plr.items import ItemData, ItemText
from plr.models import build_model
from plr.text import embed_text
from plr.training import device
from plr.training.checkpoint import AtomicCheckpointIO
from plr.training.device import device_of
from plr.training.module import TrainingModule, training_rows
from plr.training.processes import accelerator

ALONE = ["unisrec", "prl dealt", "plr all terms"]
DRAWING = ["lares post-training", "plr sampled"]
TWO = ["cloze", "prl sequence", "lares sequence", "base sampled"]
SHARDED = ["plr sharded"]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What steps of systems on a pretended GPU waited for and sent, as one process and as one of two."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch has no devices that are written in Python")
    folder = tmp_path_factory.mktemp("gpu")
    draw = torch.Generator().manual_seed(0)
    lengths = [4 + user % 5 + 20 * (user % 5 == 0) for user in range(40)]
    lines = [" ".join(f"i{item}" for item in torch.randint(20, (length,), generator=draw)) for length in lengths]
    (folder / "data.txt").write_text("".join(f"u{user} {line}\n" for user, line in enumerate(lines)))
    (folder / "texts.tsv").write_text("item\ttitle\n" + "".join(f"i{v}\ta{v % 3} b{v % 4} c{v}\n" for v in range(20)))
    embed_text(folder / "texts.tsv", folder / "vectors")
    found = {}
    for count, names in ((1, ALONE + DRAWING), (2, TWO + SHARDED)):
        program = [sys.executable, "-m", "tests.plr.training.pretended_gpu", str(folder), str(count), *names]
        done = subprocess.run(program, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found[count] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ALONE)
def test_a_step_of_one_process_waits_for_nothing(name, steps):
    assert steps[1][name] == {"waits": {}, "sent": {}}


@pytest.mark.parametrize("name", DRAWING)
def test_a_step_waits_only_for_what_is_drawn(name, steps):
    drawing = ("parts.append(", "return items, self._expected(", "torch.unique(", "trunc_normal_(")
    assert all(any(part in line for part in drawing) for line in steps[1][name]["waits"])


@pytest.mark.parametrize("name", TWO + SHARDED)
def test_processes_wait_as_often_whatever_the_rows(name, steps):
    # "prl sequence" and "lares sequence" compare some twenty groups of histories in a step.
    waits = steps[2][name]["waits"]
    of_groups = [count for line, count in waits.items() if "collectives.py" in line]
    assert max(of_groups, default=0) <= (2 if name.startswith("lares") else 1)  # LARES compares there and back
    assert "plr/data/rows.py" not in "".join(waits)  # a whole batch that a part is wanted of
    assert bool(steps[2][name]["sent"]) == (name not in {"cloze", "base sampled"})


def test_a_resume_point_of_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    needed = {"epoch": 3, "optimizer_states": [], "callbacks": {}, "loops": {}, "pytorch-lightning_version": "2"}
    with monkeypatch.context() as saving:
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({**needed, "state_dict": {"weight": torch.arange(3.0)}}, tmp_path / "last.ckpt")
    with pytest.raises(RuntimeError, match="CUDA"):  # else nothing is shown
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    read = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=True)  # as Lightning asks
    assert read["state_dict"]["weight"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_batches_are_sent_to_a_gpu_without_waiting(kind, small_data, monkeypatch):
    config = Config(data=str(small_data), method="base", dim=8, heads=2, layers=1)
    dataset = prepare(config.data)
    module = TrainingModule(build_model(config, dataset.num_items), training_rows(dataset, config), config)
    module.trainer = SimpleNamespace(world_size=1, global_rank=0)
    monkeypatch.setattr(TrainingModule, "device", torch.device(kind))
    assert module.train_dataloader().pin_memory == (kind == "cuda")
    asked = []
    batch = SimpleNamespace(to=lambda device, non_blocking: asked.append((device.type, non_blocking)))
    module.transfer_batch_to_device(batch, torch.device(kind), 0)
    assert asked == [(kind, kind == "cuda")]


@pytest.mark.parametrize(("asked", "with_cuda", "chosen"), [
    ("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("gpu", True, "cuda"),
])  # fmt: skip
def test_a_gpu_without_float64_is_not_taken(asked, with_cuda, chosen, monkeypatch):
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))  # as on Apple's machines
    monkeypatch.setattr(torch.cuda, "is_available", lambda: with_cuda)
    config = Config(accelerator=asked)
    assert accelerator(config) == chosen
    if chosen == "cpu":
        assert device_of(config) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    with pytest.raises(RunError, match="--accelerator gpu --devices 1 is not available"):
        device_of(Config(accelerator="gpu"))


@pytest.mark.parametrize(("capability", "precision", "refused"), [
    ((7, 5), "bf16", True), ((7, 5), "32", False), ((8, 0), "bf16", False),
])  # fmt: skip
def test_a_gpu_without_bfloat16_is_named(capability, precision, refused, monkeypatch):
    gpu = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)))
    monkeypatch.setattr(device.lightning, "Trainer", lambda **_: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    config = Config(accelerator="gpu", precision=precision)
    if refused:
        with pytest.raises(RunError, match=r"--precision bf16 needs .* 8\.0 or more; an old one has 7\.5"):
            device_of(config)
    else:
        assert device_of(config) == torch.device("cuda", 0)


@pytest.fixture
def alone():
    """A group of this process alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_texts_of_items_are_not_sent_in_every_step(alone, small_data):
    config = Config(data=str(small_data), method="base", backbone="unisrec", text_vectors="v", dim=8, heads=2, layers=1)
    dataset = prepare(config.data)
    text = ItemText(torch.randn(dataset.num_items, 5), torch.ones(dataset.num_items, dtype=torch.bool))
    model = build_model(config, ItemData(dataset.num_items, text=text))
    assert {name for name, _ in model.named_buffers()} == {"items.vectors", "items.present"}
    wrapped = DistributedDataParallel(TrainingModule(model, training_rows(dataset, config), config))
    assert not list(wrapped.modules_buffers)


def test_processes_with_a_shared_table_wait_for_each_other_as_long_as_others(alone, monkeypatch):
    asked = []
    new_group = distributed.new_group
    monkeypatch.setattr(distributed, "new_group", lambda **given: asked.append(given) or new_group(**given))
    config = Config(method="base", dim=8, heads=2, layers=1)
    assert build_model(config, 9, part=(0, 1)).items.shard.rows == 9
    assert asked == [{"timeout": timedelta(minutes=30)}]
