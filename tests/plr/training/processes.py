"""Processes as torchrun would start them, forked: importing takes longer than what tests compute.

As a program it is commands of plr in two processes, one after the other:
processes.py '[["train", "--data", …], …]'.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import wait

import torch

import plr.training  # noqa: F401  # what commands import, before they are forked
from plr.cli import main


def in_processes(count: int, work: Callable[[int], None]) -> None:
    """Do the work in so many processes, which get their numbers; ends this program with 1 where it fails in one."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_be, args=(rank, count, port, work)) for rank in range(count)]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    while running:
        for ended in wait(list(running)):
            if running.pop(ended).exitcode:  # the others would wait for it
                for process in processes:
                    process.kill()
                sys.exit(1)


def _be(rank: int, count: int, port: int, work: Callable[[int], None]) -> None:
    if count > 1:
        os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "RANK": str(rank), "GROUP_RANK": "0",
                       "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                       "TORCHELASTIC_RUN_ID": "tests"}  # fmt: skip
    work(rank)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for arguments in json.loads(sys.argv[1]):
        in_processes(2, lambda rank, arguments=arguments: sys.exit(main(arguments)))
