"""A server of processes: another run while it is asked, a run that is refused, crashed workers, and its end."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import plr
from plr.cli import main
from plr.config import Config
from plr.server import supervisor
from plr.training import train

pytest.importorskip("msgspec", reason="plr serve needs the extra: pip install -e '.[serve]'")
pytest.importorskip("uvicorn", reason="plr serve needs the extra: pip install -e '.[serve]'")

TOKEN = "correct-horse-battery"
BODY = {"histories": [["i1", "i2", "i3"], ["i7"]], "k": 5}
PATIENCE = 60.0  # seconds for what takes one or two on a machine with nothing else to do


@pytest.fixture(scope="module")
def runs(small_data, tmp_path_factory):
    """Two runs that answer differently, and one whose weights are not finite."""
    folder = tmp_path_factory.mktemp("runs")
    train(
        Config(
            data=str(small_data), out=str(folder / "a"), dim=16, ffn_dim=16, max_length=10, batch_size=32, epochs=1,
            progress=False, accelerator="cpu", threads=1,
        )
    )  # fmt: skip
    for name, change in (("b", -1.0), ("damaged", float("nan"))):
        shutil.copytree(folder / "a", folder / name)
        weights = load_file(folder / name / "model.safetensors")
        changed = {key: value * torch.tensor(change) for key, value in weights.items()}
        save_file(changed, folder / name / "model.safetensors")
        metrics = json.loads((folder / name / "metrics.json").read_text())
        del metrics["files"]  # the weights' hash
        (folder / name / "metrics.json").write_text(json.dumps(metrics))
    return folder


def put_weights(source: Path, target: Path) -> None:
    shutil.copyfile(source / "model.safetensors", target / "aside")
    os.replace(target / "aside", target / "model.safetensors")


class Server:
    def __init__(self, run: Path, *arguments: str) -> None:
        self.lines: list[str] = []
        command = [sys.executable, "-m", "plr", "serve", str(run), "--port", "0", "--token_file", str(run.parent / "t")]
        (run.parent / "t").write_text(TOKEN)
        command += arguments
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.port = int(self.wait_for(r"serving .* at http://127\.0\.0\.1:(\d+), 2 workers")[1])

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = [match for line in list(self.lines) if (match := re.search(pattern, line))]
            if len(found) >= times:
                return found[-1]
            assert self.process.poll() is None, self.lines
            time.sleep(0.02)
        raise AssertionError((pattern, self.lines))

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)


def ask(connection, path="/recommend", body=BODY):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def counts(server):
    connection = server.connection()
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    return connection.getresponse().read().decode()


def expected(run):
    rows = plr.Recommender.load(run).recommend(BODY["histories"], BODY["k"])
    return {"recommendations": [[{"item": each.item, "score": each.score} for each in row] for row in rows]}


@contextmanager
def being_asked(server, users=3):
    """Clients that keep their connections and ask all the time; yields what they got, in the end of each of them."""
    stop, found = threading.Event(), [[] for _ in range(users)]

    def client(answers):
        connection = server.connection()
        answered = time.monotonic()
        try:
            while not stop.is_set():
                asked = time.monotonic()
                answers.append(ask(connection))
                answered = time.monotonic()
        except Exception as error:  # how long the connection was idle: one that is closed after 5 s is no answer lost
            answers.append((0, f"{error!r}, asked {asked - answered:.1f} s after the answer before"))

    threads = [threading.Thread(target=client, args=(answers,)) for answers in found]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def client_of_the_page(port):
    """The client of docs/serving.md, with this server's port, token, ids and k."""
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    code = textwrap.dedent(re.search(r"A client:\n\n((?: {4}.*\n|\n)+)", text)[1])
    assert len([line for line in code.splitlines() if line]) <= 6
    for found, ours in (
        ("8000", str(port)),
        ('{"histories": [["item3", "item14"], ["item7"]], "k": 10}', repr(BODY)),
        ('"application/json"}', f'"application/json", "Authorization": "Bearer {TOKEN}"}}'),
    ):
        assert code.count(found) == 1
        code = code.replace(found, ours)
    return code


