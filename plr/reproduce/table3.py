"""Table 3: PLR without its parts, as printed and as the mixture of distributions."""

from __future__ import annotations

from plr.reproduce import paper
from plr.reproduce.comparison import COLUMNS, against, compared, difference_cells, listed_runs, metric_cells
from plr.reproduce.results import Cell, Part, Section, Table
from plr.reproduce.study import Run, Study, System
from plr.serving.compare import BY_USER

METRICS = ("recall@20", "ndcg@20")
BACKBONE = "sasrec"


def variants(study: Study) -> dict[str, dict[str, System]]:
    """Return the variants of both forms by name, the full one last."""
    plain = {"kl_weight": 0.0, "contrastive_weight": 0.0}
    full = study.config_of(System(BACKBONE, "plr"))
    kept = {name: getattr(full, name) for name in ("steps", "trigger_std", "consistency_weight")}
    mixed_states = {"mixture": "states", "fast_state": "none", **kept, **plain}
    return {
        "plr-states": {
            "w/o MoRS": study.system(BACKBONE, "plr-states", gate=False),
            "w/o RCL": study.system(BACKBONE, "plr-states", contrastive_weight=0.0),
            "w/o KL": study.system(BACKBONE, "plr-states", kl_weight=0.0),
            "w/o h_0": study.system(BACKBONE, "plr-states", fast_state="none"),
            "full": System(BACKBONE, "plr-states"),
        },
        "plr": {
            "w/o mixture": study.system(BACKBONE, "plr", **mixed_states),
            "w/o gate": study.system(BACKBONE, "plr", gate=False),
            "w/o consistency": study.system(BACKBONE, "plr", consistency_weight=0.0),
            "w/o reasoning": study.system(BACKBONE, "plr", reasoning=False),
            "with h_0": study.system(BACKBONE, "plr", fast_state="component"),
            "full": System(BACKBONE, "plr"),
        },
    }


def needs(study: Study) -> list[Run]:
    """Return the runs of all variants."""
    return study.runs(system for group in variants(study).values() for system in group.values())


def section(study: Study) -> Section:
    """Return a table for each form, and the paper's."""
    groups = variants(study)
    pairs = [(each, group["full"]) for group in groups.values() for each in group.values() if each != group["full"]]
    found = against(study, pairs)
    notes = {
        "plr-states": "MoRS is the gate (without: equal weights), RCL the contrastive term, KL the divergence term; "
        "w/o h_0 ranks by z_rea alone.",
        "plr": "w/o mixture: the gate mixes the streams' states, all else equal (no contrastive, no divergence term); "
        "w/o consistency: one dropout mask, nothing draws two together; "
        "w/o reasoning: streams are linear maps of h_0; with h_0: the encoder's state is one more component, which the "
        "full form does not have.",
    }
    parts: list[Part] = []
    for method, group in groups.items():
        rows: list[list[Cell]] = []
        for name, system in group.items():
            runs = study.done(system)
            if runs:
                difference = difference_cells(found.get((system, group["full"])))
                rows.append([name, *metric_cells(study, runs, METRICS), *difference, listed_runs(runs)])
        table = Table(
            f"table3-{method}",
            f"{System(BACKBONE, method).label}, on SASRec",
            ["variant", *METRICS, *COLUMNS, "runs"],
            rows,
            f"{notes[method]} Reference: the full form; {BY_USER}; p corrected by Holm over all "
            f"comparisons: {compared(found)}.",
        )
        parts.append(table)
    printed: list[list[Cell]] = [[name, *first, *second] for name, (first, second) in paper.TABLE_3.items()]
    header = ["variant", *(f"{data}, {metric}" for data in ("CDs & Vinyl", "Video & Games") for metric in METRICS)]
    parts.append(Table("table3-paper", "As the paper prints it", header, printed))
    return Section("table3", "Table 3: PLR without its parts", parts)
