"""The workflows: YAML of the form that is meant, whose commands, extras, systems and versions are the project's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*"))


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def jobs():
    return [(file.name, name, job) for file in FILES for name, job in workflow(file.name)["jobs"].items()]


def commands():
    return [step["run"] for _, _, job in jobs() for step in job["steps"] if "run" in step]


def section(title):
    """A table of pyproject.toml as lines: Python 3.10 reads no TOML."""
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8").split(f"[{title}]\n", 1)[1].split("\n[", 1)[0]


def test_both_workflows_are_there():
    assert [file.name for file in FILES] == ["tests.yml", "wheels.yml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_workflow_has_what_it_needs(file):
    given = workflow(file.name)
    # YAML 1.1 reads the key `on` as true.
    assert set(given) == {"name", True, "permissions", "jobs"}
    assert given["permissions"] == {"contents": "read"}


@pytest.mark.parametrize(("file", "name", "job"), jobs(), ids=lambda each: each if isinstance(each, str) else "")
def test_a_job_is_complete_and_its_matrix_has_what_it_names(file, name, job):
    assert set(job) <= {"name", "if", "runs-on", "timeout-minutes", "strategy", "steps", "continue-on-error"}
    assert job["timeout-minutes"] > 0
    assert job["steps"][0] == {"uses": "actions/checkout@v4"}
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        assert "uses" not in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
    named = set(re.findall(r"matrix\.(\w+)", yaml.safe_dump(job)))
    for cell in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
        assert set(cell) == named


def test_commands_are_there_and_extras_are_the_projects():
    extras = re.findall(r"^(\w+) =", section("project.optional-dependencies"), re.MULTILINE)
    assert any(command.startswith(".ci/") for command in commands())
    for command in commands():
        program = command.split()[0]
        assert program in ("pip", "pytest", "cibuildwheel") or (ROOT / program).stat().st_mode & 0o111
        for extra in re.findall(r"\.\[(\w+)\]", command):
            assert extra in extras


def test_wheels_are_of_the_systems_that_pyproject_names():
    cells = workflow("wheels.yml")["jobs"]["wheels"]["strategy"]["matrix"]["include"]
    for platform in ("linux", "macos", "windows"):
        archs = re.findall(r'"(\w+)"', section(f"tool.cibuildwheel.{platform}").split("]", 1)[0])
        assert [cell["archs"] for cell in cells if cell["platform"] == platform] == archs
    (script,) = re.findall(r"\{project\}/(\S+)\"", section("tool.cibuildwheel"))
    text = (ROOT / script).read_text(encoding="utf-8")
    # Without extensions on Windows; any option that is given must be one.
    options = re.findall(r"try_wheel\.py (--[\w-]+)", section("tool.cibuildwheel.windows"))
    assert options == ["--no-extensions"]
    assert all(f'"{option}"' in text for option in options)


def test_the_least_version_is_tested_and_the_nightly_may_fail():
    given = workflow("tests.yml")["jobs"]
    (least,) = re.findall(r'"torch>=([\d.]+)"', section("project"))
    versions = [cell["torch"] for cell in given["versions"]["strategy"]["matrix"]["include"]]
    assert versions[0] == f"torch=={least}.*"
    assert versions[-1] == "torch"
    assert {name: job.get("continue-on-error", False) for name, job in given.items()} == {
        "checks": False, "versions": False, "sanitizers": False, "nightly": True,
    }  # fmt: skip
