"""What README and docs say exists does, and the example runs."""

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from plr import options as option_classes
from plr.cli import main
from plr.errors import ConfigError
from plr.items import ItemData
from plr.models import IdItemEncoder, SequenceEncoder
from plr.models.items import encoders
from plr.models.methods import base
from plr.systems import BACKBONES, METHODS, Backbone, Method
from tests.plr.models.helpers import random_batch

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


def examples(page):
    """Return the names that the Python classes and functions of a page define, where the code that they show stands."""
    names = {"__name__": "plr.options", "dataclass": dataclass, "torch": torch, "functional": torch.nn.functional}
    for module in (option_classes, base, encoders):
        names.update((name, value) for name, value in vars(module).items() if not name.startswith("_"))
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for block in re.findall(r"(?:^ {7}.*\n|^\n)+", text, re.MULTILINE):
        code = textwrap.dedent(block).strip()
        if code.startswith(("@dataclass", "class ")):
            exec(code, names)
    return names


def test_the_example_method_trains_and_ranks():
    names = examples("how-to-add-a-method.md")
    encoder = SequenceEncoder(option_classes.EncoderOptions(dim=8, ffn_dim=8), causal=True)
    model = names["BlendRecommender"](IdItemEncoder(29, 8), encoder, names["BlendOptions"](mean_share=0.25))
    batch = random_batch()
    model.losses(batch)["next_item"].backward()
    assert all(parameter.grad.count_nonzero() for parameter in model.parameters())
    assert model.eval().scores(batch).shape == (4, 29)
    with pytest.raises(ConfigError, match=r"mean_share must be in \[0, 1\]; found 1.5"):
        names["BlendOptions"](mean_share=1.5)


def test_the_example_backbone_makes_items_of_one_length():
    names = examples("how-to-add-a-backbone.md")
    items = names["direction_items"](ItemData(29), 8, names["DirectionOptions"](item_length=2))
    torch.testing.assert_close(items.table().norm(dim=-1), torch.full((29,), 2.0))


@pytest.mark.parametrize(("page", "table"), [("method", METHODS), ("backbone", BACKBONES)])
def test_the_example_entries_are_entries(page, table):
    text = (ROOT / "docs" / f"how-to-add-a-{page}.md").read_text(encoding="utf-8")
    (entry,) = re.findall(rf'^ {{7}}"\w+": {page.title()}\((?:.*\n)+?(?=\n)', text, re.MULTILINE)
    added = eval("{" + entry + "}", {"Method": Method, "Backbone": Backbone})
    assert {type(value) for value in added.values()} == {type(value) for value in table.values()}


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
