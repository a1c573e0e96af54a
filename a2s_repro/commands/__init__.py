"""The command line `a2s`: a module for each command.

A command's module holds its description (the docstring, whose first line `a2s --help` prints), EXAMPLES,
`add_options(parser)` and `main(arguments)`, which returns None or an exit status (see run.py). It parses, calls the
package and prints: whatever could be of use elsewhere lives in the other rooms. `main` imports those, not the module,
because torch takes seconds to load and help should come at once.
"""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from itertools import takewhile
from types import ModuleType
from typing import NoReturn

import a2s_repro
from a2s_repro.commands import run
from a2s_repro.errors import InputError

GROUPS = {
    "Caffe models": ("convert", "replay", "make-init", "make-trunk"),
    "Use a trained net": ("segment", "evaluate", "show-attention", "crf-search", "export"),
    "Train and reproduce": ("recipes", "train", "reproduce", "report", "compare-runs"),
    "Data sets": ("prepare-voc", "prepare-person-part", "prepare-coco", "prepare-ade20k", "make-demo-data"),
    "Installation": ("info",),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Runs `a2s WORDS`, by default the words of this process, and exits with its status."""
    given = sys.argv[1:] if words is None else list(words)
    run.run(lambda: _dispatch(given))


def _dispatch(words: list[str]) -> int | None:
    first = words[0] if words else None
    if first in (None, "-h", "--help"):
        print(overview())
        return run.WRONG_INPUT if first is None else 0
    if first == "--version":
        print(f"a2s_repro {a2s_repro.__version__}")
        return 0
    if first not in COMMANDS:
        (nearest,) = get_close_matches(first, COMMANDS, n=1, cutoff=0)
        raise InputError(f"there is no command '{first}'; the nearest is '{nearest}', and `a2s --help` lists all.")
    return command(first).main(parser_of(first).parse_args(words[1:]))


def command(name: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def overview() -> str:
    """The text of `a2s --help`."""
    lines = ["usage: a2s COMMAND [OPTION ...]", "", a2s_repro.__doc__]
    for title, names in GROUPS.items():
        summaries = {name: command(name).__doc__.splitlines()[0].removesuffix(".") for name in names}
        lines += ["", f"{title}:", *(f"  {name:<20} {summary}" for name, summary in summaries.items())]
    return "\n".join(
        [*lines, "", "`a2s COMMAND --help` shows a command's options and examples, `a2s --version` the version."]
    )


def parser_of(name: str) -> "Parser":
    """The parser of a command's options."""
    module = command(name)
    examples = f"examples:\n{module.EXAMPLES}"
    parser = Parser(f"a2s {name}", description=module.__doc__, epilog=examples, formatter_class=_HelpFormatter)
    module.add_options(parser)
    return parser


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def parse_args(self, words: Sequence[str], namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        """Names a misspelled option, where argparse would only list the required ones that are then missing."""
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        for name in (word.partition("=")[0] for word in takewhile(lambda word: word != "--", words)):
            if name.startswith("--") and not any(option.startswith(name) for option in self._option_string_actions):
                options = [option for action in shown for option in action.option_strings if option.startswith("--")]
                self.error(f"there is no option {name}, the nearest is {get_close_matches(name, options, 1, 0)[0]}")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `{self.prog} --help` shows the options.")


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps all paragraphs but indented ones; the usage line shows what is required."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = super()._fill_text
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(part if "  " in part else filled(part, width, indent) for part in paragraphs)

    def add_usage(self, usage: str | None, actions: Sequence[argparse.Action], *rest: object) -> None:
        required = [action for action in actions if action.required and action.option_strings]
        others = argparse.Action([], "others", nargs="?", metavar="OPTION ...")
        positional = [action for action in actions if not action.option_strings]
        super().add_usage(usage, [*required, others, *positional], *rest)
