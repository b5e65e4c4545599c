"""How alike the streams and the steps of finished PLR runs are: mean cosines over the test rows.

    python -m bench.stream_similarity runs/one runs/two

writes bench/results/stream_similarity.json, or --out, and prints it. A cosine of 1 between two streams' states says
that the second stream adds nothing; between users it says how far apart states can be.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.records import RESULTS, write_record
from plr.evaluation import evaluation_batches
from plr.inputs import load_dataset
from plr.models.methods.plr import PLRRecommender
from plr.serving import Recommender


def mean_cosine(states: Tensor) -> float:
    """The mean cosine of all pairs of different vectors, for states [R, N, d] with N > 1."""
    unit = functional.normalize(states.double(), dim=-1)
    count = states.shape[1]
    every_pair = unit.sum(dim=1).square().sum(dim=-1)  # [R], of all N² ordered pairs
    return float(((every_pair - count) / (count * (count - 1))).mean())


@torch.no_grad()
def similarity(path: Path) -> dict[str, Any]:
    """Measure one run: states [R, M, T, d] by stream, by step, and z_rea by user; what is single is None."""
    recommender = Recommender.load(path)
    model, config = recommender.model, recommender.config
    if not isinstance(model, PLRRecommender):
        raise SystemExit(f"{path}: a run of method {config.method!r}; only plr has streams")
    rows = load_dataset(config).rows("test", config.max_length)
    outcomes = [model.run(batch) for batch in evaluation_batches(rows, config.eval_batch_size, "cpu")]
    states = torch.cat([outcome.states for outcome in outcomes])
    streams, steps = states.shape[1:3]
    return {
        "trigger_std": config.trigger_std,
        "kl_weight": config.kl_weight,
        "contrastive_weight": config.contrastive_weight,
        "rows": len(states),
        "between streams": mean_cosine(states.transpose(1, 2).flatten(0, 1)) if streams > 1 else None,
        "between steps": mean_cosine(states.flatten(0, 1)) if steps > 1 else None,
        "between users": mean_cosine(torch.cat([outcome.slow for outcome in outcomes])[None]),
    }


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "stream_similarity.json")
    arguments = parser.parse_args()
    found = {"/".join(path.parts[-2:]): similarity(path) for path in arguments.runs}
    write_record(arguments.out, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
