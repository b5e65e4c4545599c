"""The sizes, budgets and grids of a reproduction. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from plr.config import read_fields
from plr.presets import preset_path

__all__ = ["BACKBONES", "METHODS", "ON_ASKING", "PRESETS", "REINFORCED", "Preset"]

BACKBONES = ("sasrec", "bert4rec", "unisrec")
METHODS: dict[str, dict[str, Any]] = {
    "base": {"method": "base"},
    "erl": {"method": "erl"},
    "prl": {"method": "prl"},
    "lares": {"method": "lares"},
    "plr-states": {"method": "plr", "mixture": "states", "streams": 2},
    "plr": {"method": "plr"},
}
"""The methods of Table 2 under equal settings; plr-states is the paper's, plr this project's default."""
REINFORCED = "lares-rpt"
ON_ASKING: dict[str, dict[str, Any]] = {REINFORCED: {"method": "lares", "phase": "rpt"}}
"""Methods that are in Table 2 where they are named: LARES' second phase, of the run of the first with the same seed."""

_SMALL = {
    "training_rows": "prefix",
    "batch_size": 512,
    "dim": 64,
    "ffn_dim": 256,
    "input_dropout": 0.2,
    "hidden_dropout": 0.5,
    "attention_dropout": 0.5,
    "epochs": 15,
    "patience": 3,
}
_PAPER = {
    "training_rows": "prefix",
    "batch_size": 2048,
    "dim": 256,
    "layers": 2,
    "heads": 2,
    "ffn_dim": 300,
    "max_length": 50,
    "input_dropout": 0.2,
    "hidden_dropout": 0.5,
    "attention_dropout": 0.5,
    "lr": 1e-3,
    "epochs": 200,
    "patience": 10,
}
_PUBLISHED = {
    "erl": "rearec-erl", "prl": "rearec-prl", "lares": "lares", "plr-states": "plr-paper",
    REINFORCED: "lares-post-training",
}  # fmt: skip


def _published() -> dict[str, dict[str, Any]]:
    """Return each method with what its own publication sets of it; sizes and training are equal for all."""
    return {
        method: {
            name: value for name, value in read_fields(preset_path(_PUBLISHED[method])).items() if name not in _PAPER
        }
        if method in _PUBLISHED
        else values
        for method, values in (METHODS | ON_ASKING).items()
    }


@dataclass(frozen=True)
class Preset:
    """What a reproduction trains and looks at.

    Attributes:
        description: for the help.
        common: settings of all runs.
        methods: each method's own.
        seeds: how many runs of each system.
        sample: about so many interactions, of users drawn at random; 0: all.
        backbones: of Table 2 and Figures 3 and 4.
        streams, steps, kl_weights, dropouts: the grids of Figure 2.
        users: how many test rows the theorems and the attention maps look at.
        rounds: of timing in Table 4.
    """

    description: str
    common: dict[str, Any]
    methods: dict[str, dict[str, Any]] = field(default_factory=lambda: METHODS | ON_ASKING)
    seeds: int = 3
    sample: int = 0
    backbones: tuple[str, ...] = BACKBONES
    streams: tuple[int, ...] = (1, 2, 4)
    steps: tuple[int, ...] = (1, 2, 3)
    kl_weights: tuple[float, ...] = (0.0, 0.1, 1.0)
    dropouts: tuple[float, ...] = (0.2, 0.5)
    users: int = 1000
    rounds: int = 30


PRESETS = {
    "quick": Preset(
        "a sample of the data and three epochs of small models: whether all works, in minutes; figures mean little",
        _SMALL | {"dim": 32, "ffn_dim": 64, "max_length": 20, "batch_size": 256, "epochs": 3, "lr": 3e-3, "threads": 1},
        seeds=2,
        sample=8_000,
        users=256,
        rounds=15,
    ),
    "small": Preset(
        "width 64, batches of 512, 15 epochs at most, all methods with their default settings: hours on a CPU",
        _SMALL,
        streams=(1, 2, 4, 8),
        kl_weights=(0.0, 0.01, 0.1, 1.0),
        dropouts=(0.1, 0.2, 0.35, 0.5),
    ),
    "paper": Preset(
        "width 256, batches of 2048, patience 10, each method as published, the paper's grids: for a GPU",
        _PAPER,
        methods=_published(),
        seeds=5,
        streams=(1, 2, 3, 4, 5),
        steps=(1, 2, 3, 4, 5),
        kl_weights=(0.0, 0.001, 0.01, 0.1, 1.0),
        dropouts=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
        users=2000,
        rounds=50,
    ),
}
