"""What `plr` does at each command, and the list of all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, get_type_hints

from jsonargparse import Namespace

from plr.cli import arguments
from plr.cli.output import note, show_parts
from plr.cli.parser import Parser
from plr.cli.prepare import Request
from plr.cli.prepare import run as prepare
from plr.cli.recommend import recommend
from plr.config import Config
from plr.files import atomic_path
from plr.formats import format_of
from plr.options import names
from plr.prepare import PrepareOptions
from plr.server.options import ServerOptions


def _prepare(options: Namespace) -> None:
    values = options.as_dict()
    given = {name: values.pop(name) for name in get_type_hints(PrepareOptions)}
    prepare(Request(**values, options={name: value for name, value in given.items() if value is not None}))


def _data(options: Namespace) -> None:
    chosen = options[options.look]
    if options.look in ("list", "get"):
        from plr.cli.get import get, listed

        if options.look == "list":
            listed()
        else:
            get(chosen.name, chosen.out, url=chosen.url, sha256=chosen.sha256, metadata=chosen.metadata)
        return
    from plr.cli.show import show

    show(Path(chosen.folder), plots=chosen.plots and Path(chosen.plots), samples=chosen.samples, seed=chosen.seed)


def _demo(options: Namespace) -> None:
    from plr.cli.demo import demo

    demo(Path(options.out), options.seed)


def _train(options: Namespace) -> None:
    from plr.api import train
    from plr.cli.tables import items_ranked, metrics_table

    values = options.as_dict()
    for name in ("config", "preset"):  # whose values are among the others
        values.pop(name, None)
    config = Config(**values)
    result = train(**values)
    if not result:  # not the first process of a distributed run
        return
    ranked = items_ranked(config.exclude_seen)
    show_parts(
        metrics_table({config.title: result["test"]}, columns=_columns(config.ks), title=f"Test, {ranked} ranked"),
        f"validation NDCG@10 {result['valid']['ndcg@10']:.4f}; "
        f"best epoch {result['best_epoch']} of {result['epochs']}, "
        f"{result['train_seconds_per_epoch']:.1f} s of training an epoch; saved in {config.out}",
    )


def _evaluate(options: Namespace) -> None:
    from plr.api import evaluate
    from plr.cli.judged import SAMPLED_WARNING, judged_tables, save_judged
    from plr.cli.tables import items_ranked, metrics_table

    outcome = evaluate(**options.as_dict())
    show_parts(
        metrics_table(
            {options.run: outcome.metrics},
            columns=_columns(outcome.ks),
            title=f"Test, {items_ranked(outcome.exclude_seen)} ranked",
        ),
        f"{outcome.rows} test rows of {outcome.data}; {items_ranked(outcome.exclude_seen, outcome.items)} ranked; "
        "rank = 1 + better + others with the same score / 2",
        *judged_tables(outcome),
        *outcome.notes,
    )
    if outcome.sampled:
        note(SAMPLED_WARNING)
    if options.by or options.lists or options.sampled:
        show_parts(f"saved in {save_judged(Path(options.run), outcome, options.sampled, options.seed)}")


def _compare(options: Namespace) -> None:
    from plr.api import compare

    chosen = format_of(options.format, options.out)
    text = compare(options.runs, metric=options.metric, ks=options.ks).rendered(chosen)
    if options.out is None:
        print(text, end="")
        return
    with atomic_path(options.out) as aside:
        aside.write_text(text, encoding="utf-8")
    print(f"saved in {options.out}")


def _reproduce(options: Namespace) -> None:
    from plr.reproduce.request import Request

    values = options.as_dict()
    plan = values.pop("plan")
    listed = {name: names(values.pop(name)) if values[name] else () for name in ("backbones", "methods")}
    settings = tuple(values.pop("set"))
    request = Request(**{**values, **listed, "what": tuple(values["what"]), "settings": settings})
    from plr.reproduce.reproduce import reproduce  # after the mistakes: it imports PyTorch

    report = reproduce(request, show_parts, plan_only=plan)
    if report is not None:
        show_parts(f"report: {report}")


def _tune(options: Namespace) -> None:
    from plr.tune.request import Request
    from plr.tune.tune import tune

    values = options.as_dict()
    plan, settings = values.pop("plan"), tuple(values.pop("set"))
    request = Request(**{**values, "systems": names(values["systems"]), "settings": settings})
    report = tune(request, show_parts, plan_only=plan)
    if report is not None:
        show_parts(f"report: {report}")


def _similar(options: Namespace) -> None:
    from plr.cli.tables import recommendation_table
    from plr.serving import Recommender
    from plr.serving.similar import similar_items

    answers = similar_items(Recommender.load(options.run), options.item, options.k)
    for item, answer in zip(options.item, answers, strict=True):
        show_parts(f"Nearest to {item}:", recommendation_table(answer))


def _export(options: Namespace) -> None:
    from plr.export import export_run

    checked = export_run(options.run, options.to, options.out, k=options.k, exclude_seen=options.exclude_seen)
    show_parts(
        f"answers as the run does for {checked.histories} random histories: scores differ by {checked.error:.2g} from "
        f"float64, {checked.allowed:.2g} is float32 rounding; saved in {options.out}"
    )


def _embed_text(options: Namespace) -> None:
    from plr.text import embed_text

    made = embed_text(
        Path(options.file),
        Path(options.out) if options.out else None,
        encoder=options.encoder,
        dim=options.dim,
        like=None if options.like is None else Path(options.like),
        item_column=options.item_column,
        text_columns=None if options.text_columns is None else names(options.text_columns),
    )
    from plr.cli.tables import quoted

    facts, folder = made.manifest, quoted(options.out)
    show_parts(
        f"{facts['items']} items, vectors of width {facts['width']} by {facts['encoder']} from "
        f"{', '.join(facts['source']['text_columns'])}; saved in {options.out}",
        f"{facts['without_text']} items have no text, {facts['without_known_word']} none that the encoder can read; "
        "they are marked as such",
        f"Next: plr train --backbone unisrec --text_vectors {folder}"
        if options.like is None
        else f"Next: plr recommend RUN --text_vectors {folder}, of a RUN that was trained with {options.like}",
    )


def _serve(options: Namespace) -> None:
    from plr.server.supervisor import run

    if status := run(ServerOptions(**options.as_dict())):
        sys.exit(status)


def _systems(options: Namespace) -> None:
    from plr.cli.tables import systems_tables

    show_parts(*systems_tables())


def _presets(options: Namespace) -> None:
    from plr.cli.tables import presets_table

    show_parts(presets_table(), "plr train --preset NAME …; each value's source stands in plr/presets/NAME.yaml")


def _columns(ks: tuple[int, ...]) -> list[str]:
    return [f"{metric}@{k}" for k in ks for metric in ("recall", "ndcg", "mrr")]


class Command(NamedTuple):
    """One of `plr`'s commands."""

    summary: str  # in the list of all
    description: str  # at the top of its own help
    add_options: Callable[[Parser], None]
    run: Callable[[Namespace], None]


