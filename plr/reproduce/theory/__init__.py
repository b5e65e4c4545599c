"""The paper's theorems (section 4), on trained models: what holds, by how much, and what does not."""

from __future__ import annotations

from plr.reproduce.results import Section
from plr.reproduce.study import Run, Study, System
from plr.reproduce.theory import contraction, ensemble

BACKBONE = "sasrec"
METHODS = ("plr-states", "plr")
DEPTH = 8  # steps of the model that diversity is followed through


def needs(study: Study) -> list[Run]:
    """Return a run of either form of PLR, and one of either with eight steps."""
    seeds = study.seeds[:1]
    systems = [System(BACKBONE, method) for method in METHODS]
    deep = [study.system(BACKBONE, method, steps=DEPTH) for method in METHODS]
    return study.runs([*systems, *deep], seeds)


def section(study: Study) -> Section:
    """Return what was measured of each theorem."""
    finished = [run for run in needs(study) if run not in study.failed]
    shallow = [run for run in finished if not run.system.changes]
    deep = [run for run in finished if run not in shallow]
    parts = [*ensemble.parts(study, shallow), *contraction.parts(study, deep)]
    return Section("theory", "Theory: the theorems on trained models", parts)
