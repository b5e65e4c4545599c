"""Epochs and seconds to a level of NDCG@10 are those of the runs' logs."""

import pytest

from bench.seconds_to_quality import default_levels, main, measured, reached, table
from plr.config import Config
from plr.runs import RunFolder
from plr.training import train


def written(folder, lines):
    log = folder / "logs" / "csv" / "version_0"
    log.mkdir(parents=True)
    (log / "metrics.csv").write_text("epoch,ndcg@10,train/processor_seconds,train/seconds\n" + lines)
    return RunFolder(folder)


def test_the_first_epoch_of_a_level_and_all_seconds_up_to_it(tmp_path):
    run = written(tmp_path, "0,.1,2,20\n1,.3,3,30\n2,.2,4,40\n3,.4,5,50\n")
    assert reached(run, 0.1, "processor") == (1, 2)
    assert reached(run, 0.25, "processor") == (2, 5)
    assert reached(run, 0.4, "wall") == (4, 140)
    assert reached(run, 0.41, "wall") is None


def test_a_log_without_the_seconds_of_an_epoch_is_named(tmp_path):
    run = written(tmp_path, "0,.1,,20\n1,.3,3,30\n")
    assert reached(run, 0.3, "wall") == (2, 50)
    with pytest.raises(SystemExit, match=r"no train/processor_seconds of epochs \[1\]; take --clock wall"):
        reached(run, 0.3, "processor")


def test_the_levels_are_what_all_runs_of_the_first_system_reach(tmp_path):
    runs = [written(tmp_path / name, f"0,{best},1,1\n1,.01,1,1\n") for name, best in (("a", 0.4), ("b", 0.2))]
    assert default_levels(runs) == pytest.approx([0.18, 0.19, 0.2])


def test_systems_are_put_together_and_what_none_reached_is_said():
    found = {
        "sasrec": {"best": [0.2, 0.4], "reached": {"0.2000": [(1, 10.0), (3, 30.0)], "0.3000": [None, (4, 40.0)]}},
        "plr": {"best": [0.5], "reached": {"0.2000": [(2, 9.0)], "0.3000": [(2, 9.0)]}},
    }
    assert table(found)[1:] == [
        ["sasrec", "2", "0.3000 ± 0.1414", "2.0 ± 1.4", "20 ± 14", "1 of 2 runs", ""],
        ["plr", "1", "0.5000", "2.0", "9", "2.0", "9"],
    ]


def test_runs_as_they_are_trained_have_what_it_reads(tmp_path, monkeypatch, capsys):
    data = tmp_path / "walks.txt"
    walks = [[(user + step * (1 + user % 3)) % 12 for step in range(5 + user % 4)] for user in range(40)]
    data.write_text("".join(f"u{user} {' '.join(map(str, walk))}\n" for user, walk in enumerate(walks)))
    common = {"data": str(data), "dim": 8, "ffn_dim": 8, "max_length": 6, "layers": 1, "epochs": 2, "progress": False,
              "accelerator": "cpu", "threads": 1}  # fmt: skip
    paths = []
    for method, seed in (("base", 0), ("base", 1), ("plr", 0)):
        paths.append(tmp_path / f"{method}-{seed}")
        train(Config(out=str(paths[-1]), method=method, seed=seed, **common))
    found = measured(paths, [0.0, 2.0], "processor")
    assert [len(system["best"]) for system in found.values()] == [2, 1]
    for system in found.values():
        for epoch, seconds in system["reached"]["0.0000"]:
            assert epoch == 1
            assert seconds > 0
        assert set(system["reached"]["2.0000"]) == {None}
    out = tmp_path / "record.json"
    monkeypatch.setattr("sys.argv", ["seconds_to_quality", *map(str, paths), "--out", str(out)])
    main()
    assert "sasrec + plr" in capsys.readouterr().out
    assert out.exists()
    assert "sasrec + plr" in out.with_suffix(".md").read_text()
