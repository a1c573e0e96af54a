"""The options of all commands: one vocabulary, help texts, examples that parse, old spellings."""

import argparse
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from a2s_repro import commands, solver
from a2s_repro.analysis import compare_runs, crf_search, figures
from a2s_repro.commands import COMMANDS, options, parser_of
from a2s_repro.data import ade20k, caffe_rng, coco, person_part, voc
from a2s_repro.models import refine, resnet, share_net
from a2s_repro.recipes import recipe
from a2s_repro.runtime import precision
from tests.markdown import PAGES
from tests.paths import TOOLS

PARSERS = {name: parser_of(name) for name in COMMANDS}


def visible(name: str) -> list[argparse.Action]:
    """The options and arguments of a command that its help shows, but for --help itself."""
    actions = PARSERS[name]._actions
    return [action for action in actions if action.help != argparse.SUPPRESS and "--help" not in action.option_strings]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option_and_shows_an_example(name):
    printed = PARSERS[name].format_help()
    assert f"\n  a2s {name} " in f"{printed} " or printed.endswith(f"\n  a2s {name}\n")
    for action in visible(name):
        assert action.help, f"{name} {action.dest} has no help"
        assert action.metavar or action.choices or action.nargs == 0, f"{name} {action.dest} has no metavar"
    assert all(len(line) <= 120 for line in printed.splitlines())


def kind(action: argparse.Action) -> tuple:
    """The form of an option's value."""
    types = {options.positive: int}
    return type(action).__name__, types.get(action.type, action.type), action.nargs, str(action.metavar), action.choices


def meaning(action: argparse.Action) -> str:
    """The help text up to what is particular of the command."""
    return re.split(r" *[:;(]", action.help)[0]


EXCEPTIONS = {
    "--out": "a command that writes one file is given its name (FILE), all others a folder (DIR)",
}
"""Options that are written in two ways, and why."""


def test_an_option_means_the_same_in_every_command():
    kinds, meanings = defaultdict(set), defaultdict(set)
    for name in COMMANDS:
        for action in visible(name):
            for option in action.option_strings:
                kinds[option].add(kind(action))
                meanings[option].add(meaning(action))
    assert {option: found for option, found in meanings.items() if len(found) > 1} == {}
    assert {option for option, found in kinds.items() if len(found) > 1} == set(EXCEPTIONS)


def test_a_net_runs_on_a_device_and_draws_by_a_seed():
    running = {name for name in COMMANDS if "--device" in PARSERS[name]._option_string_actions}
    assert running >= {"train", "reproduce", "segment", "evaluate", "show-attention", "crf-search", "report", "replay"}
    drawing = {name for name in COMMANDS if "--seed" in PARSERS[name]._option_string_actions}
    assert drawing == {"train", "reproduce", "replay", "crf-search", "make-init", "make-trunk", "make-demo-data"}


RECALIBRATIONS = tuple(str(value).lower() for value in refine.RECALIBRATIONS)
NORMALIZATIONS = tuple(str(value).lower() for value in refine.NORMALIZATIONS)
CHOICES = [
    ("train", "--head", recipe.HEADS),
    ("train", "--stem", resnet.STEMS),
    ("train", "--decoder", resnet.DECODERS),
    ("train", "--batch-norm", resnet.NORMS),
    ("train", "--merge", share_net.MERGES),
    ("train", "--head-recalibration", RECALIBRATIONS),
    ("train", "--head-normalization", NORMALIZATIONS),
    ("train", "--head-merge-stride", refine.MERGE_STRIDES),
    ("train", "--head-supervision", refine.SUPERVISIONS),
    ("train", "--solver", solver.SOLVERS),
    ("train", "--lr-policy", solver.LR_POLICIES),
    ("train", "--caffe-streams", caffe_rng.GAUSSIANS),
    ("train", "--precision", (*precision.PRECISIONS, "auto")),
    ("show-attention", "--layout", figures.LAYOUTS),
    ("compare-runs", "--format", compare_runs.FORMS),
    ("prepare-coco", "--order", coco.ORDERS),
    ("prepare-coco", "--crowd", coco.CROWDS),
]


