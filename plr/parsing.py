"""The parser of the command line: an unknown option is one short message, not a page of usage."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

__all__ = ["Parser"]

# The messages about arguments that no option takes, and about a field of a file: jsonargparse's, of 4.35 and later.
_UNKNOWN = re.compile("unrecognized arguments: (.*)", re.IGNORECASE | re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"(?:Subcommand '([\w-]+)' )?does not accept (?:option|nested key) '(\w+)'")


class Parser(ArgumentParser):
    """jsonargparse's parser with short messages; options are written out, for a prefix would hide a typing error."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say on stderr what is wrong, with the nearest known option where one is unknown, and exit with status 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        unknown, in_file = _UNKNOWN.search(message), _UNKNOWN_FIELD.search(message)
        if unknown:
            message = _about_unknown(parser, unknown[1].split())
        elif in_file:
            parser = _of_subcommand(parser, in_file[1])
            nearest = _nearest(parser, f"--{in_file[2]}").lstrip("-")
            message = f"unknown field {in_file[2]!r} in the --config file, the nearest known is {nearest!r}"
        command = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"{command}: {' '.join(message.split())}; see {command} --help\n")
        sys.exit(2)


def _about_unknown(parser: argparse.ArgumentParser, found: list[str]) -> str:
    """Name the options, or else the words, of `found` that the parser does not know."""
    options = [word.partition("=")[0] for word in found if re.match(r"--?[a-z]", word, re.IGNORECASE)]
    if not options:
        return f"unexpected {', '.join(map(repr, found))}"
    return "; ".join(
        f"unknown option {option}, the nearest known is {_nearest(parser, option)}" for option in dict.fromkeys(options)
    )


def _of_subcommand(parser: argparse.ArgumentParser, name: str | None) -> argparse.ArgumentParser:
    """Return the parser of that subcommand, or the given one where it has none of that name."""
    choices = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next((each[name] for each in choices if name in each), parser)


def _nearest(parser: argparse.ArgumentParser, option: str) -> str:
    """Return the parser's option that is spelled most like this one."""
    known = [each for each in parser._option_string_actions if not each.endswith("+")]
    return difflib.get_close_matches(option, known, n=1, cutoff=0.0)[0]
