"""prepare_voc on a small VOC and SBD: real .mat files, archives and subprocesses."""

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from a2s_repro.data.lists import read_list
from a2s_repro.data.voc import palette, prepare_voc, write_label_png
from a2s_repro.errors import InputError

TOOL = Path(__file__).parents[2] / "tools" / "prepare_voc.py"
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
    """(VOC folder, SBD folder), laid out as published."""
    voc, sbd = tmp_path / "VOCdevkit" / "VOC2012", tmp_path / "benchmark_RELEASE"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for name in {*TRAIN, *VAL, *SBD}:
        Image.new("RGB", SHAPE[::-1]).save(voc / f"JPEGImages/{name}.jpg")
    for name in TRAIN + VAL:
        write_label_png(voc / f"SegmentationClass/{name}.png", own_label(name))
    (voc / "ImageSets/Segmentation/train.txt").write_text("\n".join(TRAIN) + "\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n".join(VAL) + "\n")
    for name in SBD:
        save_mat(sbd / f"dataset/cls/{name}.mat", sbd_label(name))
    return voc, sbd


def pack(folder, archive, mode):
    with tarfile.open(archive, mode) as tar:
        tar.add(folder, folder.name)
    return archive


def run_tool(*arguments):
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, timeout=120, check=False)


def check_prepared(root):
    def lines(names):
        return "".join(f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in names)

    assert (root / "list/train_aug.txt").read_text() == lines(["2007_a", "2007_b", "2008_e", "2008_x"])
    assert (root / "list/trainval_aug.txt").read_text() == lines(["2007_a", "2007_b", "2007_c", "2008_e", "2008_x"])
    assert (root / "list/val.txt").read_text() == lines(["2007_c"])
    for item in read_list(root / "list/trainval_aug.txt", root):
        label = Image.open(item.label)
        assert label.mode == "L"  # Caffe reads labels as grey images
        expected = own_label(item.id) if item.id in TRAIN + VAL else sbd_label(item.id)
        assert (np.asarray(label) == expected).all()


def test_tool_prepares_from_folders_in_place(sources):
    voc, sbd = sources
    done = run_tool("--voc", voc, "--sbd", sbd, "--allow-other-counts")
    assert done.returncode == 0, done.stderr
    assert "train_aug: 4 images" in done.stdout
    check_prepared(voc)
    assert (voc / "ImageSets/Segmentation/val.txt").read_text() == "2007_c\n"


def test_archives_are_read_where_they_are(sources, tmp_path):
    voc = pack(sources[0].parent, tmp_path / "VOCtrainval.tar", "w")
    sbd = pack(sources[1], tmp_path / "benchmark.tgz", "w:gz")
    root, counts = prepare_voc(voc, sbd, tmp_path / "made", check_counts=False)
    assert root == tmp_path / "made"
    assert counts == {"train": 2, "val": 1, "SBD only": 2, "train_aug": 4, "trainval_aug": 5}
    check_prepared(root)
    assert not (root / "dataset").exists()


def test_a_read_only_voc_folder_is_linked_to(sources, tmp_path):
    voc, sbd = sources
    prepare_voc(voc.parent, sbd / "dataset", tmp_path / "made", check_counts=False)
    check_prepared(tmp_path / "made")
    assert not (voc / "SegmentationClassAug").exists()


def test_an_interrupted_run_is_completed(sources, tmp_path):
    voc, sbd = pack(sources[0].parent, tmp_path / "VOCtrainval.tar", "w"), sources[1]
    root, _ = prepare_voc(voc, sbd, tmp_path / "made", check_counts=False)
    kept = root / "SegmentationClassAug/2007_a.png"
    kept_since = kept.stat().st_mtime_ns
    (root / "SegmentationClassAug/2008_e.png").unlink()
    (root / "JPEGImages/2007_b.jpg").write_bytes(b"\xff\xd8")
    (root / "list/train_aug.txt").unlink()
    prepare_voc(voc, sbd, root, check_counts=False)
    check_prepared(root)
    assert kept.stat().st_mtime_ns == kept_since
    assert (root / "JPEGImages/2007_b.jpg").stat().st_size > 2


def test_counts_other_than_the_published_fail(sources):
    done = run_tool("--voc", sources[0], "--sbd", sources[1])
    assert done.returncode == 2
    assert "train 2, not 1464; val 1, not 1449; SBD only 2, not 9118; train_aug 4, not 10582" in done.stderr
    assert not (sources[0] / "list").exists()


def test_missing_sources_say_where_they_are_published(sources, tmp_path):
    done = run_tool("--voc", tmp_path / "absent", "--sbd", sources[1])
    assert done.returncode == 2
    assert "absent is neither VOC 2012's archive" in done.stderr
    assert "VOCtrainval_11-May-2012.tar" in done.stderr
    with pytest.raises(InputError, match=r"absent is neither SBD's archive .*benchmark.tgz"):
        prepare_voc(sources[0], tmp_path / "absent", check_counts=False)


@pytest.mark.parametrize("wrong", [np.full(SHAPE, 21, np.uint8), np.zeros((3, 3), np.uint8), np.zeros(SHAPE)])
def test_wrong_sbd_labels_are_named(sources, wrong):
    save_mat(sources[1] / "dataset/cls/2008_e.mat", wrong)
    with pytest.raises(InputError, match="2008_e"):
        prepare_voc(*sources, check_counts=False)


def test_damaged_mat_files_are_named(sources):
    (sources[1] / "dataset/cls/2008_e.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(InputError, match=r"2008_e.mat is damaged"):
        prepare_voc(*sources, check_counts=False)


def test_truncated_archives_are_named(sources, tmp_path):
    sbd = pack(sources[1], tmp_path / "benchmark.tgz", "w:gz")
    sbd.write_bytes(sbd.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"benchmark.tgz is damaged"):
        prepare_voc(sources[0], sbd, check_counts=False)


def test_archives_cannot_write_outside(sources, tmp_path):
    archive = tmp_path / "VOCtrainval.tar"
    with tarfile.open(archive, "w") as tar:
        member = tar.gettarinfo(sources[0] / "JPEGImages/2007_a.jpg", "VOCdevkit/VOC2012/JPEGImages/../../escaped.jpg")
        with open(sources[0] / "JPEGImages/2007_a.jpg", "rb") as file:
            tar.addfile(member, file)
    with pytest.raises(InputError, match="unsafe to unpack"):
        prepare_voc(archive, sources[1], tmp_path / "made" / "root", check_counts=False)
    assert not list(tmp_path.rglob("escaped.jpg"))


def test_palette_is_vocs():
    """The colours that the VOC development kit's VOClabelcolormap gives."""
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
