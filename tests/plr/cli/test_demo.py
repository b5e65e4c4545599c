import json
import shlex

import pytest
from rich.console import Console

from plr.cli import demo as module
from plr.errors import RunError
from plr.prepare import synthetic


def test_the_demo_walks_the_whole_path_and_its_advice_works(tmp_path, monkeypatch, capsys):
    """The same path as `plr demo`, on fewer users and for fewer epochs."""
    monkeypatch.setattr(
        module, "generate", lambda path, seed: synthetic.generate(path, users=200, items=60, interests=4, seed=seed)
    )
    monkeypatch.setattr(module, "EPOCHS", 2)
    console = Console(width=200)
    tmp_path = tmp_path / "a demo"  # what is to be typed is as a shell takes it
    module.demo(tmp_path, seed=1, console=console)
    printed = capsys.readouterr().out
    for word in ("Popularity", "SASRec", "PLR", "Recall@10", "NDCG@20", "What to type next"):
        assert word in printed
    for name in ("sasrec-seed1", "plr-seed1"):
        assert json.loads((tmp_path / name / "metrics.json").read_text())["test"]["rows"] > 100

    from plr.cli import main

    advice = [shlex.split(line) for line in printed.splitlines() if line.startswith("  plr ")]
    assert [command[1] for command in advice] == ["recommend", "evaluate", "train", "train"]
    for command in advice[:2]:
        assert main(command[1:]) == 0
    assert advice[2][advice[2].index("--out") + 1] == str(tmp_path / "my-run")


def test_a_second_demo_uses_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        module, "generate", lambda path, seed: synthetic.generate(path, users=120, items=40, interests=4, seed=seed)
    )
    monkeypatch.setattr(module, "EPOCHS", 1)
    module.demo(tmp_path)
    first = capsys.readouterr().out
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("model.safetensors"))]
    module.demo(tmp_path)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("model.safetensors"))] == times
    assert capsys.readouterr().out.split("Test, all items")[1] == first.split("Test, all items")[1]
    with (tmp_path / "interactions-seed0.csv").open("a", encoding="utf-8") as file:
        file.write((tmp_path / "interactions-seed0.csv").read_text(encoding="utf-8").splitlines()[-1] + "0\n")
    with pytest.raises(RunError, match="sasrec-seed0 holds a run on other data"):  # beside popularity of these data
        module.demo(tmp_path)
