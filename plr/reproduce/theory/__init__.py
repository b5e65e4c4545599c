"""The paper's theorems (section 4), on trained models: what holds, by how much, and what does not."""

from __future__ import annotations

from plr.reproduce.results import Section
from plr.reproduce.study import Run, Study, System
from plr.reproduce.theory import contraction, ensemble

BACKBONE = "sasrec"
METHODS = ("plr-states", "plr")
DEPTH = 8  # steps of the model that diversity is followed through


def needs(study: Study) -> list[Run]:
    """Return a run of either form of PLR, and one of either that reasons with eight steps."""
    return list(dict.fromkeys(_shallow(study) + _deep(study)))


def _shallow(study: Study) -> list[Run]:
    return study.runs([System(BACKBONE, method) for method in METHODS], study.seeds[:1])


def _deep(study: Study) -> list[Run]:
    """Return those with eight steps: the same ones where --set gives a form as many, none of one that takes none."""
    reasoning = [method for method in METHODS if study.config_of(System(BACKBONE, method)).reasoning]
    return study.runs([study.system(BACKBONE, method, steps=DEPTH) for method in reasoning], study.seeds[:1])


def section(study: Study) -> Section:
    """Return what was measured of each theorem."""
    shallow, deep = ([run for run in runs if run not in study.failed] for runs in (_shallow(study), _deep(study)))
    parts = [*ensemble.parts(study, shallow), *contraction.parts(study, deep)]
    return Section("theory", "Theory: the theorems on trained models", parts)
