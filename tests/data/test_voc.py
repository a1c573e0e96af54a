"""Preparation of VOC 2012 from a small VOC and SBD, with real .mat files, archives and subprocesses."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from a2s_repro.data.images import read_label, write_label
from a2s_repro.data.lists import read_classes, read_list
from a2s_repro.data.preparation import Prepared
from a2s_repro.data.voc import CLASSES, LISTS, palette, prepare_voc, write_label_png
from a2s_repro.errors import InputError
from tests.data.sources import pack, save_photograph
from tests.processes import run_tool

TRAIN, VAL, SBD = ["2007_b", "2007_a"], ["2007_c"], ["2007_a", "2007_c", "2008_x", "2008_e"]
SHAPE = (6, 9)


def own_label(name):
    """VOC's labels have 255 borders."""
    label = np.full(SHAPE, 255, np.uint8)
    label[2:4] = 1 + (TRAIN + VAL).index(name)
    return label


def sbd_label(name):
    return np.full(SHAPE, 15 + SBD.index(name), np.uint8)


def save_mat(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"GTcls": {"Boundaries": np.zeros((20, 1)), "Segmentation": label, "CategoriesPresent": 15}})


@pytest.fixture
def sources(tmp_path):
    """(VOC folder, SBD folder) in the published layout."""
    voc, sbd = tmp_path / "VOCdevkit" / "VOC2012", tmp_path / "benchmark_RELEASE"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for name in {*TRAIN, *VAL, *SBD, "2008_unlabelled"}:
        save_photograph(voc / f"JPEGImages/{name}.jpg", SHAPE)
    for name in TRAIN + VAL:
        write_label_png(voc / f"SegmentationClass/{name}.png", own_label(name))
    (voc / "ImageSets/Segmentation/train.txt").write_text("\n".join(TRAIN) + "\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n".join(VAL) + "\n")
    for name in SBD:
        save_mat(sbd / f"dataset/cls/{name}.mat", sbd_label(name))
    return voc, sbd


def check_prepared(root):
    def lines(names):
        return "".join(f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in names)

    assert (root / "list/train_aug_id.txt").read_text() == "2007_a\n2007_b\n2008_e\n2008_x\n"
    assert (root / "list/train_aug.txt").read_text() == lines(["2007_a", "2007_b", "2008_e", "2008_x"])
    assert (root / "list/trainval_aug.txt").read_text() == lines(["2007_a", "2007_b", "2007_c", "2008_e", "2008_x"])
    assert (root / "list/val.txt").read_text() == lines(["2007_c"])
    assert read_classes(root / "classes.txt") == list(CLASSES)
    for item in read_list(root / "list/trainval_aug.txt", root):
        label = Image.open(item.label)
        assert label.mode == "L"  # Caffe reads labels as grey images
        expected = own_label(item.id) if item.id in TRAIN + VAL else sbd_label(item.id)
        assert (np.asarray(label) == expected).all()


def test_tool_prepares_from_archives(sources, tmp_path):
    voc = pack(sources[0].parent, tmp_path / "VOCtrainval.tar")
    sbd = pack(sources[1], tmp_path / "benchmark.tgz")
    done = run_tool(
        "prepare_voc", "--voc", voc, "--sbd", sbd, "--out", tmp_path / "made", "--workers", "2", "--allow-other-counts"
    )
    assert done.returncode == 0, done.stderr
    ids = hashlib.md5(b"2007_a\n2007_b\n2008_e\n2008_x\n").hexdigest()
    assert f"list/train_aug.txt: 4 images, md5 of list/train_aug_id.txt {ids}\n" in done.stdout
    check_prepared(tmp_path / "made")
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets", "list", "classes.txt",
    }  # fmt: skip
    assert len(list((tmp_path / "made/JPEGImages").iterdir())) == 5  # 2008_unlabelled is in no list


def test_folders_are_linked_and_unchanged(sources, tmp_path):
    voc, sbd = sources
    before = sorted(voc.rglob("*"))
    prepare_voc(voc.parent, sbd / "dataset", tmp_path / "made", check_counts=False)
    check_prepared(tmp_path / "made")
    assert (tmp_path / "made/JPEGImages/2007_a.jpg").resolve() == voc / "JPEGImages/2007_a.jpg"
    assert sorted(voc.rglob("*")) == before


