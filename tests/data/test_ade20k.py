"""Preparation of ADE20K from a small ADEChallengeData2016."""

import numpy as np
import pytest
from PIL import Image

from a2s_repro.data.ade20k import LISTS, class_names, prepare_ade20k
from a2s_repro.data.lists import read_classes, read_list
from a2s_repro.errors import InputError
from tests.data.sources import pack, save_photograph
from tests.processes import run_tool

SHAPE = (3, 4)
ANNOTATION = np.array([[0, 0, 1, 1], [2, 0, 150, 1], [2, 2, 149, 1]], np.uint8)
LABELS = [[255, 255, 0, 0], [1, 255, 149, 0], [1, 1, 148, 0]]
IDS = {"training": ["ADE_train_00000001", "ADE_train_00000002"], "validation": ["ADE_val_00000001"]}
NAMES = ["wall", "building, edifice", *(f"object {number}" for number in range(3, 150)), "flag"]


@pytest.fixture
def source(tmp_path):
    """A small ADEChallengeData2016 in the published layout."""
    folder = tmp_path / "ADEChallengeData2016"
    for split, ids in IDS.items():
        (folder / f"annotations/{split}").mkdir(parents=True)
        for name in ids:
            save_photograph(folder / f"images/{split}/{name}.jpg", SHAPE)
            Image.fromarray(ANNOTATION).save(folder / f"annotations/{split}/{name}.png")
    rows = [f"{number} \t0.1\t10\t1\t{name} \n" for number, name in enumerate(NAMES, 1)]
    (folder / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "".join(rows))
    return folder


def check_prepared(root):
    train, val = (read_list(root / f"list/{name}.txt", root) for name in ("train", "val"))
    assert [item.id for item in train] == IDS["training"]
    assert [item.id for item in val] == IDS["validation"]
    for item in train + val:
        label = Image.open(item.label)
        assert label.mode == "L"
        assert np.asarray(label).tolist() == LABELS
        assert Image.open(item.image).size == SHAPE[::-1]
    assert read_classes(root / "classes.txt") == NAMES


def test_tool_prepares_from_the_archive(source, tmp_path):
    archive = pack(source, tmp_path / "ADEChallengeData2016.zip")
    arguments = ("--ade", archive, "--out", tmp_path / "made", "--workers", "2", "--allow-other-counts")
    done = run_tool("prepare_ade20k", *arguments)
    assert done.returncode == 0, done.stderr
    assert "list/train.txt: 2 images" in done.stdout
    check_prepared(tmp_path / "made")


def test_folders_work_and_an_interrupted_run_resumes(source, tmp_path):
    made = tmp_path / "made"
    prepare_ade20k(source.parent, made, check_counts=False)
    check_prepared(made)
    kept = (made / "SegmentationClass/ADE_train_00000001.png").stat().st_mtime_ns
    (made / "SegmentationClass/ADE_train_00000002.png").unlink()
    (made / "classes.txt").unlink()
    prepare_ade20k(source, made, check_counts=False)
    check_prepared(made)
    assert (made / "SegmentationClass/ADE_train_00000001.png").stat().st_mtime_ns == kept


def test_lists_that_differ_from_the_published_are_refused(source, tmp_path):
    with pytest.raises(InputError, match="train has 2 images, not 20210; val has 1 images, not 2000"):
        prepare_ade20k(source, tmp_path / "made")
    assert [listed.count for listed in LISTS.values()] == [20210, 2000]


def test_swapped_folders_are_named(source, tmp_path):
    (source / "images").rename(source / "x")
    (source / "annotations").rename(source / "images")
    (source / "x").rename(source / "annotations")
    with pytest.raises(InputError, match=r"holds no annotations/training/ADE_\*.png, .*ADEChallengeData2016.zip"):
        prepare_ade20k(source, tmp_path / "made", check_counts=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.full(SHAPE, 151, np.uint8), r"ADE_val_00000001.png holds values that are no labels \(151\)"),
        (np.full(SHAPE, 255, np.uint8), r"ADE_val_00000001.png holds values that are no labels \(255\)"),
        (np.zeros((*SHAPE, 3), np.uint8), r"ADE_val_00000001.png has RGB pixels, not class indices"),
        (np.zeros((4, 3), np.uint8), r"ADE_val_00000001.jpg is 4x3 pixels, its label .* 3x4"),
    ],
)
def test_wrong_annotations_are_named(source, tmp_path, wrong, message):
    Image.fromarray(wrong).save(source / "annotations/validation/ADE_val_00000001.png")
    with pytest.raises(InputError, match=message):
        prepare_ade20k(source, tmp_path / "made", check_counts=False)


def test_an_incomplete_list_of_names_is_refused():
    with pytest.raises(InputError, match=r"x does not list the objects 1\.\.150"):
        class_names(b"Idx\tName\n1\twall\n2\tbuilding\n", "x")
