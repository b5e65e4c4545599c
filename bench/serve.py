"""`plr serve` under load on this machine: latency, users a second and processor time a request.

    python -m bench.serve

A run with random weights is written to a temporary folder and served; clients keep their connections and ask again as
soon as they are answered. They share the machine's cores with the server: what a user waits for is what these clients
saw, and processor time is the server's processes' own, as the system counts it. /health is HTTP without a model; the
application alone is our part of a request, without uvicorn, sockets and the model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import plr
from bench.inference import SYSTEMS
from bench.recommend_users import write_run
from bench.records import RESULTS, write_record
from plr.runs import RunFolder
from plr.server.app import Application
from plr.server.options import ServerOptions

LENGTH, K, BODIES = 50, 10, 64


def processes(root: int) -> list[int]:
    """The process and all that descend from it."""
    children = Path(f"/proc/{root}/task/{root}/children").read_text(encoding="ascii").split()
    return [root, *(each for child in children for each in processes(int(child)))]


def cpu_seconds(root: int) -> float:
    """User and system seconds of the processes that are alive."""
    ticks = 0
    for process in processes(root):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(root: int) -> dict[str, float]:
    """MiB of the processes that have loaded the run: together (shared pages once), and of each worker alone."""
    _, loader, *workers = processes(root)
    found = {}
    for process in (loader, *workers):
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
        sizes = re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)
        found[process] = {name: int(size) / 1024 for name, size in sizes}
    private = [each["Private_Clean"] + each["Private_Dirty"] for process, each in found.items() if process != loader]
    return {
        "together_mib": sum(each["Pss"] for each in found.values()),
        "loader_resident_mib": found[loader]["Rss"],
        "private_to_a_worker_mib": max(private),
    }


@contextmanager
def served(run: Path, workers: int) -> Iterator[tuple[int, int]]:
    """The process id and the port of a server."""
    command = [sys.executable, "-m", "plr", "serve", str(run), "--port", "0", "--workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise SystemExit(f"plr serve did not start: {line}")
        yield process.pid, int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def bodies(items: int, users: int) -> list[bytes]:
    """Bodies of requests with histories of random items."""
    random = np.random.default_rng(users)
    drawn = random.integers(0, items, (BODIES, users, LENGTH))
    return [
        json.dumps({"histories": [[f"item{item}" for item in row] for row in rows], "k": K}).encode() for rows in drawn
    ]


def request(path: str, body: bytes | None) -> bytes:
    """A request as it is sent."""
    head = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: localhost"]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + (body or b"")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> None:
    """One request on an open connection."""
    writer.write(sent)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise SystemExit(f"the server answered {head!r}")
    await reader.readexactly(int(length[1]))


async def load(port: int, sent: list[bytes], connections: int, seconds: float) -> list[float]:
    """Seconds of every request of clients that ask again and again."""
    times: list[float] = []

    async def client(first: int, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        place = first
        while (begin := time.perf_counter()) < end:
            await ask(reader, writer, sent[place % len(sent)])
            times.append(time.perf_counter() - begin)
            place += 1
        writer.close()

    end = time.perf_counter() + seconds
    await asyncio.gather(*(client(first, end) for first in range(connections)))
    return times


def measure(server: tuple[int, int], sent: list[bytes], users: int, connections: int, seconds: float) -> dict[str, Any]:
    """One row."""
    process, port = server
    asyncio.run(load(port, sent, connections, min(1.0, seconds)))
    before, begin = cpu_seconds(process), time.perf_counter()
    times = asyncio.run(load(port, sent, connections, seconds))
    took, used = time.perf_counter() - begin, cpu_seconds(process) - before
    return {
        "connections": connections,
        "users_a_request": users,
        "p50_ms": 1e3 * float(np.quantile(times, 0.5)),
        "p99_ms": 1e3 * float(np.quantile(times, 0.99)),
        "requests_a_second": len(times) / took,
        "users_a_second": users * len(times) / took,
        "cpu_us_a_request": 1e6 * used / len(times),
    }


def application_alone(run: Path, items: int, requests: int) -> float:
    """Processor microseconds of a request of one user without server and model: its answer is known beforehand."""
    recommender = plr.Recommender.load(run)
    (answer,) = recommender.recommend([["item0"]], K)
    recommender.recommend = lambda histories, *_, **__: [answer] * len(histories)  # type: ignore[method-assign]
    app = Application(recommender, ServerOptions(str(run)))
    sent = bodies(items, 1)
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/recommend", "headers": headers}

    async def many() -> float:
        async def send(_: Any) -> None:
            pass

        for place in range(requests):
            if place == requests // 10:
                begin = time.process_time()
            message = {"type": "http.request", "body": sent[place % BODIES], "more_body": False}

            async def receive(message: dict[str, Any] = message) -> dict[str, Any]:
                return message

            await app(scope, receive, send)
        return time.process_time() - begin

    try:
        return 1e6 * asyncio.run(many()) / (requests - requests // 10)
    finally:
        app.stop()


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["sasrec", "plr"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16], help="of a request")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row")
    parser.add_argument("--alone", type=int, default=20_000, help="requests to the application alone")
    parser.add_argument("--record", action="store_true", help="write the result")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json", help="where to")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="plr-bench-") as temporary:
        for system in options.systems:
            run = Path(temporary) / system
            write_run(RunFolder(run), system, options.items, options.dim)
            for workers in options.workers:
                with served(run, workers) as server:
                    cases = [(None, 0, connections) for connections in options.connections]
                    cases += [(users, users, each) for users in options.users for each in options.connections]
                    for users, counted, connections in cases:
                        sent = [request("/health", None)]
                        if users is not None:
                            sent = [request("/recommend", body) for body in bodies(options.items, users)]
                        row = measure(server, sent, counted, connections, options.seconds)
                        rows.append({"system": system, "workers": workers, **row})
                        what = "/health" if users is None else f"{users} users a request"
                        print(
                            f"{system}, {workers} workers, {connections} connections, {what}: "
                            f"p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms, "
                            f"{row['requests_a_second']:,.0f} requests/s, {row['users_a_second']:,.0f} users/s, "
                            f"{row['cpu_us_a_request']:,.0f} µs of CPU a request",
                            flush=True,
                        )
                    used = memory(server[0])
                    rows.append({"system": system, "workers": workers, **used})
                    print(
                        f"{system}, {workers} workers: {used['together_mib']:.0f} MiB together, private to a worker "
                        f"{used['private_to_a_worker_mib']:.0f}, resident in the process that loaded the run "
                        f"{used['loader_resident_mib']:.0f}",
                        flush=True,
                    )
        torch.set_num_threads(1)
        alone = application_alone(Path(temporary) / options.systems[0], options.items, options.alone)
        print(f"the application alone: {alone:.0f} µs of CPU a request")
    if options.record:
        record = {
            "command": " ".join(["python -m bench.serve", *(sys.argv[1:] if arguments is None else arguments)]),
            "torch": torch.__version__,
            "items": options.items,
            "dim": options.dim,
            "length": LENGTH,
            "k": K,
            "application_alone_us": alone,
            "rows": rows,
        }
        write_record(options.out, record)


if __name__ == "__main__":
    main()
