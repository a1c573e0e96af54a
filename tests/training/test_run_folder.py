"""A run keeps to its own folder: one at a time, nothing overwritten, and a folder that vanishes is an error."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from a2s_repro.checkpoint.snapshots import snapshot_path
from a2s_repro.commands import parser_of
from a2s_repro.commands import train as command
from a2s_repro.data.lists import write_lines
from a2s_repro.errors import InputError
from a2s_repro.runtime.folder_lock import FolderLock
from a2s_repro.training import Run, train
from a2s_repro.training.run_log import RunLog
from tests import processes
from tests.processes import WIDTH, make_files

RECIPE = processes.RECIPE.changed(max_iter=2, batch_size=1, iter_size=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("shapes"), num_train=3)


@pytest.fixture
def run(files: dict[str, Path], tmp_path: Path) -> Run:
    return Run(out=tmp_path / "run", workers=0, **files)


def test_two_runs_do_not_share_a_folder(run: Run) -> None:
    with FolderLock(run.out), pytest.raises(InputError, match=r"run is in use by process \d+"):
        train(RECIPE, run)
    assert not run.out.exists()


def test_a_finished_run_is_not_overwritten_by_resuming_another(run: Run, tmp_path: Path) -> None:
    train(RECIPE, run)
    other = dataclasses.replace(run, out=tmp_path / "other")
    train(RECIPE, other)
    final = (other.out / "final.pth").read_bytes()
    with pytest.raises(InputError, match=r"other already holds a run: .*\(snapshot_iter_2.pth is there\)"):
        train(RECIPE, dataclasses.replace(other, resume=str(snapshot_path(run.out, 2))))
    assert (other.out / "final.pth").read_bytes() == final


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_lone_final_file_is_kept(run: Run, resume: str | None) -> None:
    run.out.mkdir()
    (run.out / "final.pth").write_text("precious")
    with pytest.raises(InputError, match=r"holds a (run: .*final.pth is there|final.pth, but no snapshot)"):
        train(RECIPE, dataclasses.replace(run, resume=resume))
    assert (run.out / "final.pth").read_text() == "precious"


def test_hidden_files_of_users_are_kept_and_those_of_killed_writers_removed(run: Run) -> None:
    """Version 0.1 removed the first, whose name is like those of its own temporary files."""
    run.out.mkdir()
    for name in (".notes.20240101.txt", ".a2s_part.abcd1234.pth"):
        (run.out / name).touch()
    train(RECIPE, run)
    assert [path.name for path in run.out.glob(".*")] == [".notes.20240101.txt"]


def test_a_log_whose_folder_was_moved_away_is_an_error(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", 0) as log:
        log.write(0, 0.5, {"loss": 1.0}, 0.1, 1, 1, 1)
        (tmp_path / "run").rename(tmp_path / "moved")  # removing it could race with TensorBoard's thread
        with pytest.raises(InputError, match=r"log.jsonl is gone: the folder of the run was removed or replaced"):
            log.write(1, 1.0, {"loss": 1.0}, 0.1, 1, 1, 1)


def test_the_start_names_net_classes_and_schedule(run: Run, capsys: pytest.CaptureFixture) -> None:
    train(RECIPE, run)
    said = capsys.readouterr().out
    assert "DeepLab-LargeFOV, scales 1 0.5, merged by attention, extra supervision, width 0.03125; 6 classes" in said
    assert "3 images; 2 iterations of 1 x 1 images, crop 65: 0.667 times the list; learning rate 0.001" in said


def chosen(files: dict[str, Path], out: Path, *more: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The recipe and the run that `a2s train` would start on an own list."""
    seen = {}
    monkeypatch.setattr("a2s_repro.training.train", lambda recipe, run: seen.update(recipe=recipe, run=run) or 1 / 0)
    words = ["--data-root", files["data_root"], "--init", files["init"], "--train-list", files["train_list"]]
    arguments = parser_of("train").parse_args([*map(str, words), "--out", str(out), "--width", str(WIDTH), *more])
    with pytest.raises(ZeroDivisionError):
        command.main(arguments)
    return seen


def test_an_own_list_gets_its_classes_and_a_schedule_of_its_length(files, tmp_path, monkeypatch) -> None:
    seen = chosen(files, tmp_path / "run", monkeypatch=monkeypatch)
    recipe = seen["recipe"]
    assert (recipe.name, recipe.num_classes, recipe.extra_supervision) == ("own", 6, False)
    assert (recipe.max_iter, recipe.stepsize, recipe.batch_size * recipe.iter_size) == (500, 167, 12)
    assert seen["run"].classes == files["data_root"] / "classes.txt"
    recipe = chosen(files, tmp_path / "run", "--recipe", "voc12/max2", monkeypatch=monkeypatch)["recipe"]
    assert (recipe.name, recipe.merge, recipe.max_iter) == ("voc12/max2", "max", 6000)


def test_an_own_list_without_classes_is_refused(files, tmp_path) -> None:
    """Version 0.1 made a net of VOC's 21 classes."""
    root = tmp_path / "data"
    shutil.copytree(files["data_root"], root)
    (root / "classes.txt").unlink()
    words = ["--data-root", root, "--init", files["init"], "--train-list", root / "ImageSets/Segmentation/train.txt"]
    arguments = parser_of("train").parse_args([*map(str, words), "--out", str(tmp_path / "run")])
    with pytest.raises(InputError, match=r"the classes of .*train.txt are not known: give --classes"):
        command.main(arguments)


def test_labels_are_checked_before_the_first_iteration(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(run.data_root, root)
    write_lines(root / "classes.txt", ["background", "disc"])
    own_list = root / run.train_list.relative_to(run.data_root)
    two = dataclasses.replace(run, data_root=root, classes=root / "classes.txt", train_list=own_list)
    with pytest.raises(InputError, match=r"train_000\d.png holds values that are no labels"):
        train(RECIPE.changed(num_classes=2), two)
    assert not (run.out / "config.json").exists()
