"""The `plr` command: parses, calls, prints."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import get_annotations
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO, get_type_hints

from jsonargparse import Namespace

import plr
from plr.cli.continued import inherited_options
from plr.cli.parser import Parser, options_of, show_in_groups
from plr.cli.prepare import Request
from plr.cli.prepare import run as prepare
from plr.config import Config
from plr.errors import ConfigError, UserError, shortened
from plr.files import atomic_path
from plr.formats import FORMATS, format_of
from plr.options import Options, is_text, names
from plr.prepare import PrepareOptions
from plr.presets import preset_path, preset_summaries
from plr.server.options import ServerOptions
from plr.signals import raise_again, status_of

PATHS = frozenset(
    ("cache", "categories", "data", "deny", "encoder", "features", "file", "folder", "from_run", "init", "items",
     "like", "only", "out", "plots", "popularity_data", "raw", "run", "source", "space", "text_vectors", "token_file",
     "users")
)  # fmt: skip
"""Arguments that name a file or a folder, or may do so."""
FIRST = ("data", "out", "method", "dim", "epochs")
"""The options of `plr train` that one sets first."""
_OF_READING = re.compile(rf"(?<![\w'\"])(?<!plr prepare )--(?:{'|'.join(PrepareOptions.__dataclass_fields__)})\b")
_ROLES = ("user", "item", "rating", "timestamp")
NEW_ITEMS = (
    "inductive unisrec: text vectors of items, or of items' texts, that came after training, "
    "made with `plr embed-text --like`"
)
FROM = (
    "go on from a finished run on newer data, with its options where none are given: the folder of that run, whose "
    "weights and Adam's moments are kept, rows of items matched by their ids"
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. Mistakes of the user are one message, not a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an id that the terminal's encoding lacks is no error
    given = sys.argv[1:] if arguments is None else arguments
    parsed: list[Namespace] = []
    return status_of(lambda: _run(given, parsed), lambda: _advice(given, *parsed))


def _run(arguments: list[str], parsed: list[Namespace]) -> int:
    """Parse and call the command; what was parsed goes to `parsed`, for the advice after a signal."""
    for argument in arguments:
        if not is_text(argument):
            advice = "names of files must be UTF-8 text here; rename the file, or give a link to it"
            print(f"plr: {shortened(argument)}: {advice}", file=sys.stderr)
            return 2
    known = None
    try:
        parser = _parser(arguments)
        options = _with_home(parser.parse_args(_with_preset(arguments)))
        parsed.append(options)
        known = options_of(parser, options.command)
        with _plain_warnings(known):
            COMMANDS[options.command].run(options[options.command])
    except Exception as error:
        raise_again()  # of which it may be the consequence
        if _out_of_memory(error):
            reason = (str(error).splitlines() or ["out of memory"])[0]
            advice = "lower --batch_size, --eval_batch_size, --dim or --max_length"
            print(f"plr: too little memory ({reason}); {advice}", file=sys.stderr)
        elif isinstance(error, (UserError, OSError)) or _about_kernels(error):
            print(f"plr: {_with_command(str(error), known)}", file=sys.stderr)
        else:
            raise
        return error.status if isinstance(error, UserError) else 2
    return 0


def _with_home(options: Namespace) -> Namespace:
    """Replace ~ at the beginning of paths, which shells leave as it is behind `--out=`, and everybody in YAML."""
    for key, value in list(options.items()):
        if isinstance(value, str) and key.rpartition(".")[2] in PATHS:
            options[key] = os.path.expanduser(value)
    return options


def _advice(arguments: list[str], options: Namespace | None = None) -> str:
    """Say how to go on with what a signal has ended, perhaps before its options were parsed."""
    if arguments[:2] == ["data", "get"]:
        return "; repeat the command to go on: what has come is kept"
    if arguments and arguments[0] in ("reproduce", "tune"):
        return "; repeat the command to go on: what is finished stays"
    if arguments[:1] == ["recommend"] and "--users" in [each.partition("=")[0] for each in arguments]:
        return "; repeat the command to resume after the last finished part"
    if not arguments or arguments[0] not in ("train", "demo"):
        return ""
    if options is not None and options.command == "train" and (Path(options.train.out) / "metrics.json").exists():
        return f"; the run in {options.train.out} is finished"
    return "; repeat the command to resume after the last finished epoch"


def _about_kernels(error: Exception) -> bool:
    """Return whether `plr_kernels` refuses a setting of its own, or cannot run what was named."""
    # Not imported: that brings PyTorch, and fails where a setting is wrong. What raised the error is there.
    errors = sys.modules.get("plr_kernels.dispatch.errors")
    return errors is not None and isinstance(error, (errors.SettingError, errors.BackendError))


def _out_of_memory(error: Exception) -> bool:
    """Return whether the machine or the GPU has too little memory for what was asked."""
    # PyTorch has no class for it on CPUs.
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("can't allocate memory", "CUDA out of memory")
    )


def _with_command(message: str, known: set[str] | None) -> str:
    """Say of options of reading files that they are those of plr prepare, where the command has none of that name."""
    if known is None:  # the options were not parsed yet
        return message
    return _OF_READING.sub(lambda found: found[0] if found[0] in known else f"plr prepare {found[0]}", message)


@contextmanager
def _plain_warnings(known: set[str]) -> Iterator[None]:
    """Print plr's own warnings as a line each, as they come, without the place in the code; others as Python does.

    `known`: the command's options.
    """
    own = str(Path(plr.__file__).parent)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"plr\.")
        others = warnings.showwarning

        def show(
            message: Any, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
            line: str | None = None,
        ) -> None:  # fmt: skip
            if category is UserWarning and filename.startswith(own):
                print(f"plr: {_with_command(str(message), known)}", file=sys.stderr)
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def _parser(arguments: list[str]) -> Parser:
    """Return the parser; of the commands only the one that is asked for has its options, unless none is."""
    parser = Parser(prog="plr", description=plr.__doc__, version=plr.__version__)
    commands = parser.add_subcommands(dest="command")
    asked = arguments[0] if arguments and arguments[0] in COMMANDS else None
    for name, command in COMMANDS.items():
        options = Parser(description=command.description)
        commands.add_subcommand(name, options, help=command.summary)
        if asked in (name, None):
            command.add_options(options)
        if asked == name == "train":
            options.set_defaults(inherited_options(_with_preset(arguments)))
    return parser


def _with_preset(arguments: list[str]) -> list[str]:
    """Put the file of `--preset NAME`, the last one, in front of the other options, which may then say otherwise."""
    for place, argument in reversed(list(enumerate(arguments))):
        option, _, name = argument.partition("=")
        if option == "--preset" and arguments[0] == "train":
            name = name or "".join(arguments[place + 1 : place + 2])
            if name in preset_summaries():  # else the parser refuses it
                return ["train", "--config", str(preset_path(name)), *arguments[1:]]
    return arguments


def _demo_options(demo: Parser) -> None:
    demo.add_argument("--out", type=str, default="plr-demo", help="folder for the data and the runs")
    demo.add_argument("--seed", type=int, default=0, help="of the data and the runs")


def _data_options(data: Parser) -> None:
    looks = data.add_subcommands(dest="look")
    show = Parser(description="Statistics, sample sequences, and histograms of lengths and popularity.")
    show.add_argument("folder", type=str, help="a folder that plr prepare wrote")
    show.add_argument("--plots", type=str | None, default=None, help="folder for the histograms; default: the same")
    show.add_argument("--samples", type=int, default=3, help="how many sequences to show")
    show.add_argument("--seed", type=int, default=0, help="which sequences")
    looks.add_subcommand("show", show, help="statistics, histograms and sample sequences; checks all hashes")
    looks.add_subcommand("list", Parser(description="Name the public sets."), help="the public sets that get fetches")
    get = Parser(
        description="Fetch a public set: resumed where it broke off, checked against its SHA-256 where that is known "
        "beforehand, else recorded and expected from then on, and renamed into place."
    )
    get.add_argument("name", type=str, help="of the set; plr data list names them")
    get.add_argument("--out", type=str | None, default=None, help="the folder; default: raw/NAME")
    text = "where from instead: the file's address, or a folder's, which ends in /; the SHA-256 must be the same"
    get.add_argument("--url", type=str | None, default=None, help=text)
    text = "64 digits: of the set's only file, instead of the known ones"
    get.add_argument("--sha256", type=str | None, default=None, help=text)
    get.add_argument("--metadata", action="store_true", help="amazon-2023: item metadata too, which are large")
    looks.add_subcommand("get", get, help="fetch a public set by its name")


def _train_options(train: Parser) -> None:
    known = Literal[tuple(preset_summaries())]  # type: ignore[valid-type]
    text = "published settings, which --config and other options may change; `plr presets` describes each"
    train.add_argument("--preset", type=known | None, default=None, help=text)
    train.add_argument("--config", action="config", help="a YAML file of fields, e.g. a run's config.yaml")
    train.add_class_arguments(Config, skip={"provenance", "from_run"})
    train.add_argument("--from", "--from_run", dest="from_run", type=str | None, default=None, help=FROM)
    groups = {"set these first": list(FIRST)}
    for kind in (each for each in reversed(Config.__mro__) if issubclass(each, Options) and each is not Config):
        title = (kind.__doc__ or "").partition("\n")[0].partition(". ")[0].removesuffix(".")
        own = [name for name in get_annotations(kind) if name not in (*FIRST, "from_run")]
        groups |= {title: own} if own else {}
    show_in_groups(train, "help, and options from files and other runs", groups)
    train.usage = "plr train --data DATA --out OUT [--method METHOD] [--dim DIM] [--epochs EPOCHS] [more options]"


def _evaluate_options(evaluate: Parser) -> None:
    evaluate.add_argument("run", type=str, help="the run's folder")
    evaluate.add_argument("--data", type=str, default=None, help="another file, read with the run's options")
    evaluate.add_argument("--ks", type=tuple[int, ...] | None, default=None, help="the K of the metrics, e.g. [5,10]")
    evaluate.add_argument("--text_vectors", type=str | None, default=None, help=NEW_ITEMS)
    evaluate.add_argument("--exclude_seen", type=bool | None, default=None, help="do not rank items of the history")
    text = "what computes the users' states, as in plr train; default: as the run did"
    evaluate.add_argument("--rank_with", type=Literal["model", "engine"] | None, default=None, help=text)
    evaluate.add_argument("--device", type=str, default="cpu", help="where to compute: cpu, cuda, cuda:1, mps")
    segments = Literal["history", "popularity", "novelty"]
    text = "metrics of parts of the rows: by history length, popularity of the target, new or known target"
    evaluate.add_argument("--by", type=segments, nargs="+", default=[], help=text)
    text = "--by history: the last length of each part but the longest, e.g. [5,10,20]; default: the quartiles"
    evaluate.add_argument("--history_edges", type=tuple[int, ...] | None, default=None, help=text)
    text = "also of the lists: precision, MAP, coverage, Gini, popularity, novelty, serendipity, category diversity"
    evaluate.add_argument("--lists", action="store_true", help=text)
    text = "also rank among so many sampled items, to compare with old tables; misleading otherwise"
    evaluate.add_argument("--sampled", type=int | None, default=None, help=text)
    evaluate.add_argument("--seed", type=int, default=0, help="of --sampled")


def _compare_options(compare: Parser) -> None:
    compare.add_argument("runs", type=str, nargs="+", help="folders of finished runs; seeds of one system count as one")
    compare.add_argument("--metric", type=str, default="ndcg@10", help="compared by user: recall@K, ndcg@K, mrr@K, mrr")
    compare.add_argument("--ks", type=tuple[int, ...], default=(10, 20), help="the K of recall@K and ndcg@K, shown too")
    formats = Literal[tuple(FORMATS)]  # type: ignore[valid-type]
    compare.add_argument("--format", type=formats | None, default=None, help="default: what --out ends in, or a table")
    compare.add_argument("--out", type=str | None, default=None, help="a file to write to: .md, .tex, .html or .txt")


def _reproduce_options(reproduce: Parser) -> None:
    from plr.reproduce import EXPERIMENTS
    from plr.reproduce.presets import BACKBONES, METHODS, ON_ASKING, PRESETS

    listed = "; ".join(f"{name}: {text}" for name, text in EXPERIMENTS.items())
    reproduce.add_argument("what", type=str, nargs="+", help=f"one or more of these, or all. {listed}")
    reproduce.add_argument("--data", type=str, default="", help="as in plr train; table4 alone needs none")
    reproduce.add_argument("--out", type=str, default="", help="folder for the runs and the report; repeat to go on")
    sizes = "; ".join(f"{name}: {preset.description}" for name, preset in PRESETS.items())
    kinds = Literal[tuple(PRESETS)]  # type: ignore[valid-type]
    reproduce.add_argument("--preset", type=kinds, default="quick", help=f"sizes, budget and grids. {sizes}")
    reproduce.add_argument("--seeds", type=int | None, default=None, help="runs of each system; default: the preset's")
    reproduce.add_argument(
        "--set",
        type=str,
        action="append",
        default=[],
        help="FIELD=VALUE, a field of plr train for all runs, or SYSTEM:FIELD=VALUE for those of a backbone or method; "
        "may be given several times",
    )
    text = "of Table 2 and Figures 3 and 4, separated by commas; default: all of"
    reproduce.add_argument("--backbones", type=str, default="", help=f"{text} {', '.join(BACKBONES)}")
    more = f"where it is named, also {', '.join(ON_ASKING)}: LARES' reinforcement phase, of the runs of lares"
    reproduce.add_argument("--methods", type=str, default="", help=f"{text} {', '.join(METHODS)}; {more}")
    text = "about so many interactions, of users drawn at random; 0: all; default: the preset's"
    reproduce.add_argument("--sample", type=int | None, default=None, help=text)
    reproduce.add_argument("--processes", type=int, default=1, help="how many runs are trained at a time")
    reproduce.add_argument("--plan", action="store_true", help="say what would be trained and how long it would take")


def _tune_options(tune: Parser) -> None:
    from plr.tune.request import PRUNERS, Request

    help_of = argument_help(Request)
    tune.add_argument("--data", type=str, default="", help=help_of["data"])
    tune.add_argument("--out", type=str, default="", help=help_of["out"])
    text = "separated by commas; what is tuned, each BACKBONE-METHOD; the first is what the others are compared with"
    tune.add_argument("--systems", type=str, default=",".join(Request.systems), help=text)
    tune.add_argument("--space", type=str | None, default=None, help=help_of["space"])
    for name in ("trials", "seeds"):
        tune.add_argument(f"--{name}", type=int, default=getattr(Request, name), help=help_of[name])
    text = f"{help_of['settings']} May be given several times"
    tune.add_argument("--set", type=str, action="append", default=[], help=text)
    kinds = Literal[tuple(PRUNERS)]  # type: ignore[valid-type]
    text = "; ".join(f"{name}: {meaning}" for name, meaning in PRUNERS.items())
    tune.add_argument("--pruner", type=kinds, default=Request.pruner, help=text)
    for name in ("seed", "processes"):
        tune.add_argument(f"--{name}", type=int, default=getattr(Request, name), help=help_of[name])
    tune.add_argument("--plan", action="store_true", help="say what would be trained and how long it would take")


def _recommend_options(recommend: Parser) -> None:
    recommend.add_argument("run", type=str, help="the run's folder")
    recommend.add_argument(
        "--history",
        type=str,
        action="append",
        default=None,
        help='item ids, oldest first: "id id id"; ids with blanks as a JSON list, or each with a --history of its own',
    )
    recommend.add_argument(
        "--users",
        type=str | None,
        default=None,
        help="file of users: interactions in any format of plr prepare, or rows of user and history (CSV, Parquet, "
        "JSON lines); or a prepared folder",
    )
    recommend.add_argument(
        "--out", type=str | None, default=None, help="file for --users: .parquet, .csv, .csv.gz, .jsonl or .jsonl.gz"
    )
    recommend.add_argument("-k", type=int | None, default=None, help="how many items; 10, or all if there are fewer")
    recommend.add_argument("--exclude_seen", type=bool | None, default=None, help="leave out items of the history")
    recommend.add_argument("--only", type=str | None, default=None, help="file of items that may come, an id a line")
    recommend.add_argument("--deny", type=str | None, default=None, help="file of items that must not, an id a line")
    text = "how many items of a category an answer may hold; with --categories"
    recommend.add_argument("--at_most", type=int | None, default=None, help=text)
    text = "the items' categories: a file as for plr train --features, or a prepared folder"
    recommend.add_argument("--categories", type=str | None, default=None, help=text)
    text = "field of --categories; default: categories, or the only one"
    recommend.add_argument("--category_field", type=str | None, default=None, help=text)
    text = "--users: who has no known item gets what was popular in the last so many days; default: in all of training"
    recommend.add_argument("--popularity_days", type=float | None, default=None, help=text)
    text = "--users: interactions in which that is counted; default: what the run was trained on, read again"
    recommend.add_argument("--popularity_data", type=str | None, default=None, help=text)
    recommend.add_argument("--json", action="store_true", help="print the answer to --history as a JSON list")
    unknown = Literal["error", "skip"]
    recommend.add_argument(
        "--unknown",
        type=unknown | None,
        default=None,
        help="what to do with items never seen: error is the default for --history; --users skips and counts them",
    )
    recommend.add_argument("--text_vectors", type=str | None, default=None, help=NEW_ITEMS)
    recommend.add_argument("--device", type=str, default="cpu", help="where to compute: cpu, cuda, cuda:1")
    formats = get_type_hints(Config)["format"]
    recommend.add_argument("--format", type=formats | None, default=None, help="how to read --users; default: detected")
    for role in _ROLES:
        text = f"--users: name of the {role} column; default: the usual names, or that of the run"
        recommend.add_argument(f"--{role}_column", type=str | None, default=None, help=text)


def _similar_options(similar: Parser) -> None:
    similar.add_argument("run", type=str, help="the run's folder")
    similar.add_argument("item", type=str, nargs="+", help="item ids")
    similar.add_argument("-k", type=int | None, default=None, help="how many; 10, or all if there are fewer")


def _serve_options(serve: Parser) -> None:
    help_of = argument_help(ServerOptions)
    serve.add_argument("run", type=str, help=help_of["run"])
    for name, kind in get_type_hints(ServerOptions).items():
        if name == "run":
            continue
        names = [f"--{name}", *([f"--{name.replace('_', '-')}"] if "_" in name else [])]
        if kind is bool:
            serve.add_argument(*names, action="store_true", help=help_of[name])
        else:
            serve.add_argument(*names, type=kind, default=getattr(ServerOptions, name), help=help_of[name])


def _export_options(export: Parser) -> None:
    export.add_argument("run", type=str, help="the run's folder")
    kinds = Literal["vectors", "torch", "aoti", "onnx"]
    export.add_argument(
        "--to",
        type=kinds,
        required=True,
        help="vectors: item vectors for an index of inner products, a folder; torch: a program that PyTorch alone "
        "loads (.pt2); aoti: the same, compiled for this kind of machine (.pt2), for C++ too; onnx: the same for ONNX "
        "Runtime (.onnx), with the extra plr[export]",
    )
    export.add_argument("--out", type=str, required=True, help="the folder or file to write, once it was checked")
    text = "how many items, 10 or all if there are fewer; not with vectors"
    export.add_argument("-k", type=int | None, default=None, help=text)
    text = "leave out items of the history, by default as the run was evaluated; not with vectors"
    export.add_argument("--exclude_seen", type=bool | None, default=None, help=text)


def _embed_options(embed: Parser) -> None:
    embed.add_argument("file", type=str, help="item texts: .tsv or .csv with a header, .jsonl or .parquet")
    embed.add_argument("--out", type=str, default="", help="the folder to be made")
    embed.add_argument(
        "--encoder",
        type=str | None,
        default=None,
        help="tfidf (TF-IDF and SVD, fitted to these texts; the default) or a model of sentence-transformers",
    )
    embed.add_argument(
        "--dim",
        type=int | None,
        default=None,
        help="width of the vectors: tfidf's components (default 768); a model's principal components (default: all)",
    )
    embed.add_argument("--like", type=str | None, default=None, help="encode as this earlier folder was, fit nothing")
    embed.add_argument("--item_column", type=str | None, default=None, help="default: item_id, item, parent_asin, asin")
    embed.add_argument(
        "--text_columns",
        type=str | None,
        default=None,
        help="separated by commas; joined to one text; default: text or title",
    )


def _prepare_options(parser: Parser) -> None:
    help_of, types = argument_help(Request), get_type_hints(Request)
    parser.add_argument("source", type=str, help=help_of["source"])
    for name in ("out", "items", "domain", "raw"):
        parser.add_argument(f"--{name}", type=types[name], default="" if name == "out" else None, help=help_of[name])
    parser.add_argument("--protocol", type=Literal["plr", "rearec"] | None, default=None, help=help_of["protocol"])
    parser.add_argument("--download", action="store_true", help=help_of["download"])
    parser.add_argument("--base_url", type=str, default=Request.base_url, help=help_of["base_url"])
    parser.add_argument("--skip_bad_lines", "--skip-bad-lines", action="store_true", help=help_of["skip_bad_lines"])
    parser.add_argument("--partitions", type=int, default=0, help=help_of["partitions"])
    help_of, types = argument_help(PrepareOptions), get_type_hints(PrepareOptions)
    for name, kind in types.items():
        accepted = int | kind | None if name == "min_history" else kind | None
        default = getattr(PrepareOptions, name)
        text = help_of[name] if default is None else f"{help_of[name]} Default: {default}."
        parser.add_argument(f"--{name}", type=accepted, default=None, help=text)


def argument_help(of: type) -> dict[str, str]:
    """Return the description of each field in the Args of a class's docstring."""
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", of.__doc__ or "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


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
    _print(
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
    _print(
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
        _note(SAMPLED_WARNING)
    if options.by or options.lists or options.sampled:
        _print(f"saved in {save_judged(Path(options.run), outcome, options.sampled, options.seed)}")


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

    report = reproduce(request, _print, plan_only=plan)
    if report is not None:
        _print(f"report: {report}")


def _tune(options: Namespace) -> None:
    from plr.tune.request import Request
    from plr.tune.tune import tune

    values = options.as_dict()
    plan, settings = values.pop("plan"), tuple(values.pop("set"))
    request = Request(**{**values, "systems": names(values["systems"]), "settings": settings})
    report = tune(request, _print, plan_only=plan)
    if report is not None:
        _print(f"report: {report}")


def _recommend(options: Namespace) -> None:
    if (options.history is None) == (options.users is None):
        raise ConfigError("give --history, or --users and --out")
    of_users = ("out", "format", "popularity_days", "popularity_data", *(f"{role}_column" for role in _ROLES))
    for name in of_users if options.users is None else ("json", "unknown"):
        if options[name] is not None and options[name] is not False:
            other = "--users" if options.users is None else "--history"
            raise ConfigError(f"--{name} belongs to {other}")
    if options.users is not None and options.out is None:
        raise ConfigError("--users needs --out, the file to write")
    from plr.serving.bulk import read_item_list, refuse_inputs

    if options.users is not None:
        refuse_inputs(Path(options.out), *(Path(options[name]) for name in ("only", "deny") if options[name]))
    lists = {name: options[name] and read_item_list(Path(options[name])) for name in ("only", "deny")}
    if options.users is None:
        _recommend_one(options, lists)
    else:
        _recommend_many(options, lists)


def _recommend_one(options: Namespace, lists: dict[str, list[str] | None]) -> None:
    from plr.cli.tables import recommendation_table
    from plr.serving import Recommender

    recommender = Recommender.load(options.run, options.device, text_vectors=options.text_vectors)
    _tell_unknown(options, lists, recommender.item_ids)
    (answer,) = recommender.recommend(
        [history_of(options.history, recommender.item_ids)],
        options.k,
        exclude_seen=options.exclude_seen,
        unknown=options.unknown or "error",
        only=lists["only"],
        exclude=lists["deny"],
        at_most=options.at_most,
        categories=options.categories,
        category_field=options.category_field,
    )
    if options.json:
        print(
            json.dumps([{"item": each.item, "rank": rank, "score": each.score} for rank, each in enumerate(answer, 1)])
        )
    else:
        _print(recommendation_table(answer))


def _recommend_many(options: Namespace, lists: dict[str, list[str] | None]) -> None:
    from plr.evaluation import ranking_progress
    from plr.runs import RunFolder
    from plr.serving.bulk import recommend_users
    from plr.text import TextVectors

    folder = RunFolder(Path(options.run))
    folder.require_finished()
    item_ids = folder.read_item_ids()
    if options.text_vectors is not None:
        item_ids += TextVectors.load(Path(options.text_vectors)).item_ids
    _tell_unknown(options, lists, item_ids)
    counts = recommend_users(
        Path(options.run),
        Path(options.users),
        Path(options.out),
        k=options.k,
        exclude_seen=options.exclude_seen,
        only=lists["only"],
        deny=lists["deny"],
        text_vectors=None if options.text_vectors is None else Path(options.text_vectors),
        at_most=options.at_most,
        categories=None if options.categories is None else Path(options.categories),
        category_field=options.category_field,
        popularity_days=options.popularity_days,
        popularity_data=None if options.popularity_data is None else Path(options.popularity_data),
        device=options.device,
        reading={name: options[name] for name in ("format", *(f"{role}_column" for role in _ROLES))},
        progress=partial(ranking_progress, "Recommending", unit="users", stderr=True),
    )
    if counts.unknown:
        _note(
            f"{counts.unknown:,} of {counts.interactions:,} interactions are with items never seen in training; they "
            "are ignored"
        )
    if counts.popular:
        _note(f"{counts.popular:,} users have no known item and got the most popular ones")
    _print(f"{counts.users:,} users, {counts.rows:,} recommendations; saved in {options.out}")


def _tell_unknown(options: Namespace, lists: dict[str, list[str] | None], item_ids: Sequence[str]) -> None:
    """Say how many ids of the lists of items the run does not know."""
    known = set(item_ids)
    for name, ids in lists.items():
        unknown = sum(item_id not in known for item_id in ids or ())
        if unknown:
            _note(f"{options[name]}: {unknown:,} of {len(ids or ()):,} ids are no items of the run")


def _note(text: str) -> None:
    print(f"plr: {text}", file=sys.stderr)


def _similar(options: Namespace) -> None:
    from plr.cli.tables import recommendation_table
    from plr.serving import Recommender
    from plr.serving.similar import similar_items

    answers = similar_items(Recommender.load(options.run), options.item, options.k)
    for item, answer in zip(options.item, answers, strict=True):
        _print(f"Nearest to {item}:", recommendation_table(answer))


def _export(options: Namespace) -> None:
    from plr.export import export_run

    checked = export_run(options.run, options.to, options.out, k=options.k, exclude_seen=options.exclude_seen)
    _print(
        f"answers as the run does for {checked.histories} random histories: scores differ by {checked.error:.2g} from "
        f"float64, {checked.allowed:.2g} is float32 rounding; saved in {options.out}"
    )


def history_of(given: list[str], item_ids: Sequence[str]) -> list[str]:
    """Return the item ids that --history names: those of one text, separated by blanks, or one of each of several.

    A text that is not such ids of the run's may be a JSON list of ids, or one id with blanks in it.
    """
    if len(given) > 1:
        return given
    known, split = set(item_ids), given[0].split()
    if known.issuperset(split):
        return split
    try:
        listed = json.loads(given[0])
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list) and all(isinstance(item, (str, int)) for item in listed):
        return [str(item) for item in listed]
    return [given[0].strip()] if given[0].strip() in known else split


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
    _print(
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

    _print(*systems_tables())


def _presets(options: Namespace) -> None:
    from plr.cli.tables import presets_table

    _print(presets_table(), "plr train --preset NAME …; each value's source stands in plr/presets/NAME.yaml")


def _columns(ks: tuple[int, ...]) -> list[str]:
    return [f"{metric}@{k}" for k in ks for metric in ("recall", "ndcg", "mrr")]


def _print(*parts: object) -> None:
    from rich.console import Console

    from plr.cli.tables import print_line

    console = Console()
    for part in parts:
        if isinstance(part, str):
            print_line(console, part)
        else:
            console.print(part)


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
        _demo_options,
        _demo,
    ),
    "prepare": Command(
        "raw files into a folder to train on",
        "Read, filter, split and write interactions as a folder that `plr train --data` opens at once.",
        _prepare_options,
        _prepare,
    ),
    "data": Command(
        "fetch public sets, look at a prepared folder",
        "Fetch a public set, or look at a prepared folder.",
        _data_options,
        _data,
    ),
    "train": Command(
        "train one system",
        "Train, validate and test one system; repeat the command to resume.",
        _train_options,
        _train,
    ),
    "evaluate": Command(
        "measure a finished run",
        "Rank a finished run's test rows again, on its own data or on another file. --by, --lists and --sampled "
        "measure more, and write evaluation.json and evaluation.md into the run's folder; docs/metrics.md has the "
        "equations.",
        _evaluate_options,
        _evaluate,
    ),
    "compare": Command(
        "compare finished runs",
        "Compare finished runs that ranked the same rows, seeds of one system together: differences to the first "
        "system with intervals over users and seeds, effect sizes, and p-values corrected by Holm.",
        _compare_options,
        _compare,
    ),
    "reproduce": Command(
        "reproduce the paper's tables, figures and theorems",
        "Train what a table or figure of the PLR paper needs, measure it and write a report; repeat the command to go "
        "on: a finished run is not trained again, and runs are shared by all tables and figures in the same folder.",
        _reproduce_options,
        _reproduce,
    ),
    "tune": Command(
        "search settings of systems, and test the chosen ones",
        "Try as many settings of each system on the validation rows, then train and test the chosen ones with several "
        "seeds; repeat the command to go on. Needs pip install -e '.[tune]'.",
        _tune_options,
        _tune,
    ),
    "recommend": Command(
        "recommend for a history or a file of users",
        "Recommend the next items for one history, or for every user of a file; repeat the command to resume.",
        _recommend_options,
        _recommend,
    ),
    "similar": Command(
        "items like an item", "Show the items whose vectors are nearest to an item's.", _similar_options, _similar
    ),
    "serve": Command(
        "recommend over HTTP",
        "Answer requests for recommendations and similar items over HTTP, as /openapi.json describes; SIGHUP loads the "
        "run anew, SIGTERM answers what was asked and ends. Needs pip install -e '.[serve]'.",
        _serve_options,
        _serve,
    ),
    "export": Command(
        "a run for other programs: vectors, PyTorch, AOTInductor, ONNX",
        "Write a run as item vectors, a PyTorch program, machine code or an ONNX graph, checked against the run.",
        _export_options,
        _export,
    ),
    "embed-text": Command(
        "make text vectors of items",
        "Turn item texts into vectors, for --backbone unisrec.",
        _embed_options,
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

