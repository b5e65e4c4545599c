"""Where the server listens, to whom, and what it says where it cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest

from plr.cli import main
from plr.errors import ConfigError
from plr.server import supervisor
from plr.server.options import ServerOptions

TOKEN = "correct-horse-battery"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_alone_needs_no_token(host):
    with supervisor.listen(ServerOptions("run", host=host, port=0)) as listener:
        assert listener.getsockname()[1]


@pytest.mark.parametrize("host", ["0.0.0.0", ""])
def test_other_machines_need_one(host):
    with pytest.raises(ConfigError, match="which needs a token: --token_file FILE or --token TOKEN; or --no_token"):
        supervisor.listen(ServerOptions("run", host=host, port=0))
    for options in ({"token": TOKEN}, {"no_token": True}):
        supervisor.listen(ServerOptions("run", host=host, port=0, **options)).close()


def test_an_address_that_cannot_be_had_is_named():
    with supervisor.listen(ServerOptions("run", port=0)) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{port}: Address already in use"):
            supervisor.listen(ServerOptions("run", port=port))
    with pytest.raises(ConfigError, match=r"host must be a name or an address of this machine; found 'a\.invalid'"):
        supervisor.listen(ServerOptions("run", host="a.invalid"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 65536}, "port must be from 0 to 65535; found 65536"),
        ({"workers": 0}, "workers must be at least 1; found 0"),
        ({"queue": 100}, "queue must be at least max_histories, 256; found 100"),
        ({"timeout": 0.0}, "timeout must be a finite number above 0; found 0.0"),
        ({"token": TOKEN, "no_token": True}, "of token, token_file and no_token one may be given"),
        ({"category_field": "kind"}, "category_field is a field of categories, which is missing"),
        ({"token": "short"}, "token must have 16 characters or more, ASCII without blanks; found 5 characters"),
        ({"token": "sixteen letters…"}, "token must have 16 characters or more, ASCII without blanks; found 16"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message) as raised:
        ServerOptions("run", **options)
    assert "token" not in options or str(options["token"]) not in str(raised.value)


def test_the_token_of_a_file(write):
    assert ServerOptions("run", token_file=str(write("t", f"{TOKEN}\n"))).with_token_read().token == TOKEN
    path = write("short", "short\n")
    with pytest.raises(ConfigError, match="short: the token must have 16 characters or more"):
        ServerOptions("run", token_file=str(path)).with_token_read()


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(supervisor, "find_spec", lambda name: None)
    assert main(["serve", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "plr: plr serve needs uvicorn and msgspec: pip install -e '.[serve]'\n"


def test_the_supervisor_does_not_import_pytorch():
    code = "import sys, plr.server.supervisor, plr.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
