"""The processes of a run: one, or those that Lightning starts, or those of a launcher where they fit the run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as distributed
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment

from plr.config import Config
from plr.errors import RunError

__all__ = ["accelerator", "check_processes", "cluster_environment", "is_leader", "process_number"]

# What launchers tell each of the processes that they start: how many there are, by the launcher's name.
_LAUNCHERS = {
    "torchrun": "WORLD_SIZE",
    "srun": "SLURM_STEP_NUM_TASKS",
    "mpirun": "OMPI_COMM_WORLD_SIZE",
    "mpiexec": "PMI_SIZE",
}


def accelerator(config: Config) -> str:
    """Return Lightning's name of what trains the run: GPUs are CUDA's (or ROCm's, which PyTorch calls so).

    Lightning's own choice on Apple's machines would be their GPU, which has no float64 for metrics and Adam.
    """
    if config.accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return {"gpu": "cuda", "cpu": "cpu"}[config.accelerator]


def check_processes(config: Config) -> None:
    """Refuse processes that would each train the whole run, or that could not be started.

    Raises:
        RunError: a launcher has started another number of processes than the run has, several devices are asked for
            where no process can be started, or there are by far fewer cores.
    """
    devices, nodes = config.devices, config.nodes
    asked = f"--devices {devices}" if nodes == 1 else f"--nodes {nodes} --devices {devices}"
    by_torchrun = (
        "start the processes on each machine: torchrun --nnodes K --nproc_per_node N --node_rank R --master_addr … "
        "-m plr train … --nodes K --devices N"
    )
    for launcher, variable in _LAUNCHERS.items():
        count = _count(variable)
        if nodes > 1 and launcher == "torchrun" and count != config.processes:
            raise RunError(
                f"WORLD_SIZE is {count or 'not set'}, and {asked} are {config.processes} processes; {by_torchrun}"
            )
        if count > 1 and (count != config.processes or launcher != "torchrun"):
            raise RunError(
                f"this is one of {count} processes that a launcher such as {launcher} has started ({variable}={count}),"
                f" and the run has {asked}: each would train it on its own. Start plr once and let it "
                f"start the others: plr train --devices {count} …"
            )
    here = _count("LOCAL_WORLD_SIZE")
    if here not in (0, devices) or (nodes > 1 and not here):
        raise RunError(
            f"LOCAL_WORLD_SIZE={here}, the number of processes of this machine, must be {devices} for {asked}. For "
            f"several machines, {by_torchrun}"
        )
    together = _count("WORLD_SIZE") > 1 or _have_trained(config.processes)
    if not is_leader() and (config.processes == 1 or not together):
        found = ", ".join(f"{name}={os.environ[name]}" for name in ("RANK", "LOCAL_RANK") if name in os.environ)
        raise RunError(
            f"{found} says that this process is not the first of several, and no launcher has started as many as the "
            f"run has ({asked}): its result would be written by none. Unset RANK and LOCAL_RANK"
        )
    if devices == 1 or "LOCAL_RANK" in os.environ:  # none need be started
        return
    if hasattr(sys, "ps1") or sys.flags.interactive:
        raise RunError(
            f"devices={devices} cannot be had in a notebook or an interactive session: the other processes begin by "
            "running the program again. Take devices=1, or save the configuration and run it in a terminal: "
            f"config.save(Path('run.yaml')), then plr train --config run.yaml --devices {devices}"
        )
    program = sys.modules["__main__"]
    if getattr(program, "__spec__", None) is None and not Path(sys.argv[0]).is_file():
        raise RunError(
            f"devices={devices} needs a program in a file, for the other processes begin by running it again; found "
            "python -c or standard input"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.accelerator == "cpu" and devices > 8 * cores:
        raise RunError(f"--accelerator cpu --devices {devices}: there are {cores} cores; take at most as many devices")


def cluster_environment() -> ClusterEnvironment:
    """Return who starts the processes: torchrun where it has, else Lightning.

    Lightning would also heed Slurm's variables, and then wait for processes that nobody starts, or go on from
    checkpoints that it finds in the working folder.
    """
    if TorchElasticEnvironment.detect() and _count("WORLD_SIZE") > 1:
        return TorchElasticEnvironment()
    return LightningEnvironment()


def is_leader() -> bool:
    """Whether this is the process of the run that writes its folder."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"


def process_number() -> int:
    """Return which of the run's processes this is, also before these know each other."""
    environment = cluster_environment()
    if isinstance(environment, TorchElasticEnvironment):
        return environment.global_rank()
    return int(os.environ.get("LOCAL_RANK", "0"))


def _have_trained(processes: int) -> bool:
    """Whether so many have trained together in this program before: Lightning forgets their number at a run's end."""
    begun = distributed.is_available() and distributed.is_initialized()
    return begun and distributed.get_world_size() == processes


def _count(variable: str) -> int:
    """Return a launcher's number of processes; 0 where it says none."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else 0
