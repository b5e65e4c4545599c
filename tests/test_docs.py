"""What README and docs say exists does, and the example runs."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_drop_in_example_runs():
    blocks = re.findall(r"(?:^    .*\n|^\n)+", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    (example,) = (block for block in blocks if "from plr_kernels import" in block)
    names = {}
    exec(textwrap.dedent(example), names)
    assert names["items"].grad.isfinite().all()
    assert names["query"].grad.count_nonzero()


def references(path):
    """Yield (file, [names]) of every `file.py: name, name` in a document."""
    for file, names in re.findall(r"`([\w/]+\.py)(?:: ([\w., ]+))?`", path.read_text(encoding="utf-8")):
        yield file, [name.strip() for name in names.split(",") if name.strip()]


@pytest.mark.parametrize("document", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_files_and_functions_that_documents_name_exist(document):
    for file, names in references(document):
        if not (ROOT / file).exists() and "/" not in file:
            continue  # a bare file name speaks of one in every folder
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in names:
            for part in name.split("."):
                assert re.search(rf"\b(def|class) {part}\b|^    {part}:", source, re.MULTILINE), f"{file}: {name}"


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target
