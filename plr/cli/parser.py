"""The parser of the command line: a mistake is one short message in the user's terms, not a page of usage."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace

from plr.config import read_fields, without_derived
from plr.errors import ConfigError

__all__ = ["Parser", "options_of", "show_in_groups"]

# The messages of jsonargparse, 4.35 and later, about arguments that no option takes, a field of a file, a value of
# another kind than its option's, and what is missing.
_UNKNOWN = re.compile("unrecognized arguments: (.*)", re.IGNORECASE | re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"(?:Subcommand '([\w-]+)' )?does not accept (?:option|nested key) '([\w.]+)'")
_OTHER_KIND = re.compile(r'Parser key "(\w+)"(?: element \d+)?:.*(?:Got|Given) value: (.*)', re.DOTALL)
_NO_FILE = re.compile(r"Parser key \"(\w+)\": (?:(File does not exist)|Path is not a file): '(.*)'", re.DOTALL)
_MISSING = re.compile(r"the following arguments are required: ([\w.-]+(?:, [\w.-]+)*)")
_KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}


class Parser(ArgumentParser):
    """jsonargparse's parser with short messages; options are written out, for a prefix would hide a typing error."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self._files: list[Path] = []  # that were read
        self._file: Path | None = None  # whose values are being parsed

    def parse_path(self, path: Any, *arguments: Any, **options: Any) -> Namespace:
        """Parse a file of fields; what is wrong is named with file and line, which jsonargparse does not do."""
        file = Path(os.path.expanduser(path))
        try:
            values = read_fields(file)
        except ConfigError as error:
            self.error(str(error), error)
        if values.pop("provenance", None) is not None:  # what training wrote into a run's config.yaml is no option
            values = without_derived(values)
        self._files.append(file)
        self._file = file
        parsed = self.parse_string(yaml.safe_dump(values), *arguments, **options)
        self._file = None
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say on stderr what is wrong, with the nearest known option where one is unknown, and exit with status 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        unknown, in_file = _UNKNOWN.search(message), _UNKNOWN_FIELD.search(message)
        other_kind, missing = _OTHER_KIND.search(message), _MISSING.search(message)
        no_file = _NO_FILE.search(message)
        if unknown:
            message = _about_unknown(parser, unknown[1].split())
        elif in_file:
            parser = _of_subcommand(parser, in_file[1])
            nearest = _nearest(parser, f"--{in_file[2]}").lstrip("-")
            places = (_place(file, in_file[2]) for file in getattr(parser, "_files", ()))
            place = next(filter(None, places), "--config")
            message = f"{place}: unknown field {in_file[2]!r}, the nearest known is {nearest!r}"
        elif missing:
            paths = [path.split(".") for path in missing[1].split(", ")]  # subcommands, then the argument
            *commands, _ = paths[0]
            for command in commands:
                parser = _of_subcommand(parser, command)
            message = f"{', '.join(_shown(parser, path[-1]) for path in paths)} must be given"
        elif no_file:
            message = f"--{no_file[1]} {no_file[3]}: {'no such file' if no_file[2] else 'not a file'}"
        elif other_kind:
            file = getattr(parser, "_file", None)
            place = "" if file is None else _place(file, other_kind[1])
            message = _about_kind(parser, other_kind[1], other_kind[2], place) or message
        elif message.endswith("was not provided."):
            message = message.removesuffix(".")
        command = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"{command}: {' '.join(message.split())}; see {command} --help\n")
        sys.exit(2)


def options_of(parser: argparse.ArgumentParser, command: str) -> set[str]:
    """Return the options that a command has, as they are typed."""
    return set(_of_subcommand(parser, command)._option_string_actions)


def show_in_groups(parser: argparse.ArgumentParser, first: str, groups: Mapping[str, Iterable[str]]) -> None:
    """Let the help show options by groups; it changes nothing but the help.

    Args:
        parser: has the options.
        first: the title that stands before the options that are in no group.
        groups: the names of the options under each title. The first group stands before those, the others behind.
    """
    actions = {action.dest: action for action in parser._actions}
    shown = []
    for title, names in groups.items():
        group = argparse._ArgumentGroup(parser, title)
        group._group_actions = [actions.pop(name) for name in names]
        shown.append(group)
    rest = argparse._ArgumentGroup(parser, first)
    rest._group_actions = list(actions.values())
    parser._action_groups = [shown[0], rest, *shown[1:]]


def _about_unknown(parser: argparse.ArgumentParser, found: list[str]) -> str:
    """Name the options, or else the words, of `found` that the parser does not know."""
    options = [word.partition("=")[0] for word in found if re.match(r"--?[a-z]", word, re.IGNORECASE)]
    if not options:
        return f"unexpected {', '.join(map(repr, found))}"
    return "; ".join(
        f"unknown option {option}, the nearest known is {_nearest(parser, option)}" for option in dict.fromkeys(options)
    )


def _place(file: Path, name: str) -> str:
    """Return the file and the line of a field in it; nothing where it has none of that name."""
    root = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return next((f"{file}:{key.start_mark.line + 1}" for key, _ in pairs if key.value == name), "")


def _about_kind(parser: argparse.ArgumentParser, name: str, found: str, place: str = "") -> str | None:
    """Say what the option of that name accepts; None where this parser has none, or one of another kind.

    `place` is the field's in a file, where it is not of the command line.
    """
    action = next((action for action in parser._actions if action.dest == name), None)
    kind = _kind(getattr(action, "_typehint", None))
    return kind and f"{f'{place}: {name}' if place else _shown(parser, name)} must be {kind}; found {found}"


def _kind(hint: Any) -> str | None:
    """Return a type in words, None for one that has none here."""
    if get_origin(hint) in (types.UnionType, Union):
        kinds = [_kind(part) for part in get_args(hint) if part is not types.NoneType]
        return None if None in kinds else " or ".join(kind for kind in kinds if kind)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple and Ellipsis not in get_args(hint):
        return f"a list of {len(get_args(hint))} whole numbers"
    if get_origin(hint) is tuple:
        return "a list such as [5,10]" if int in get_args(hint) else "a list such as [a,b]"
    return _KINDS.get(hint)


def _shown(parser: argparse.ArgumentParser, name: str) -> str:
    """Return the argument as it is typed: --name, -n, or NAME where its place says what it is."""
    options = next((action.option_strings for action in parser._actions if action.dest == name), [])
    return options[-1] if options else name.upper()


def _of_subcommand(parser: argparse.ArgumentParser, name: str | None) -> argparse.ArgumentParser:
    """Return the parser of that subcommand, or the given one where it has none of that name."""
    choices = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next((each[name] for each in choices if name in each), parser)


def _nearest(parser: argparse.ArgumentParser, option: str) -> str:
    """Return the parser's option that is spelled most like this one."""
    known = [each for each in parser._option_string_actions if not each.endswith("+")]
    return difflib.get_close_matches(option, known, n=1, cutoff=0.0)[0]
