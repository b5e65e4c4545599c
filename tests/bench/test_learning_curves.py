from __future__ import annotations

from bench.learning_curves import draw, learning_curve
from plr.runs import RunFolder


def test_a_resumed_runs_curve_is_whole_and_the_later_figure_counts(tmp_path):
    # Two logs; the epoch that was interrupted after validation (1) was run again. Training's own lines have no metric.
    for version, lines in (("version_9", "0,0.1\n0,\n1,0.2\n"), ("version_10", "1,0.25\n2,0.3\n")):
        folder = tmp_path / "logs" / "csv" / version
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("epoch,ndcg@10\n" + lines)

    assert learning_curve(RunFolder(tmp_path)) == {1: 0.1, 2: 0.25, 3: 0.3}


def test_the_plot_is_written(tmp_path):
    draw({("sasrec", "base"): [{1: 0.1, 2: 0.2}, {1: 0.2}], ("unisrec", "plr"): [{1: 0.3}]}, tmp_path / "curves.png")

    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
