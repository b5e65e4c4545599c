"""The device of a process of a run."""

from __future__ import annotations

import lightning.pytorch as lightning
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from plr.config import Config
from plr.errors import RunError
from plr.training.processes import accelerator, cluster_environment
from plr.training.quiet import quiet

__all__ = ["device_of"]


def device_of(config: Config) -> torch.device:
    """Return this process's device; refuse devices that are not there before anything is written."""
    try:
        with quiet():
            trainer = lightning.Trainer(
                accelerator=accelerator(config), devices=config.devices, num_nodes=config.nodes, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                plugins=[cluster_environment()],
            )  # fmt: skip
            device = trainer.strategy.root_device
    except MisconfigurationException as error:
        asked = f"--accelerator {config.accelerator} --devices {config.devices}"
        raise RunError(f"{asked} is not available: {' '.join(str(error).split())}") from error
    if config.precision == "bf16" and device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            name = torch.cuda.get_device_name(device)
            raise RunError(
                f"--precision bf16 needs a GPU of compute capability 8.0 or more; {name} has {major}.{minor}: leave "
                "--precision out, which is 32"
            )
    averaged = config.processes > 1 and not config.shard_items  # gradients of the table
    if averaged and device.type == "cuda" and config.loss != "softmax" and config.sparse_adam:
        raise RunError(
            f"sparse_adam must be false with {config.processes} processes on GPUs: NCCL adds no sparse gradients up"
        )
    return device
