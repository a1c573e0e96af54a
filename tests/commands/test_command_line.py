"""`a2s` as a user meets it: the list of commands, help without torch, suggestions, exit statuses, tools/."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest

import a2s_repro
from a2s_repro.commands import COMMANDS, main, overview, run
from a2s_repro.errors import InputError, ToldElsewhere
from caffe_weights import CaffeFileError
from tests.paths import ROOT, TOOLS

HELP_OF_ALL = """
import sys
from a2s_repro import commands
print(commands.overview())
for name in commands.COMMANDS:
    commands.parser_of(name).format_help()
print(*sorted({"torch", "numpy", "cv2", "scipy", "matplotlib", "PIL", "tqdm"} & set(sys.modules)), file=sys.stderr)
"""


def ended(*words: str, capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `a2s WORDS` in this process."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code, *capsys.readouterr()


def python(*words: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False, **options)


def test_help_lists_every_command_once_in_lines_of_80_columns(capsys):
    status, printed, _ = ended("--help", capsys=capsys)
    assert status == 0
    listed = [line.split()[0] for line in printed.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert all(len(line) <= 80 for line in printed.splitlines() if line.startswith("  "))


def test_every_module_of_a_command_is_listed():
    modules = {path.stem.replace("_", "-") for path in (ROOT / "a2s_repro/commands").glob("[!_]*.py")}
    assert modules - {"run", "options"} == set(COMMANDS)


def test_help_of_all_commands_loads_nothing_heavy():
    done = python("-c", HELP_OF_ALL, cwd=ROOT)
    assert done.returncode == 0 and done.stdout == overview() + "\n"
    assert done.stderr == "\n"


def test_help_comes_at_once(record_property):
    """The time is recorded, not held to a limit: the machine may be busy."""
    start = time.perf_counter()
    done = python("-m", "a2s_repro", "--help", cwd=ROOT)
    seconds = time.perf_counter() - start
    record_property("seconds of a2s --help", seconds)
    print(f"a2s --help: {seconds:.2f} s")
    assert done.returncode == 0 and done.stdout.startswith("usage: a2s COMMAND")


def test_without_a_command_help_is_printed_and_the_status_is_2(capsys):
    assert ended(capsys=capsys) == (2, overview() + "\n", "")


def test_version(capsys):
    assert ended("--version", capsys=capsys) == (0, f"a2s_repro {a2s_repro.__version__}\n", "")


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("trian", "train"), ("train_voc", "train"), ("compare_runs", "compare-runs"), ("seg", "segment")],
)
def test_an_unknown_command_suggests_the_nearest(word, nearest, capsys):
    status, _, told = ended(word, capsys=capsys)
    assert status == 2
    assert told == f"error: there is no command '{word}'; the nearest is '{nearest}', and `a2s --help` lists all.\n"


def test_a_wrong_option_is_one_sentence(capsys):
    for words in (
        ["train"],
        ["train", "--out", "x", "--data-root", "y", "--lr", "1"],
        ["segment", "--batch-size", "0"],
    ):
        status, _, told = ended(*words, capsys=capsys)
        assert status == 2 and told.count("\n") == 1
        assert told.startswith("error: ") and told.endswith(f"; `a2s {words[0]} --help` shows the options.\n")


def test_a_misspelled_option_suggests_the_nearest(capsys):
    status, _, told = ended("segment", "photos", "--modle", "model.pth", "--out", "segmented", capsys=capsys)
    assert status == 2 and told.count("\n") == 1
    assert told.startswith("error: there is no option --modle, the nearest is --model; `a2s segment --help` shows")


def test_a_training_names_the_data_that_is_missing(tmp_path, capsys):
    words = ("train", "--init", "init.pth", "--out", f"{tmp_path}/run", "--device", "cpu", "--data-root")
    assert "nowhere is not a folder: give the data set's root" in ended(*words, f"{tmp_path}/nowhere", capsys=capsys)[2]
    status, _, told = ended(*words, str(tmp_path), capsys=capsys)
    assert status == 2 and f"{tmp_path}/list/train_aug.txt, the recipe's list, does not exist" in told
    assert "--train-list" in told and not (tmp_path / "run").exists()


def test_the_installed_script_is_the_command_line():
    module, name = re.search(r'^a2s = "(.+):(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).groups()
    assert getattr(import_module(module), name) is main


ENDS = [
    (lambda: None, 0, ""),
    (lambda: run.PARTLY_DONE, 3, ""),
    (lambda: 128 + signal.SIGTERM, 143, ""),
    (InputError("x.pth is empty: give another."), 2, "error: x.pth is empty: give another.\n"),
    (CaffeFileError("x.caffemodel is empty."), 2, "error: x.caffemodel is empty.\n"),
    (ToldElsewhere("x.pth is empty."), 2, ""),
    (FileNotFoundError(2, "No such file or directory", "x.pth"), 2, "error: x.pth does not exist: correct the path.\n"),
    (PermissionError(13, "Permission denied", "x.pth"), 2, "error: x.pth: Permission denied.\n"),
    (OSError(5, "Input/output error"), 2, "error: a file could not be read or written (Input/output error).\n"),
    (
        FileExistsError(17, "File exists", "runs"),
        2,
        "error: runs is a file, where a folder is needed: give another path.\n",
    ),
    (KeyboardInterrupt(), 130, "interrupted.\n"),
    (KeyboardInterrupt("2 of 3 are done."), 130, "interrupted: 2 of 3 are done.\n"),
    (ModuleNotFoundError(name="torch"), 2, f"error: torch is not installed for {sys.executable}: run `make setup`"),
]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("make-demo-data /proc/x", "/proc/x/JPEGImages"),
        ("make-init /proc/x/y.caffemodel --width 0.02", "/proc/x/y.caffemodel"),
        ("make-init /proc/x.caffemodel --width 0.02", "/proc/x.caffemodel"),
        ("recipes show voc12/largefov --json /proc/x.json", "/proc/x.json"),
    ],
)
def test_an_output_that_cannot_be_made_is_named(words, named, capsys):
    """In /proc no file can be made."""
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    told = f"error: {named} cannot be written (No such file or directory): give another path.\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(("outcome", "status", "told"), ENDS, ids=lambda value: type(value).__name__)
def test_exit_statuses(outcome, status, told, capsys):
    def work() -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome()

    with pytest.raises(SystemExit) as end:
        run.run(work)
    stderr = capsys.readouterr().err
    assert end.value.code == status
    assert stderr.startswith(told) and bool(stderr) == bool(told)


def test_errors_of_our_own_code_keep_their_traceback():
    for error in (ModuleNotFoundError(name="a2s_repro.nowhere"), ZeroDivisionError()):

        def work(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)):
            run.run(work)


def test_torchrun_gets_the_sentence_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    ended("trian", capsys=capsys)
    assert "no command 'trian'" in json.loads((tmp_path / "error.json").read_text())["message"]["message"]


def test_a_closed_pipe_ends_with_141():
    command = [sys.executable, "-m", "a2s_repro", "--help"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == run.NO_READER == 141


def test_recipes_lists_every_number(capsys):
    """And recipes without one, the numbers of other groups' systems, and at the end how many there are of each."""
    from a2s_repro.recipes import OTHER_SYSTEMS, PUBLISHED, RECIPES

    status, printed, _ = ended("recipes", capsys=capsys)
    numbers, others = sum(map(len, PUBLISHED.values())), len(OTHER_SYSTEMS)
    without = len(RECIPES) - len(PUBLISHED)
    *lines, counts = printed.splitlines()
    assert status == 0 and len(lines) == numbers + without + others
    assert counts == f"{len(RECIPES)} recipes with {numbers} numbers; {others} numbers of other groups' systems"
    assert "voc12/attention3_esupv                     a2s:3         mIoU            69.08" in lines
    assert "(ParseNet, another group's)                a2s:4         mIoU            69.8" in lines
    *table, counts = ended("recipes", "list", "--table", "a2s:3", capsys=capsys)[1].splitlines()
    assert set(table) < set(lines) and counts.startswith("13 recipes with 13 numbers; 0 numbers")
    costs = ended("recipes", "--cost", "voc12/max2", capsys=capsys)[1]
    assert costs == "voc12/max2                                 20,505,429 parameters, 64.1 GMAC\n"
    shown = ended("recipes", "show", "voc12/max2", capsys=capsys)[1]
    assert shown == ended("recipes", "voc12/max2", capsys=capsys)[1] and "\nscales" in shown


