"""`plr`: parses, calls, and says what went wrong."""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from jsonargparse import Namespace

import plr
from plr.cli.arguments import PATHS
from plr.cli.commands import COMMANDS
from plr.cli.continued import inherited_options
from plr.cli.parser import Parser, options_of
from plr.errors import UserError, out_of_memory, shortened
from plr.options import is_text
from plr.prepare import PrepareOptions
from plr.presets import preset_path, preset_summaries
from plr.signals import raise_again, status_of

_OF_READING = re.compile(rf"(?<![\w'\"])(?<!plr prepare )--(?:{'|'.join(PrepareOptions.__dataclass_fields__)})\b")


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
        if reason := out_of_memory(error):
            # Of tune and reproduce these are no options of their own.
            flag = "--set " if known is not None and "--set" in known else "--"
            advice = f"lower {flag}batch_size, {flag}eval_batch_size, {flag}dim or {flag}max_length"
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