@pytest.mark.parametrize(("name", "option", "known"), CHOICES)
def test_choices_are_those_of_the_package(name, option, known):
    """They are written out in the commands, which must not import torch."""
    assert tuple(PARSERS[name]._option_string_actions[option].choices) == tuple(known)


def test_steps_are_the_stepvalues_of_the_recipe():
    words = "--data-root d --out o --lr-policy multistep --steps 4000 5500"
    assert PARSERS["train"].parse_args(words.split()).stepvalues == [4000, 5500]


def test_defaults_and_addresses_are_those_of_the_package():
    assert commands.command("crf-search").GRID == crf_search.GRID
    for name, sources in {
        "prepare-voc": (voc.VOC_SOURCE, voc.SBD_SOURCE, voc.VOC_TEST_SOURCE),
        "prepare-person-part": (person_part.PARTS_SOURCE, person_part.VOC10_SOURCE),
        "prepare-coco": (coco.ANNOTATIONS_SOURCE, *coco.IMAGES_SOURCES.values()),
        "prepare-ade20k": (ade20k.SOURCE,),
    }.items():
        assert all(source in commands.command(name).__doc__ for source in sources)


IMAGES = "--model m.pth --data-root d --list l.txt"
OLD_SPELLINGS = [
    ("segment", "x.jpg --model m.pth --out o", "--crop 257", "--pad-to 257"),
    ("evaluate", IMAGES, "--crop 257", "--pad-to 257"),
    ("show-attention", f"{IMAGES} --out o.png", "--crop 257", "--pad-to 257"),
    ("report", "runs/a3", "--crop 257", "--pad-to 257"),
    ("crf-search", IMAGES, "--crop 257", "--pad-to 257"),
    ("crf-search", IMAGES, "--iterations 5", "--crf-iterations 5"),
    ("crf-search", IMAGES, "--images 7", "--count 7"),
    ("make-demo-data", "demo", "--train 3 --val 2", "--num-train 3 --num-val 2"),
    ("reproduce", "--table a2s:3", "--data-root sets", "--datasets sets"),
    ("replay", "mine --record", "--iterations 4", "--max-iter 4"),
    ("replay", "tests/golden/e2e", "--json", "--json -"),
    *(
        (name, words, "--precision caffe", "--precision fp32")
        for name, words in (
            ("train", "--data-root d --out o"),
            ("reproduce", "--smoke"),
            ("segment", "x.jpg --model m.pth --out o"),
            ("evaluate", IMAGES),
        )
    ),
]


@pytest.mark.parametrize(("name", "words", "old", "new"), OLD_SPELLINGS)
def test_old_spellings_are_accepted_and_not_shown(name, words, old, new):
    parsed = [PARSERS[name].parse_args(shlex.split(f"{words} {option}")) for option in (old, new)]
    assert parsed[0] == parsed[1] != PARSERS[name].parse_args(shlex.split(words)) or "fp32" in new
    hidden = set(re.findall(r"--[a-z-]+", old)) - set(re.findall(r"--[a-z-]+", new))
    assert not hidden & {option for action in visible(name) for option in action.option_strings}


COMMAND_OF_TOOL = {path.name: re.search(r'main\("(.+)"\)', path.read_text())[1] for path in TOOLS.glob("[!_]*.py")}
COMMAND_LINE = re.compile(r"(?:a2s|python -m a2s_repro|-m a2s_repro) (?P<name>[a-z0-9-]+)|tools/(?P<tool>\w+\.py)")


def command_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands in a text of shell, with their words; those with variables, brackets or `...` are left out."""
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        match = COMMAND_LINE.search(line)
        words = line[match.end() :] if match else "..."
        words = re.split(r"   |[>|]|$", words.strip())[0] if match else words
        name = match and (match["name"] or COMMAND_OF_TOOL.get(match["tool"]))
        if name and not re.search(r"\.\.\.|[$\[`]", words):
            yield name, shlex.split(words, comments=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name):
    for example, words in command_lines(commands.command(name).EXAMPLES):
        PARSERS[example].parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_documents_parse(page: Path):
    for block in re.findall(r"^ *```(?:\w*)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL):
        for name, words in command_lines(block):
            assert name in PARSERS, f"{page.name}: there is no command {name}"
            PARSERS[name].parse_args(words)