USERS_TOOLS = sorted(TOOLS.glob("[!_]*.py"))


def test_tools_run_the_commands():
    """`python tools/convert_caffe.py` is `a2s convert`; three lines each, and every command has one but `info`."""
    programs = {path.name: path.read_text() for path in USERS_TOOLS}
    named = {
        name: re.fullmatch(r'from _run import main\n\nif __name__ == "__main__":\n    main\("(.+)"\)\n', text)
        for name, text in programs.items()
    }
    assert all(named.values())
    assert {match[1] for match in named.values()} == set(COMMANDS) - {"info"}
    assert named["convert_caffe.py"][1] == "convert" and named["train_voc.py"][1] == "train"
    done = python(TOOLS / "convert_caffe.py", "--help", env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and done.stdout.startswith("usage: a2s convert")


@pytest.mark.parametrize("tool", USERS_TOOLS, ids=lambda path: path.stem)
def test_tools_say_that_nothing_is_installed(tool):
    done = python("-S", "-E", tool, "--help")  # without site-packages and PYTHONPATH
    assert done.returncode != 0 and done.stderr.count("\n") == 1
    assert "a2s_repro is not installed" in done.stderr and "run `make setup`" in done.stderr


def test_without_torch_a_command_answers_make_setup():
    done = python("-S", "-E", "-m", "a2s_repro", "recipes", cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "is not installed" in done.stderr and "run `make setup`" in done.stderr


def test_names_cannot_act_on_a_terminal_or_fake_a_line(capsys, tmp_path):
    """Control characters of a name are printed as escapes."""
    name = tmp_path / "a\x1b[2J\nerror: the disk is fine"
    status, _, told = ended("convert", str(name), str(tmp_path / "out.pth"), capsys=capsys)
    assert status == 2 and told.count("\n") == 1 and "\x1b" not in told
    assert r"a\x1b[2J\nerror: the disk is fine does not exist" in told


def test_a_name_that_the_terminal_cannot_show_is_printed_with_escapes(tmp_path):
    out = tmp_path / "größe.caffemodel"
    done = python(
        *("-m", "a2s_repro", "make-init", out, "--width", "0.02"),
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and done.stderr == "" and out.is_file()
    assert r"gr\xf6\xdfe.caffemodel" in done.stdout
