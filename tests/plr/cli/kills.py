"""Signals at random moments of plr's commands: each ends rightly, and what it was making is made again to the byte.

    python -m tests.plr.cli.kills --kills 200 --seed 1

Prints a line per wrong end, with the seed's number of the kill, and a table; exits with 1 if there was any. The moment
is drawn from the time that the command takes. Most commands run in forks of this process, which has imported
everything; one in `--whole` (default 20) is a process of its own, in which a signal may also hit the imports.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

USERS = "recommend users"
BLOCK = 16  # users in a part, of 120: so that a signal hits between parts
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
SMALL = [
    "--dim=8", "--ffn_dim=8", "--layers=1", "--heads=1", "--max_length=8", "--batch_size=64", "--epochs=4",
    "--patience=4", "--lr=0.01", "--threads=1", "--progress=false", "--accelerator=cpu", "--refit=true",
]  # fmt: skip


@dataclass
class Ended:
    """How a command ended: status (-9 after SIGKILL), stderr, duration, and whether a signal was sent before."""

    status: int
    said: str
    seconds: float
    hit: bool = True


@dataclass
class Job:
    """A command, where it writes, and what is there when it has ended rightly."""

    name: str
    arguments: list[str]
    out: Path | None = None  # None: it writes nothing
    seconds: float = 0.0
    expected: dict[str, str] = field(default_factory=dict)


def run(arguments: list[str], *, kill: tuple[int, float] | None = None, whole: bool = False) -> Ended:
    """Run a command; `kill`: send this signal after so many seconds, where it has not ended before."""
    with tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        process, hit = _start(arguments, err.fileno(), whole), False
        if kill is not None:
            number, after = kill
            while not _catches(process) and not _ended(process):
                time.sleep(0.002)  # Python itself begins: nothing of plr's is there to catch anything
            deadline = time.perf_counter() + after
            while time.perf_counter() < deadline and not _ended(process):
                time.sleep(min(0.002, max(0.0, deadline - time.perf_counter())))
            hit = not _ended(process)
            if hit:
                os.kill(process, number)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        err.seek(0)
        return Ended(status, err.read().decode(errors="replace"), time.perf_counter() - begun, hit)


def _start(arguments: list[str], err: int, whole: bool) -> int:
    if whole:
        command = [sys.executable, "-m", "plr", *arguments]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True).pid
    process = os.fork()
    if process:
        return process
    status = 99
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(err, 2)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(number, handler)
        sys.argv = ["plr", *arguments]
        import plr.__main__

        status = plr.__main__.main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def _ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _catches(process: int) -> bool:
    """Whether the process has a handler for SIGTERM."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")), 0)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def result_of(out: Path) -> dict[str, str]:
    """Return the hashes of what a command has made, without what time and chance decide."""
    hashes = {}
    for file in [out] if out.is_file() else sorted(out.rglob("*")):
        name = str(file.relative_to(out))
        if not file.is_file() or name.startswith("logs/") or file.suffix == ".ckpt":
            continue
        content = file.read_bytes()
        if name == "metrics.json":
            values = json.loads(content)
            del values["train_seconds_per_epoch"]
            content = json.dumps(values).encode()
        if name == "config.yaml":
            content = content.replace(str(out).encode(), b"OUT")
        hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes


def make_jobs(folder: Path) -> list[Job]:
    """Make small inputs, run every command once undisturbed, and return the jobs with their durations and results."""
    folder.mkdir(parents=True, exist_ok=True)
    data, titles = folder / "data.csv", folder / "titles.tsv"
    lines = [f"u{user},i{(user * 7 + step) % 40},{step}\n" for user in range(120) for step in range(6 + user % 5)]
    data.write_text("user_id,item_id,timestamp\n" + "".join(lines))
    titles.write_text("item\ttitle\n" + "".join(f"i{item}\tword{item} word{item % 7}\n" for item in range(40)))
    train = ["train", "--data", str(data), *SMALL]
    jobs = [
        Job("prepare", ["prepare", str(data)], folder / "prepared"),
        Job("embed-text", ["embed-text", str(titles), "--dim", "8"], folder / "vectors"),
        Job("train", [*train, "--method", "base"], folder / "base"),
        Job("train PLR", [*train, "--method", "plr", "--streams", "2", "--refit", "false"], folder / "plr"),
        Job("evaluate", ["evaluate", str(folder / "base")]),
        Job("recommend", ["recommend", str(folder / "plr"), "--history", "i1 i2"]),
        Job(USERS, ["recommend", str(folder / "plr"), "--users", str(data)], folder / "recommendations.csv"),
    ]
    for job in jobs:
        out = [] if job.out is None else ["--out", str(job.out)]
        ended = run([*job.arguments, *out])
        assert ended.status == 0, (job.name, ended)
        job.seconds = ended.seconds
        job.expected = {} if job.out is None else result_of(job.out)
    return jobs