def test_the_voc_folder_itself_can_be_the_data_root(sources):
    voc, sbd = sources
    prepare_voc(voc, sbd, voc, check_counts=False)
    check_prepared(voc)
    assert not any(path.is_symlink() for path in voc.rglob("*"))


def test_test_images_come_from_their_own_archive_without_labels(sources, tmp_path):
    voc = tmp_path / "test/VOCdevkit/VOC2012"
    for name in ("2008_t", "2008_other_task"):
        save_photograph(voc / f"JPEGImages/{name}.jpg", SHAPE)
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/test.txt").write_text("2008_t\n")
    archive = pack(voc.parent, tmp_path / "VOC2012test.tar")
    made = tmp_path / "made"
    assert prepare_voc(*sources, made, voc_test=archive, check_counts=False).lists["test"] == ["2008_t"]
    check_prepared(made)
    assert (made / "list/test.txt").read_text() == "/JPEGImages/2008_t.jpg\n"
    assert read_list(made / "list/test.txt", made, labelled=False)[0].image == made / "JPEGImages/2008_t.jpg"
    assert not (made / "JPEGImages/2008_other_task.jpg").exists()


def test_an_interrupted_run_resumes(sources, tmp_path):
    voc, sbd = pack(sources[0].parent, tmp_path / "VOCtrainval.tar"), sources[1]
    root = prepare_voc(voc, sbd, tmp_path / "made", check_counts=False).root
    kept = root / "SegmentationClassAug/2007_a.png"
    kept_since = kept.stat().st_mtime_ns
    (root / "SegmentationClassAug/2008_e.png").unlink()
    (root / "JPEGImages/2007_b.jpg").write_bytes(b"\xff\xd8")
    (root / "list/train_aug.txt").unlink()
    prepare_voc(voc, sbd, root, check_counts=False)
    check_prepared(root)
    assert kept.stat().st_mtime_ns == kept_since
    assert (root / "JPEGImages/2007_b.jpg").stat().st_size > 2


@pytest.mark.parametrize("suffix", [".tar", ""])
def test_another_source_of_the_same_names_replaces_what_was_made_of_the_first(sources, tmp_path, suffix):
    """The second labels have the sizes and names of the first, in the same folders or in other archives."""

    def prepare(number):
        archives = (pack(folder, tmp_path / f"{number}_{folder.name}.tar") for folder in (voc.parent, sbd))
        prepare_voc(*(archives if suffix else (voc, sbd)), tmp_path / "made", check_counts=False)

    voc, sbd = sources
    prepare(1)
    made = tmp_path / "made/SegmentationClassAug"
    unchanged = (made / "2008_x.png").stat().st_mtime_ns
    write_label(made / "2007_c.png", own_label("2007_b"))  # corrected by hand: without a source
    save_mat(sbd / "dataset/cls/2008_e.mat", np.full(SHAPE, 3, np.uint8))
    write_label_png(voc / "SegmentationClass/2007_a.png", np.full(SHAPE, 4, np.uint8))
    prepare(2)
    assert (read_label(made / "2008_e.png", 21) == 3).all()
    assert (read_label(made / "2007_a.png", 21) == 4).all()
    assert (made / "2008_x.png").stat().st_mtime_ns == unchanged
    assert (read_label(made / "2007_c.png", 21) == own_label("2007_b")).all()


def test_lists_that_differ_from_the_published_are_refused(sources, tmp_path):
    with pytest.raises(InputError, match=r"train_aug has 4 images, not 10582; .*train has 2 images, not 1464"):
        prepare_voc(*sources, tmp_path / "made")
    assert not (tmp_path / "made/list").exists()
    prepared = Prepared(tmp_path, {"val": [f"{number:06}" for number in range(1449)]})
    with pytest.raises(InputError, match="val has other images"):
        prepared.check("VOC 2012", LISTS)


def test_missing_sources_are_named_with_their_url(sources, tmp_path):
    done = run_tool("prepare_voc", "--voc", tmp_path / "absent", "--sbd", sources[1])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "absent does not exist: give the archive of VOC 2012, or the folder unpacked from it" in done.stderr
    assert "VOCtrainval_11-May-2012.tar" in done.stderr
    with pytest.raises(InputError, match=r"absent does not exist: .* SBD, .*benchmark.tgz"):
        prepare_voc(sources[0], tmp_path / "absent", tmp_path / "made", check_counts=False)


