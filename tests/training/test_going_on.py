"""A run is its folder: it goes on by `a2s train --resume RUN` with the settings in its config.json."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from a2s_repro.checkpoint.snapshots import load_snapshot, newest_snapshot
from a2s_repro.commands import parser_of
from a2s_repro.commands import train as command
from a2s_repro.errors import InputError
from a2s_repro.inference.evaluation import Result, evaluate
from a2s_repro.recipes import Recipe
from a2s_repro.training import Outcome, Run, train, validation
from a2s_repro.training.run_log import read_log, read_validations
from tests import processes
from tests.processes import finish, make_files, start

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

RECIPE = processes.RECIPE.changed(max_iter=4, snapshot=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("shapes"), num_train=4, validated=True)


def a2s_train(*words: object) -> int:
    return command.main(parser_of("train").parse_args([str(word) for word in words]))


def killed_in_validation(recipe: Recipe, run: Run) -> Outcome:
    """Trains until the first image of the first validation is scored."""

    def killed(*arguments: object, **settings: object) -> Result:
        return evaluate(*arguments, **settings | {"seen": lambda *_: os.kill(os.getpid(), signal.SIGKILL)})

    validation.evaluate = killed
    return train(recipe, run)


def by_folder_alone(_: Recipe, run: Run) -> SimpleNamespace:
    return SimpleNamespace(interrupted=a2s_train("--resume", run.out))


def test_a_run_killed_in_a_validation_goes_on_by_its_folder_alone_on_two_processes(files, tmp_path):
    undisturbed, disturbed = (Run(out=tmp_path / name, workers=0, **files) for name in ("undisturbed", "disturbed"))
    assert finish(start(RECIPE, undisturbed)) == [0]
    assert finish(start(RECIPE, disturbed, task=killed_in_validation)) == [-signal.SIGKILL]
    assert load_snapshot(newest_snapshot(disturbed.out)).iteration == 2 and not read_validations(disturbed.out)
    assert finish(start(RECIPE, disturbed, 2, by_folder_alone)) == [0, 0], Path(f"{disturbed.out}.txt").read_text()

    ours, theirs = ([line["losses"] for line in read_log(run.out)] for run in (disturbed, undisturbed))
    assert ours == theirs and len(ours) == 4
    ours, theirs = (load_snapshot(newest_snapshot(run.out)).model for run in (disturbed, undisturbed))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    ours, theirs = ([line["validation"] for line in read_validations(run.out)] for run in (disturbed, undisturbed))
    assert len(ours) == len(theirs) == 2
    assert [each["iou"] for each in ours] == [each["iou"] for each in theirs]


@pytest.fixture(scope="module")
def stopped(files, tmp_path_factory) -> Path:
    """A run of two iterations, whose files are named relative to the folder where it was started."""
    folder = tmp_path_factory.mktemp("started_here")
    os.symlink(files["data_root"], folder / "data")
    before = os.getcwd()
    os.chdir(folder)
    try:
        lists = Path("data/ImageSets/Segmentation")
        run = Run(Path("data"), Path("run"), Path("data/init.pth"), train_list=lists / "train.txt", workers=0, seed=3)
        train(RECIPE.changed(max_iter=2), run)
    finally:
        os.chdir(before)
    return folder / "run"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--width", "0.5"), "run with width 0.03125 instead of 0.5"),
        (("--seed", "0"), "run with seed 3 instead of 0"),
        (("--recipe", "voc12/max2"), "run with .*merge attention instead of max"),
        (("--out", "another"), "goes on in that folder: leave out --out another"),
    ],
)
def test_options_that_are_given_as_well_are_checked(stopped, options, sentence):
    with pytest.raises(InputError, match=sentence):
        a2s_train("--resume", stopped, *options)


def test_a_new_run_needs_its_data_and_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"^--data-root and --out must be given"):
        a2s_train("--recipe", "voc12/max2")
    with pytest.raises(InputError, match="runs/typo does not exist: resume from the folder of a run or"):
        a2s_train("--resume", "runs/typo")


def test_a_run_is_made_longer_from_anywhere(stopped, tmp_path, monkeypatch):
    """The last test of this run. `--out RUN --resume auto` goes on with its settings, too."""
    monkeypatch.chdir(tmp_path)
    assert a2s_train("--resume", stopped, "--max-iter", 3) == 0
    assert a2s_train("--out", stopped, "--resume", "auto", "--max-iter", 4) == 0
    assert [line["iteration"] for line in read_log(stopped)] == [0, 1, 2, 3]
