"""What README and docs say exists does, and the example runs."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest

from plr.cli import main

ROOT = Path(__file__).parent.parent


def test_the_drop_in_example_runs():
    blocks = re.findall(r"(?:^    .*\n|^\n)+", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    (example,) = (block for block in blocks if "from plr_kernels import" in block)
    names = {}
    exec(textwrap.dedent(example), names)
    assert names["items"].grad.isfinite().all()
    assert names["query"].grad.count_nonzero()


def test_commands_name_options_that_exist(capsys):
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    text = re.sub(r" *\\\n *", " ", text)
    commands = re.findall(r"^    plr (.*)$", text, re.MULTILINE) + re.findall(r"`plr ([a-z][^`]*)`", text)
    used = {}
    for command in commands:
        words = shlex.split(command.split(" #")[0])
        name = tuple(words[: 2 if words[0] == "data" else 1])
        used.setdefault(name, set()).update(word for word in words if word.startswith("-"))
    assert {"prepare", "train", "evaluate", "recommend", "embed-text"} <= {name[0] for name in used}
    for name, options in used.items():
        with pytest.raises(SystemExit):
            main([*name, "--help"])
        known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
        assert options <= known, (name, options - known)


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
