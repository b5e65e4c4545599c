"""A few signals at random moments; `python -m tests.plr.cli.kills` sends hundreds."""

import random
import subprocess
import sys

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
