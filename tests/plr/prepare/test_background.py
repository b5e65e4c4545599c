"""Work beside other work: it gives way, its errors are not lost, and nobody waits for it without need."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from plr.data import prepare
from plr.errors import DataError
from plr.prepare.background import in_background


def test_result_and_error():
    assert in_background(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0).result()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has threads of different priority")
def test_it_leaves_the_cores_to_others():
    assert in_background(lambda: os.nice(0)).result() == min(os.nice(0) + 3, 19)


def test_it_works_where_priorities_are_forbidden(monkeypatch):
    def forbid(*_) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbid)
    assert in_background(lambda: 3).result(timeout=60) == 3


def test_a_process_that_ends_does_not_wait_for_it():
    program = "import time; from plr.prepare.background import in_background; in_background(lambda: time.sleep(60))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)


def test_what_is_no_text_is_said_rather_than_what_follows_from_it(write):
    """The column is not needed, and reading goes well; that nothing is left after the filter comes later."""
    rows = b"".join(b"a,x%d,%d,note\n" % (time, time) for time in range(20))
    with pytest.raises(DataError, match="no interaction is left"):
        prepare(write("a.csv", b"user,item,timestamp,note\n" + rows), core=50)
    with pytest.raises(DataError, match=r"b\.csv:22: byte 0x00 does not belong in a text file"):
        prepare(write("b.csv", b"user,item,timestamp,note\n" + rows + b"a,y,30,n\0te\n"), core=50)
