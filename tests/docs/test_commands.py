"""Every command line of the documents uses commands and options that exist, under their present names."""

import re

import pytest

from a2s_repro.commands import COMMANDS, parser_of
from tests.markdown import FENCED, PAGES
from tests.paths import ROOT, TOOLS

NAMES = {"convert_caffe": "convert", "replay_caffe": "replay", "train_voc": "train"}
"""Tools whose names differ from those of the commands that they call."""


def command_lines() -> list[tuple[str, str, str]]:
    """Page, `tools/NAME.py` or `a2s NAME`, and the words after it, of every command in a block or between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text()
        code = [*FENCED.findall(text), *re.findall(r"`([^`]+)`", FENCED.sub("", text))]
        for line in "\n".join(code).replace("\\\n", " ").splitlines():
            for name, words in re.findall(r"(tools/[\w/]+\.py|\ba2s [a-z][\w-]*)([^#;|]*)", line):
                if "NAME" not in name:
                    found.append((page.relative_to(ROOT).as_posix(), name, words))
    return found


COMMAND_LINES = command_lines()


def test_the_documents_show_most_commands():
    assert len({name for _, name, _ in COMMAND_LINES if "dev" not in name}) > len(COMMANDS) / 2


@pytest.mark.parametrize(("page", "name", "words"), COMMAND_LINES, ids=lambda value: value.partition(" ")[0])
def test_a_command_line_names_what_exists(page: str, name: str, words: str):
    if name.startswith("tools/"):
        tool = ROOT / name
        assert tool.exists()
        if tool.parent != TOOLS:  # a developer's
            return
        name = NAMES.get(tool.stem, tool.stem.replace("_", "-"))
    else:
        name = name.removeprefix("a2s ")
    assert name in COMMANDS
    options = set(re.findall(r"--[\w-]+", parser_of(name).format_help()))
    assert set(re.findall(r"(?<![\w-])--[\w-]+", words)) <= options
