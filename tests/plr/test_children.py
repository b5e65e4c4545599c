"""Processes that do pieces of work: so many at a time, in their order, and none is left behind."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from plr.children import Children, begun, last_words


def python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", code])


SLEEP = "import time; time.sleep(60)"


def test_as_many_as_are_allowed_run_and_a_task_waits_for_the_one_before_it():
    running, most, over = set(), 0, []

    def start(task):
        nonlocal most
        running.add(task)
        most = max(most, len(running))
        if task == "b2":
            assert ("b1", 3) in over
        return python(f"import sys; sys.exit({int(task[1]) + 2})")

    def ended(task, status):
        running.remove(task)
        over.append((task, status))

    after = {"b2": "b1", "c2": "elsewhere"}  # which is not among them
    Children(2, start, ended, after=after.get).run(["b2", "a1", "b1", "c2", "a2"])
    assert sorted(over) == [("a1", 3), ("a2", 4), ("b1", 3), ("b2", 4), ("c2", 4)]
    assert most == 2


def test_a_task_with_nothing_to_do_is_over_and_what_waits_for_it_begins():
    over = []
    start = {"first": lambda: None, "second": lambda: python("")}
    Children(
        1, lambda task: start[task](), lambda *both: over.append(both), after={"second": "first"}.get
    ).run(["second", "first"])
    assert over == [("first", None), ("second", 0)]


def test_processes_that_go_on_are_watched():
    seen = []
    Children(2, lambda task: python("import time; time.sleep(1)"), lambda *_: None, watch=seen.append).run("ab")
    assert {"a", "b"} == set(seen)


@pytest.mark.parametrize("where", ["over", "watch"])
def test_whatever_ends_the_work_ends_the_processes(where):
    processes = {}

    def start(task):
        processes[task] = python(SLEEP if task == "long" else "")
        return processes[task]

    def fail(*_):
        raise ValueError("enough")

    begin = time.monotonic()
    with pytest.raises(ValueError, match="enough"):
        Children(2, start, fail if where == "over" else lambda *_: None, watch=fail if where == "watch" else id).run(
            ["short", "long"]
        )
    assert time.monotonic() - begin < 50
    assert all(process.poll() is not None for process in processes.values())


def test_what_a_process_says_on_stderr_is_kept(tmp_path):
    process = begun(["json.tool", str(tmp_path / "nowhere.json")], tmp_path / "log")
    assert process.wait() != 0
    assert "nowhere.json" in last_words(tmp_path / "log")
