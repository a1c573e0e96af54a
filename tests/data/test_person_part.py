"""Preparation of PASCAL-Person-Part from a small VOC 2010 and annotation files in PASCAL-Part's format."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from a2s_repro.data.lists import read_classes, read_list
from a2s_repro.data.person_part import LABEL_OF, LISTS, PERSON, part_labels, prepare_person_part
from a2s_repro.errors import InputError
from tests.data.sources import pack, save_photograph
from tests.processes import run_tool

SHAPE = (6, 8)
OBJECT = [("class", "O"), ("class_ind", "O"), ("bbox", "O"), ("mask", "O"), ("parts", "O")]
PART = [("part_name", "O"), ("mask", "O")]


def mask(rows, columns, shape=SHAPE):
    """A mask with 1 in rows[0] .. rows[1] - 1, columns[0] .. columns[1] - 1; uint8, as scipy reads logical arrays."""
    area = np.zeros(shape, np.uint8)
    area[slice(*rows), slice(*columns)] = 1
    return area


def annotation(*objects, shape=SHAPE):
    """The bytes of an annotation file; `objects` are pairs of a class index and a list of (part name, mask)."""
    structs = np.empty((1, len(objects)), OBJECT)
    for struct, (number, parts) in zip(structs[0], objects, strict=True):
        listed = np.empty((1, len(parts)), PART)
        for part, (name, area) in zip(listed[0], parts, strict=True):
            part["part_name"], part["mask"] = name, area
        struct["class"], struct["class_ind"] = "person" if number == PERSON else "bicycle", number
        struct["bbox"], struct["mask"] = np.array([1.0, 1, 8, 6]), np.ones(shape, np.uint8)
        struct["parts"] = listed if parts else np.zeros((0, 0))  # [] without annotated parts
    file = io.BytesIO()
    savemat(file, {"anno": {"imname": "2008_000003", "objects": structs}})
    return file.getvalue()


PERSON_ON_BICYCLE = annotation(
    (PERSON, [("head", mask((0, 2), (0, 4))), ("neck", mask((2, 3), (0, 4))), ("torso", mask((2, 5), (1, 3)))]),
    (2, [("fwheel", mask((4, 6), (0, 2)))]),  # covers the torso's lower left
    (PERSON, [("rfoot", mask((5, 6), (1, 8)))]),  # covers part of the wheel
)
EXPECTED = np.array(
    [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 2, 2, 1, 0, 0, 0, 0],
        [0, 2, 2, 0, 0, 0, 0, 0],
        [0, 0, 2, 0, 0, 0, 0, 0],
        [0, 6, 6, 6, 6, 6, 6, 6],
    ]
)
FILES = {
    "2008_000003": PERSON_ON_BICYCLE,
    "2008_000008": annotation((PERSON, [("lhand", mask((1, 2), (1, 2)))])),
    "2009_000001": annotation((2, [("fwheel", mask((0, 6), (0, 8)))])),  # no person
    "2009_000002": annotation((PERSON, []), (2, [])),  # a person without parts
    "2010_000001": annotation((PERSON, [("nose", mask((2, 3), (2, 3)))]), (2, [("saddle", mask((2, 3), (2, 3)))])),
    "2010_000002": annotation((2, []), (PERSON, [("ruleg", mask((0, 6), (7, 8)))])),
}
TRAIN, VAL = ["2010_000002", "2009_000001", "2008_000008"], ["2008_000003", "2009_000002", "2010_000001"]


@pytest.fixture
def sources(tmp_path):
    """(PASCAL-Part folder, VOC 2010 folder) in the published layout."""
    parts, voc = tmp_path / "Annotations_Part", tmp_path / "VOCdevkit"
    parts.mkdir()
    for name, encoded in FILES.items():
        (parts / f"{name}.mat").write_bytes(encoded)
        save_photograph(voc / f"VOC2010/JPEGImages/{name}.jpg", SHAPE)
    (voc / "VOC2010/ImageSets/Main").mkdir(parents=True)
    (voc / "VOC2010/ImageSets/Main/train.txt").write_text("\n".join(TRAIN) + "\n")
    (voc / "VOC2010/ImageSets/Main/val.txt").write_text("\n".join(VAL) + "\n")
    return parts, voc


def check_prepared(root):
    assert (root / "list/train_id.txt").read_text() == "2008_000008\n2010_000002\n"
    assert (root / "list/val.txt").read_text() == "/JPEGImages/2008_000003.jpg /SegmentationPart/2008_000003.png\n"
    assert len(list((root / "JPEGImages").iterdir())) == len(list((root / "SegmentationPart").iterdir())) == 3
    (item,) = read_list(root / "list/val.txt", root)
    label = Image.open(item.label)
    assert label.mode == "L"
    assert (np.asarray(label) == EXPECTED).all()
    assert len(read_classes(root / "classes.txt")) == 7


def test_tool_prepares_from_archives(sources, tmp_path):
    parts, voc = pack(sources[0], tmp_path / "trainval.tar.gz"), pack(sources[1], tmp_path / "VOCtrainval.tar")
    arguments = ("--parts", parts, "--voc", voc, "--out", tmp_path / "made", "--workers", "2")
    done = run_tool("prepare_person_part", *arguments)
    assert done.returncode == 2
    assert "train has 2 images, not 1716; val has 1 images, not 1817" in done.stderr
    assert not (tmp_path / "made/list").exists()
    done = run_tool("prepare_person_part", *arguments, "--allow-other-counts")
    assert done.returncode == 0, done.stderr
    assert "list/val.txt: 1 images" in done.stdout
    check_prepared(tmp_path / "made")


def test_folders_work_and_an_interrupted_run_resumes(sources, tmp_path):
    made = tmp_path / "made"
    prepare_person_part(*sources, made, check_counts=False)
    check_prepared(made)
    kept = (made / "SegmentationPart/2008_000008.png").stat().st_mtime_ns
    (made / "SegmentationPart/2008_000003.png").unlink()
    (made / "JPEGImages/2008_000003.jpg").unlink()
    prepare_person_part(*sources, made, check_counts=False)
    check_prepared(made)
    assert (made / "SegmentationPart/2008_000008.png").stat().st_mtime_ns == kept


def test_parts_are_painted_in_file_order_and_other_objects_parts_as_background():
    assert (part_labels(PERSON_ON_BICYCLE, "x") == EXPECTED).all()


def test_images_without_a_persons_part_have_no_labels():
    labelled = {name for name, encoded in FILES.items() if part_labels(encoded, name) is not None}
    assert labelled == {"2008_000003", "2008_000008", "2010_000002"}  # 2010_000001's nose is under a saddle


def test_the_24_parts_are_merged_to_six():
    assert np.bincount(list(LABEL_OF.values())).tolist() == [0, 11, 1, 2, 4, 2, 4]
    assert [LABEL_OF[name] for name in ("neck", "torso", "luarm", "rhand", "ruleg", "lfoot")] == [1, 2, 3, 4, 5, 6]


def test_the_published_lists_are_of_3533_images():
    assert [listed.count for listed in LISTS.values()] == [1716, 1817]


@pytest.mark.parametrize("encoded", [b"", b"MATLAB 5.0 MAT-file", PERSON_ON_BICYCLE[:-100]])
def test_damaged_annotations_are_named(sources, tmp_path, encoded):
    (sources[0] / "2010_000002.mat").write_bytes(encoded)
    with pytest.raises(InputError, match=r"2010_000002.mat is damaged or no annotation of PASCAL-Part: get http"):
        prepare_person_part(*sources, tmp_path / "made", check_counts=False)


def test_unknown_parts_and_masks_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="x has the unknown person part 'tail'"):
        part_labels(annotation((PERSON, [("tail", mask((0, 1), (0, 1)))])), "x")
    with pytest.raises(InputError, match="x has masks of different sizes"):
        part_labels(annotation((PERSON, [("head", mask((0, 1), (0, 1), (5, 8))), ("hair", mask((0, 1), (0, 1)))])), "x")


def test_labels_of_another_size_than_the_photograph_are_named(sources, tmp_path):
    save_photograph(sources[1] / "VOC2010/JPEGImages/2010_000002.jpg", (8, 6))
    with pytest.raises(InputError, match=r"2010_000002.jpg is 6x8 pixels, its label .*2010_000002.png 8x6"):
        prepare_person_part(*sources, tmp_path / "made", check_counts=False)


def test_voc_of_another_year_is_refused(sources, tmp_path):
    (sources[1] / "VOC2010").rename(sources[1] / "VOC2012")
    with pytest.raises(InputError, match=r"VOCdevkit holds no ImageSets/Main/train.txt.* belongs to VOC 2010"):
        prepare_person_part(*sources, tmp_path / "made", check_counts=False)