def children(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the processes' children from /proc")
def test_a_server_from_its_first_run_to_its_end(runs):
    link = runs / "current"
    link.symlink_to("a")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))  # as many systems have it
    try:
        server = Server(link, "--workers", "2")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        of_a, of_b = expected(runs / "a"), expected(runs / "b")
        assert of_a != of_b
        assert ask(server.connection()) == (200, of_a)
        assert ask(server.connection(), "/ready", None)[1]["run"] == "a"
        names = {}
        exec(client_of_the_page(server.port), names)
        assert names["recommendations"] == of_a["recommendations"]
        without = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(without, timeout=PATIENCE)

        with being_asked(server) as found:  # the link is moved: no answer is lost, and each is of one of the runs
            (runs / "other").symlink_to("b")
            os.replace(runs / "other", link)
            server.wait_for("serving .*/b ")
            status, answer = ask(server.connection())
        assert (status, answer) == (200, of_b)
        others = [each for answers in found for each in answers if each not in ((200, of_a), (200, of_b))]
        assert not others, others[:3]
        assert all(answers[0][1] == of_a for answers in found)

        assert ask(server.connection(), body={"session": {"id": "s", "history": ["i1"]}})[0] == 200
        put_weights(runs / "damaged", runs / "b")
        for times in (1, 2):  # each leaves what the served one counts in
            server.process.send_signal(signal.SIGHUP)
            refused = "not loaded, the former one is still served: .* not finite; the weights are damaged"
            server.wait_for(refused, times)
            assert ask(server.connection()) == (200, of_b)
            assert "\nplr_sessions 1.0\n" in counts(server)

        (loader,) = children(server.process.pid)
        crashed, other = children(loader)
        assert resource.prlimit(other, resource.RLIMIT_NOFILE) == (min(4000, hard), hard)
        os.kill(crashed, signal.SIGKILL)
        server.wait_for("a worker has ended with status 137; another one is started")
        end = time.monotonic() + PATIENCE
        while len(children(loader)) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        assert other in children(loader)
        assert ask(server.connection()) == (200, of_b)

        put_weights(runs / "a", runs / "b")
        status, answer = ask(server.connection(), "/reload", {})
        assert (status, answer["message"].startswith("serving b (sasrec, plr, 24 items")) == (200, True)
        assert ask(server.connection()) == (200, of_a)
        text = counts(server)
        assert 'plr_reloads_total{outcome="loaded"} 2.0' in text
        assert re.search(r'plr_requests_total\{path="/recommend",status="200"\} \d\d', text)  # of all processes

        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as half:
            body = json.dumps(BODY).encode()
            head = ["POST /recommend HTTP/1.1", "Host: x", "Content-Type: application/json"]
            head += [f"Authorization: Bearer {TOKEN}", f"Content-Length: {len(body)}", "", ""]
            half.sendall("\r\n".join(head).encode() + body[:9])
            time.sleep(0.3)  # until it is being read
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("stopping")
            time.sleep(0.3)
            half.sendall(body[9:])
            received = b""
            while part := half.recv(65536):
                received += part
        assert received.startswith(b"HTTP/1.1 200")
        head, _, body = received.partition(b"\r\n\r\n")
        assert json.loads(body) == of_a
        assert b"\r\nconnection: close" in head.lower()
        assert server.process.wait(PATIENCE) == 0
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.port), timeout=1)
        server.reader.join(PATIENCE)
        assert not [line for line in server.lines if not line.startswith("plr: ")]
    finally:
        server.process.kill()
        server.process.wait()


def test_a_run_that_cannot_be_loaded_is_a_message(runs, capfd):
    assert main(["serve", str(runs / "nothing"), "--port", "0"]) == 2
    assert re.fullmatch(r"plr: .*/nothing: no run here .*\n", capfd.readouterr().err)


def test_an_address_that_another_server_has_taken_meanwhile_is_a_message(runs, monkeypatch, capfd):
    """Both may be bound to it while they load their runs: the workers of the second crashed one after the other."""
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        listen, port = supervisor.listen, first.getsockname()[1]

        def bound(options):
            found = listen(options)
            first.listen()
            return found

        monkeypatch.setattr(supervisor, "listen", bound)
        assert main(["serve", str(runs / "a"), "--port", str(port)]) == 2
    assert capfd.readouterr().err == f"plr: cannot listen at 127.0.0.1:{port}: Address already in use\n"