def test_swapped_folders_are_named(sources, tmp_path):
    voc, sbd = sources
    (sbd / "dataset/cls").rename(sbd / "dataset/inst")
    with pytest.raises(InputError, match=r"benchmark_RELEASE holds no cls/\[0-9\]\*.mat, which belongs to SBD"):
        prepare_voc(voc, sbd, tmp_path / "made", check_counts=False)
    (sbd / "dataset/inst").rename(sbd / "dataset/cls")
    (voc / "JPEGImages").rename(voc / "x")
    (voc / "SegmentationClass").rename(voc / "JPEGImages")
    (voc / "x").rename(voc / "SegmentationClass")
    with pytest.raises(InputError, match=r"holds no JPEGImages/\*.jpg, SegmentationClass/\*.png"):
        prepare_voc(voc, sbd, tmp_path / "made", check_counts=False)


def test_a_label_map_with_a_photographs_name_is_refused(sources, tmp_path):
    voc, sbd = sources
    (voc / "SegmentationClass/2007_a.png").rename(voc / "JPEGImages/2007_a.jpg")
    write_label_png(voc / "SegmentationClass/2007_a.png", own_label("2007_a"))
    with pytest.raises(InputError, match=r"2007_a.jpg is a PNG file.*images and labels are not swapped"):
        prepare_voc(voc, sbd, tmp_path / "made", check_counts=False)


def test_object_numbers_are_refused_as_labels(sources, tmp_path):
    voc, sbd = sources
    for name, objects in (("2007_a", [1, 2, 3]), ("2007_b", [1]), ("2007_c", [])):
        label = np.zeros(SHAPE, np.uint8)
        label[0, : len(objects)] = objects
        write_label_png(voc / f"SegmentationClass/{name}.png", label)
    with pytest.raises(InputError, match=r"SegmentationClass numbers the objects .*as SegmentationObject does"):
        prepare_voc(voc, sbd, tmp_path / "made", check_counts=False)
    assert not (tmp_path / "made/SegmentationClassAug/2007_a.png").exists()


def test_colour_images_are_refused_as_labels(sources, tmp_path):
    voc, sbd = sources
    path = voc / "SegmentationClass/2007_b.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(InputError, match=r"2007_b.png has RGB pixels, not class indices: save these"):
        prepare_voc(voc, sbd, tmp_path / "made", check_counts=False)


def test_missing_photographs_are_counted(sources, tmp_path):
    (sources[0] / "JPEGImages/2008_e.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of the 10 files .* are missing from the sources \(.*2008_e.jpg\)"):
        prepare_voc(*sources, tmp_path / "made", check_counts=False)


@pytest.mark.parametrize("wrong", [np.full(SHAPE, 21, np.uint8), np.zeros((3, 3), np.uint8), np.zeros(SHAPE)])
def test_wrong_sbd_labels_are_named(sources, tmp_path, wrong):
    save_mat(sources[1] / "dataset/cls/2008_e.mat", wrong)
    with pytest.raises(InputError, match="2008_e"):
        prepare_voc(*sources, tmp_path / "made", check_counts=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_mat_files_are_named(sources, tmp_path, workers):
    (sources[1] / "dataset/cls/2008_e.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(InputError, match=r"2008_e.mat is damaged"):
        prepare_voc(*sources, tmp_path / "made", check_counts=False, workers=workers)


def test_palette_is_vocs():
    """Colours from VOClabelcolormap of the VOC development kit."""
    assert palette()[[0, 1, 2, 4, 8, 15, 20]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 128], [64, 0, 0], [192, 128, 128], [0, 64, 128]
    ]  # fmt: skip
    assert palette()[255].tolist() == [224, 224, 192]


def test_label_png_keeps_indices_and_shows_colours(tmp_path):
    labels = np.array([[0, 15, 255]], np.uint8)
    write_label_png(tmp_path / "x.png", labels)
    image = Image.open(tmp_path / "x.png")
    assert (np.asarray(image) == labels).all()
    assert (np.asarray(image.convert("RGB"))[0] == palette()[labels[0]]).all()