COMMANDS = {
    "demo": Command(
        "an end-to-end run on synthetic data, in a few minutes",
        "Make data, train PLR and SASRec on them, compare, recommend.",
        arguments.demo_options,
        _demo,
    ),
    "prepare": Command(
        "raw files into a folder to train on",
        "Read, filter, split and write interactions as a folder that `plr train --data` opens at once.",
        arguments.prepare_options,
        _prepare,
    ),
    "data": Command(
        "fetch public sets, look at a prepared folder",
        "Fetch a public set, or look at a prepared folder.",
        arguments.data_options,
        _data,
    ),
    "train": Command(
        "train one system",
        "Train, validate and test one system; repeat the command to resume.",
        arguments.train_options,
        _train,
    ),
    "evaluate": Command(
        "measure a finished run",
        "Rank a finished run's test rows again, on its own data or on another file. --by, --lists and --sampled "
        "measure more, and write evaluation.json and evaluation.md into the run's folder; docs/metrics.md has the "
        "equations.",
        arguments.evaluate_options,
        _evaluate,
    ),
    "compare": Command(
        "compare finished runs",
        "Compare finished runs that ranked the same rows, seeds of one system together: differences to the first "
        "system with intervals over users and seeds, effect sizes, and p-values corrected by Holm.",
        arguments.compare_options,
        _compare,
    ),
    "reproduce": Command(
        "reproduce the paper's tables, figures and theorems",
        "Train what a table or figure of the PLR paper needs, measure it and write a report; repeat the command to go "
        "on: a finished run is not trained again, and runs are shared by all tables and figures in the same folder.",
        arguments.reproduce_options,
        _reproduce,
    ),
    "tune": Command(
        "search settings of systems, and test the chosen ones",
        "Try as many settings of each system on the validation rows, then train and test the chosen ones with several "
        "seeds; repeat the command to go on. Needs pip install -e '.[tune]'.",
        arguments.tune_options,
        _tune,
    ),
    "recommend": Command(
        "recommend for a history or a file of users",
        "Recommend the next items for one history, or for every user of a file; repeat the command to resume.",
        arguments.recommend_options,
        recommend,
    ),
    "similar": Command(
        "items like an item",
        "Show the items whose vectors are nearest to an item's.",
        arguments.similar_options,
        _similar,
    ),
    "serve": Command(
        "recommend over HTTP",
        "Answer requests for recommendations and similar items over HTTP, as /openapi.json describes; SIGHUP loads the "
        "run anew, SIGTERM answers what was asked and ends. Needs pip install -e '.[serve]'.",
        arguments.serve_options,
        _serve,
    ),
    "export": Command(
        "a run for other programs: vectors, PyTorch, AOTInductor, ONNX",
        "Write a run as item vectors, a PyTorch program, machine code or an ONNX graph, checked against the run.",
        arguments.export_options,
        _export,
    ),
    "embed-text": Command(
        "make text vectors of items",
        "Turn item texts into vectors, for --backbone unisrec.",
        arguments.embed_options,
        _embed_text,
    ),
    "systems": Command(
        "list what can be trained",
        "List backbones and methods, and which of them do not go together.",
        lambda _: None,
        _systems,
    ),
    "presets": Command("list published settings", "List the presets of plr train.", lambda _: None, _presets),
}