def disturb(job: Job, folder: Path, chance: random.Random, kills: int, whole: bool = False) -> list[tuple[int, Ended]]:
    """Run a job with up to `kills` signals, one after the other, then to its end; returns each signal and end.

    Raises:
        AssertionError: an end or what it left was not right.
    """
    ends = []
    out = None if job.out is None else folder / job.out.name
    arguments = [*job.arguments, *([] if out is None else ["--out", str(out)])]
    finished = False
    for _ in range(kills):
        number = chance.choice(SIGNALS)
        before = leftovers(folder)
        ended = run(arguments, kill=(number, chance.uniform(0, (3.0 if whole else 1.0) * job.seconds)), whole=whole)
        ends.append((number, ended))
        _check(job, number, ended, out)
        left = leftovers(folder) - before  # a killed process may have left some before
        assert not left or number == signal.SIGKILL, f"left: {left} after {ended}"
        # `plr train` and `plr embed-text` refuse to do again what is done, `plr prepare` leaves it as it is.
        done = out is not None and (out / "metrics.json" if job.name.startswith("train") else out).exists()
        finished = ended.status == 0 or done
        if finished:
            break
    if not finished or job.name in ("prepare", USERS):
        ended = run(arguments)
        assert ended.status == 0, f"repeated: {ended}"
    if job.name == USERS:
        assert not list(folder.glob("*.parts")), "parts are left"
    if out is not None:
        differing = sorted(set(result_of(out).items()) ^ set(job.expected.items()))
        assert not differing, f"differs: {differing}"
        left = leftovers(folder)
        assert not left or (ends and ends[-1][0] == signal.SIGKILL and finished), f"left: {left}"
    return ends


def leftovers(folder: Path) -> set[Path]:
    """Return what is half-written, and locks."""
    return {*folder.rglob(".*"), *folder.rglob("*.lock")}


def _check(job: Job, number: int, ended: Ended, out: Path | None) -> None:
    """See that the end is one of a finished command or of one that a signal has ended, and what it leaves."""
    assert "Traceback" not in ended.said, ended.said
    if ended.status == 0 or number == signal.SIGKILL:
        assert ended.status in (0, -signal.SIGKILL), ended
        return
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    # Python's own end, after all is written, or its beginning.
    silent = ended.status == -number and not ended.said
    assert silent or (ended.status == 128 + number and f"plr: {word}" in ended.said), ended
    if job.name.startswith("train") and not silent and out is not None and (out / "resume").exists():
        finished = (out / "metrics.json").exists()
        assert "repeat the command to resume" in ended.said or (finished and "is finished" in ended.said), ended


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", type=int, default=20, help="one command in so many is a process of its own")
    options = parser.parse_args()
    _import_all()
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        jobs = make_jobs(Path(place, "expected"))
        counts: collections.Counter[tuple[str, str, int]] = collections.Counter()
        done = number = 0
        while done < options.kills:
            number += 1
            chance = random.Random(f"{options.seed}-{number}")
            job, folder = jobs[number % len(jobs)], Path(place, "disturbed")
            folder.mkdir()
            try:
                ends = disturb(job, folder, chance, min(5, options.kills - done), number % options.whole == 0)
            except AssertionError as error:
                wrong, done = wrong + 1, done + 1
                print(f"{job.name}, number {number}: {error}", flush=True)
            else:
                hits = [(job.name, signal.Signals(sent).name, ended.status) for sent, ended in ends if ended.hit]
                done += len(hits)
                counts.update(hits)
            shutil.rmtree(folder)
        for (name, sent, status), count in sorted(counts.items()):
            print(f"{name:15} {sent:8} status {status:4}: {count}")
    print(f"{done} signals, {wrong} wrong ends")
    return int(wrong > 0)


def _import_all() -> None:
    """Import what the commands import, so that a fork need not."""
    import plr.cli.tables
    import plr.serving.bulk
    import plr.serving.evaluate
    import plr.text
    import plr.training

    plr.serving.bulk.BLOCK = BLOCK  # in the forks


if __name__ == "__main__":
    sys.exit(main())
