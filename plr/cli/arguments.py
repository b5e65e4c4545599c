"""The arguments of each command, but its summary and what it does."""

from __future__ import annotations

import re
from inspect import get_annotations
from typing import Literal, get_type_hints

from plr.cli.parser import Parser, show_in_groups
from plr.cli.prepare import Request
from plr.config import Config
from plr.formats import FORMATS
from plr.options import Options
from plr.prepare import PrepareOptions
from plr.presets import preset_summaries
from plr.server.options import ServerOptions

PATHS = frozenset(
    ("cache", "categories", "data", "deny", "encoder", "features", "file", "folder", "from_run", "init", "items",
     "like", "only", "out", "plots", "popularity_data", "raw", "run", "source", "space", "text_vectors", "token_file",
     "users")
)  # fmt: skip
"""Arguments that name a file or a folder, or may do so."""
FIRST = ("data", "out", "method", "dim", "epochs")
"""The options of `plr train` that one sets first."""
ROLES = ("user", "item", "rating", "timestamp")
"""Of columns."""
NEW_ITEMS = (
    "inductive unisrec: text vectors of items, or of items' texts, that came after training, "
    "made with `plr embed-text --like`"
)
FROM = (
    "go on from a finished run on newer data, with its options where none are given: the folder of that run, whose "
    "weights and Adam's moments are kept, rows of items matched by their ids"
)


def demo_options(demo: Parser) -> None:
    """Take those of `plr demo`."""
    demo.add_argument("--out", type=str, default="plr-demo", help="folder for the data and the runs")
    demo.add_argument("--seed", type=int, default=0, help="of the data and the runs")


def data_options(data: Parser) -> None:
    """Take those of `plr data`."""
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


def train_options(train: Parser) -> None:
    """Take those of `plr train`."""
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


def evaluate_options(evaluate: Parser) -> None:
    """Take those of `plr evaluate`."""
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


def compare_options(compare: Parser) -> None:
    """Take those of `plr compare`."""
    compare.add_argument("runs", type=str, nargs="+", help="folders of finished runs; seeds of one system count as one")
    compare.add_argument("--metric", type=str, default="ndcg@10", help="compared by user: recall@K, ndcg@K, mrr@K, mrr")
    compare.add_argument("--ks", type=tuple[int, ...], default=(10, 20), help="the K of recall@K and ndcg@K, shown too")
    formats = Literal[tuple(FORMATS)]  # type: ignore[valid-type]
    compare.add_argument("--format", type=formats | None, default=None, help="default: what --out ends in, or a table")
    compare.add_argument("--out", type=str | None, default=None, help="a file to write to: .md, .tex, .html or .txt")


def reproduce_options(reproduce: Parser) -> None:
    """Take those of `plr reproduce`."""
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


def tune_options(tune: Parser) -> None:
    """Take those of `plr tune`."""
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


def recommend_options(recommend: Parser) -> None:
    """Take those of `plr recommend`."""
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
    for role in ROLES:
        text = f"--users: name of the {role} column; default: the usual names, or that of the run"
        recommend.add_argument(f"--{role}_column", type=str | None, default=None, help=text)


def similar_options(similar: Parser) -> None:
    """Take those of `plr similar`."""
    similar.add_argument("run", type=str, help="the run's folder")
    similar.add_argument("item", type=str, nargs="+", help="item ids")
    similar.add_argument("-k", type=int | None, default=None, help="how many; 10, or all if there are fewer")


def serve_options(serve: Parser) -> None:
    """Take those of `plr serve`."""
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


def export_options(export: Parser) -> None:
    """Take those of `plr export`."""
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


def embed_options(embed: Parser) -> None:
    """Take those of `plr embed-text`."""
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


def prepare_options(parser: Parser) -> None:
    """Take those of `plr prepare`."""
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
