"""The result files and their index."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from bench import prepare, prepare_stages, report
from bench.records import DIGITS, RESULTS, ROUND_DIGITS, Report, dumps, write_record

BENCH = RESULTS.parent
INDEX = (BENCH / "README.md").read_text(encoding="utf-8")


def test_a_line_per_measurement_and_few_digits():
    record = {
        "machine": {"cpu": "A CPU", "threads": 2},
        "empty": [],
        "runs": [{"name": "é", "seconds": [0.000123456, 1.0, 123456.7]}, {"amount": 123456, "ok": True, "of": None}],
    }
    text = dumps(record, 4)
    assert text == (
        '{\n "machine": {"cpu": "A CPU", "threads": 2},\n "empty": [],\n "runs": [\n'
        '  {"name": "é", "seconds": [0.0001235, 1.0, 123500.0]},\n  {"amount": 123456, "ok": true, "of": null}\n ]\n}\n'
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_json_does_not_have_is_named_and_nothing_is_written(bad, tmp_path):
    with pytest.raises(ValueError, match=r"runs\[1\]\.loss must be finite"):
        write_record(tmp_path / "record.json", {"runs": [{"loss": 1.0}, {"loss": bad}]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_record_is_written_as_the_writer_does(path):
    text = path.read_text(encoding="utf-8")
    record = json.loads(text)
    assert text == dumps(record, ROUND_DIGITS if "benchmarks" in record else DIGITS)


@pytest.mark.parametrize(
    ("name", "render"),
    [
        ("cpu", lambda path: report.table(Report.read(path), whole=True) + "\n"),
        ("prepare", lambda path: prepare.markdown(json.loads(path.read_text())["results"])),
        ("prepare_recbole", lambda path: prepare.markdown(json.loads(path.read_text())["results"])),
        ("prepare_stages", lambda path: prepare_stages.markdown(json.loads(path.read_text()))),
    ],
)
def test_the_committed_tables_are_those_of_their_records(name, render):
    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == render(RESULTS / f"{name}.json")


def named_files(text):
    """The files that `name.json`, `.md` stands for."""
    for stem, suffix, others in re.findall(r"`([^`]+)(\.(?:json|csv|md|png))`((?:, `\.\w+`)*)", text):
        yield from (stem + each for each in (suffix, *re.findall(r"\.\w+", others)))


def rows():
    """The cells of every row of the index that has all four."""
    lines = (line.strip("| ").split(" | ") for line in INDEX.splitlines() if line.startswith("| "))
    return [cells for cells in lines if len(cells) == 4 and cells[0] != "measured"]


def test_the_index_has_every_result_file_and_no_other():
    named = [name for _, _, files, _ in rows() for name in named_files(files)]
    assert sorted(named) == sorted(path.name for path in RESULTS.iterdir())


def test_the_pages_that_the_index_names_quote_the_files_or_the_command():
    for _, command, files, pages in rows():
        stems = {Path(name).stem for name in named_files(files)} or {command.strip("`").split()[2]}
        for page in re.findall(r"\(([^)]+)\)", pages):
            text = (BENCH / page).read_text(encoding="utf-8")
            assert any(stem in text for stem in stems), (page, stems)


def test_the_index_has_every_module_and_every_command():
    modules = {str(path.relative_to(BENCH)) for path in BENCH.rglob("*.py") if path.name != "__init__.py"}
    assert set(re.findall(r"`([\w/]+\.py)`", INDEX)) - {"bench/records.py"} == modules
    programs = {path for path in modules if 'if __name__ == "__main__"' in (BENCH / path).read_text(encoding="utf-8")}
    commands = {name.replace(".", "/") for name in re.findall(r"python -m bench\.([\w.]+)", INDEX)}
    commands = {f"{name}/__main__.py" if (BENCH / name).is_dir() else f"{name}.py" for name in commands}
    assert commands == programs - {"rectools_epoch.py", "rectools_recommend.py"}  # run in another environment, by path
