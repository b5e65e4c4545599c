"""A few signals at random moments; `python -m tests.plr.cli.kills` sends hundreds."""

import random
import signal
import subprocess
import sys

import pytest

from tests.plr.cli import kills


def test_signals_at_random_moments_end_rightly_and_what_was_made_is_made_again(tmp_path):
    """In a process of its own, for it forks: this one has threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.plr.cli.kills", "--kills", "12", "--seed", str(random.randrange(10**6))],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 signals, 0 wrong ends" in done.stdout


def test_a_wrong_end_is_noticed(tmp_path):
    """A status of 0 is right only where the work is done."""
    job = kills.Job("train", [])
    for status, said in ((1, "Traceback"), (0, "Traceback"), (143, ""), (-15, "said"), (130, "plr: interrupted")):
        try:
            kills._check(job, 15, kills.Ended(status, said, 0.0), None)
        except AssertionError:
            continue
        raise AssertionError((status, said))


EARLY = """
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "plr.errors":
            os.kill(os.getpid(), signal.{name})

sys.meta_path.insert(0, Interrupting())
signal.signal(signal.SIGINT, {handler})
sys.argv = ["/usr/bin/plr", "--version"]
{begin}
"""


@pytest.mark.parametrize(
    "begin", ["runpy.run_module('plr', run_name='__main__')", "from plr.__main__ import main; sys.exit(main())"]
)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_before_the_handlers_are_set_ends_without_a_traceback(begin, name):
    """While the first modules are imported: what the system does, which shells call status 130 or 143."""
    program = EARLY.format(begin=begin, name=name, handler="signal.default_int_handler")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-getattr(signal, name), "", "")


def test_an_ignored_interrupt_stays_ignored():
    begin = "runpy.run_module('plr', run_name='__main__')"
    program = EARLY.format(begin=begin, name="SIGINT", handler="signal.SIG_IGN")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
