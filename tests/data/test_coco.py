"""Preparation of COCO and of its subset from JSON with polygons, run lengths and crowd regions."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycocotools_mask

from a2s_repro.data.coco import LISTS, _decompressed, paint, prepare_coco
from a2s_repro.data.lists import read_classes, read_list
from a2s_repro.errors import InputError
from tests.data.sources import pack, save_photograph
from tests.processes import run_tool

# pycocotools 2.0.11 does not support numpy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SHAPE = (4, 6)
IMAGE = {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": SHAPE[0], "width": SHAPE[1]}


def box(left, top, right, bottom):
    """A polygon that covers whole pixels."""
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(category, segmentation, area=1.0, crowd=0, image=9):
    return {
        "id": category * 10, "image_id": image, "category_id": category,
        "segmentation": segmentation, "area": area, "iscrowd": crowd,
    }  # fmt: skip


def run_lengths(*counts):
    """Run lengths of a mask, column by column, background first."""
    return {"counts": list(counts), "size": list(SHAPE)}


PERSON = annotation(1, [box(0, 0, 4, 4)], area=16)
DOG = annotation(18, [box(2, 1, 5, 3), box(5, 3, 6, 4)], area=7)
CROWD = annotation(90, run_lengths(10, 1, 3, 10), area=11, crowd=1)

IN_FILE_ORDER = np.array(
    [
        [1, 1, 1, 1, 255, 255],
        [1, 1, 18, 18, 255, 255],
        [1, 1, 255, 255, 255, 255],
        [1, 1, 1, 255, 255, 255],
    ]
)
LARGE_FIRST = np.array(
    [
        [1, 1, 1, 1, 255, 255],
        [1, 1, 18, 18, 18, 255],
        [1, 1, 18, 18, 18, 255],
        [1, 1, 1, 255, 255, 18],
    ]
)


@pytest.fixture
def sources(tmp_path):
    """(annotations folder, train2014, val2014) in the published layout; ids are unsorted, as in the published files."""
    folder = tmp_path / "annotations"
    folder.mkdir()
    for split, numbers in (("train", (30, 9)), ("val", (73,))):
        images = [IMAGE | {"id": i, "file_name": f"COCO_{split}2014_{i:012}.jpg"} for i in numbers]
        annotations = [dict(value, image_id=numbers[-1]) for value in (PERSON, DOG, CROWD)]
        annotations.insert(1, annotation(44, [box(0, 0, 6, 4)], image=12345))  # image not in this file
        categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"instances_{split}2014.json").write_text(json.dumps(content))
        for image in images:
            save_photograph(tmp_path / f"{split}2014" / image["file_name"], SHAPE)
        save_photograph(tmp_path / f"{split}2014/COCO_{split}2014_000000999999.jpg", SHAPE)
    return folder, tmp_path / "train2014", tmp_path / "val2014"


def check_prepared(root, expected=IN_FILE_ORDER):
    assert (root / "list/train_small_id.txt").read_text() == (
        "COCO_train2014_000000000009\nCOCO_train2014_000000000030\n"
    )
    items = read_list(root / "list/train_small.txt", root) + read_list(root / "list/val_small.txt", root)
    labels = [Image.open(item.label) for item in items]
    assert all(label.mode == "L" for label in labels)
    assert (np.asarray(labels[0]) == expected).all()
    assert (np.asarray(labels[1]) == 0).all()
    assert (np.asarray(labels[2]) == expected).all()
    assert len(list((root / "JPEGImages").iterdir())) == 3


def test_tool_prepares_from_archives(sources, tmp_path):
    annotations, train, val = (pack(folder, tmp_path / f"{folder.name}.zip") for folder in sources)
    arguments = ("--annotations", annotations, "--train", train, "--val", val, "--out", tmp_path / "made")
    done = run_tool("prepare_coco", *arguments, "--workers", "2", "--allow-other-counts")
    assert done.returncode == 0, done.stderr
    assert "list/train_small.txt: 2 images" in done.stdout
    check_prepared(tmp_path / "made")
    done = run_tool("prepare_coco", *arguments, "--allow-other-counts", "--order", "area")
    assert done.returncode == 2
    assert "made was painted with order file, crowd ignore, not order area, crowd ignore" in done.stderr


def test_folders_work_and_an_interrupted_run_resumes(sources, tmp_path):
    made = tmp_path / "made"
    annotations, train, val = sources
    prepare_coco(annotations.parent, train, val.parent, made, check_counts=False)
    check_prepared(made)
    kept = (made / "SegmentationClass/COCO_val2014_000000000073.png").stat().st_mtime_ns
    (made / "SegmentationClass/COCO_train2014_000000000009.png").unlink()
    (made / "list/val_small.txt").unlink()
    prepare_coco(annotations, train, val, made, check_counts=False)
    check_prepared(made)
    assert (made / "SegmentationClass/COCO_val2014_000000000073.png").stat().st_mtime_ns == kept


def test_the_full_list_stands_beside_the_subset(sources, tmp_path, monkeypatch):
    """A subset of one image: the first by id, of two."""
    monkeypatch.setitem(LISTS, "train_small", LISTS["train_small"]._replace(count=1))
    for folder, full in (("subset", False), ("full", True)):
        prepare_coco(*sources, tmp_path / folder, full=full, check_counts=False)
    first, second = (f"COCO_train2014_{number:012}" for number in (9, 30))
    for folder in ("subset", "full"):
        assert (tmp_path / folder / "list/train_small_id.txt").read_text() == f"{first}\n"
    assert not (tmp_path / "subset/list/train.txt").exists()
    items = read_list(tmp_path / "full/list/train.txt", tmp_path / "full")
    assert [item.id for item in items] == [first, second]
    assert all(item.label.exists() for item in items)


def test_order_by_area_paints_large_objects_first(sources, tmp_path):
    prepare_coco(*sources, tmp_path / "made", order="area", check_counts=False)
    check_prepared(tmp_path / "made", LARGE_FIRST)


def test_crowd_regions_can_be_painted_like_objects():
    painted = paint(IMAGE, [PERSON, DOG, CROWD], crowd="paint")
    assert (painted == np.where(IN_FILE_ORDER == 255, 90, IN_FILE_ORDER)).all()


def test_compressed_run_lengths_are_read():
    diagonal = {"counts": "014000004", "size": list(SHAPE)}  # as pycocotools encodes it
    assert (paint(IMAGE, [annotation(3, diagonal)]) == 3 * np.eye(*SHAPE)).all()


def test_classes_are_named_by_category_id(sources, tmp_path):
    prepare_coco(*sources, tmp_path / "made", check_counts=False)
    classes = read_classes(tmp_path / "made/classes.txt")
    assert len(classes) == 91
    named = {value: name for value, name in enumerate(classes) if name != "void"}
    assert named == {0: "background", 1: "person", 18: "dog", 90: "toothbrush"}


def test_lists_that_differ_from_the_published_are_refused(sources, tmp_path):
    with pytest.raises(InputError, match=r"train_small has 2 images, not 10000; val_small has 1 images, not 1500"):
        prepare_coco(*sources, tmp_path / "made")
    with pytest.raises(InputError, match=r"lists of COCO 2014 \(train has 2 images, not 82783; train_small has 2"):
        prepare_coco(*sources, tmp_path / "full", full=True)
    assert [listed.count for listed in LISTS.values()] == [82783, 10000, 1500]


def test_swapped_image_folders_are_named(sources, tmp_path):
    annotations, train, val = sources
    with pytest.raises(InputError, match=r"val2014 holds no COCO_train2014_\*.jpg, .*train2014.zip"):
        prepare_coco(annotations, val, train, tmp_path / "made", check_counts=False)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", "[" * 100_000, '{"images": [{"id": 1}], "annotations": [], "categories": []}'),
        '{"images": [{"id": 1, "file_name": 5, "height": 4, "width": 6}], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [], "categories": [{"id": -1, "name": "person"}]}',
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a\\nb"}]}',
    ],
)
def test_bad_annotation_files_are_named(sources, tmp_path, content):
    (sources[0] / "instances_train2014.json").write_text(content)
    with pytest.raises(InputError, match=r"instances_train2014.json is damaged or not COCO's instance annotations"):
        prepare_coco(*sources, tmp_path / "made", check_counts=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (annotation(7, "[[1, 2]]"), r"Annotation 70 of COCO_train2014_000000000009.jpg is damaged"),
        (annotation(7, [[1, 2, 3, 4, 5]]), "Annotation 70 .* is damaged .a polygon is no list of pairs of numbers"),
        (annotation(7, [[None] * 6]), "a polygon is no list of pairs of numbers"),
        (annotation(7, [["0", 0, 4, 0, 4, 4]]), "a polygon is no list of pairs of numbers"),
        (annotation(7, [[float("nan"), 0, 4, 0, 4, 4]]), "a polygon has points far outside the image"),
        (annotation(7, [[float("inf"), 0, 4, 0, 4, 4]]), "a polygon has points far outside the image"),
        (annotation(7, [[1e12, 0, 4, 0, 4, 4]]), "a polygon has points far outside the image"),
        (annotation(7, [[0, 0, 6, 4] * 1000]), "its contour is longer than all pixels' sides"),
        (annotation(7, [box(0, 0, 1, 1)]) | {"category_id": "7"}, "Annotation 70 .* is damaged .'7' is no integer"),
        (annotation(7, [box(0, 0, 1, 1)], crowd="0"), "iscrowd is '0'"),
        ("annotation", "Annotation annotation of .* is damaged"),
        (annotation(7, run_lengths(10, 1000)), "Annotation 70 .* is damaged"),
        (annotation(7, {"counts": [42], "size": [6, 7]}), "Annotation 70 .* is of category 7 and 7x6 pixels"),
        (annotation(91, [box(0, 0, 1, 1)]), r"of category 91 .* categories are 1\.\.90"),
    ],
)
def test_annotations_that_do_not_fit_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        paint(IMAGE, [PERSON, wrong])


def test_polygons_without_an_area_are_left_out_and_counted(sources, tmp_path):
    """pycocotools takes a single polygon of two points for a box, and fails on an empty list."""
    lines = [annotation(7, [[1, 2, 3, 4]]), annotation(7, []), annotation(7, [[], box(0, 0, 1, 1)])]
    assert (paint(IMAGE, lines) == 7 * (np.indices(SHAPE).sum(0) == 0)).all()

    file = sources[0] / "instances_train2014.json"
    content = json.loads(file.read_text())
    content["annotations"] += [dict(line, image_id=9) for line in lines]
    file.write_text(json.dumps(content))
    made = prepare_coco(*sources, tmp_path / "made", check_counts=False)
    assert made.summary().splitlines()[-1] == "left out 3 polygons of fewer than three points"


def test_whole_numbers_may_be_written_as_floats():
    image = IMAGE | {"height": float(SHAPE[0]), "width": float(SHAPE[1])}
    person = PERSON | {"category_id": 1.0}
    assert (paint(image, [person, DOG, CROWD]) == IN_FILE_ORDER).all()


def test_a_size_that_is_no_number_is_named():
    with pytest.raises(InputError, match=r"COCO_train2014_000000000009.jpg has no size or number .'4' is no integer"):
        paint(IMAGE | {"height": "4"}, [PERSON])


@pytest.mark.parametrize("sides", [{"height": 2**31}, {"width": -6}, {"height": 0}])
def test_impossible_sizes_of_images_are_named(sides):
    with pytest.raises(InputError, match=r"COCO_train2014_000000000009.jpg has .* pixels, which is not possible"):
        paint(IMAGE | sides, [PERSON])


def test_unknown_choices_are_refused(sources, tmp_path):
    with pytest.raises(InputError, match="crowd 'drop' is not known; it is one of ignore, paint"):
        prepare_coco(*sources, tmp_path / "made", crowd="drop")


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": [10, 5], "size": list(SHAPE)},  # version 0.1 left the rest of the map to uninitialised memory
        {"counts": [], "size": list(SHAPE)},
        {"counts": [-4, 28], "size": list(SHAPE)},
        {"counts": [4.0, 20.0], "size": list(SHAPE)},
        {"counts": "0140000", "size": list(SHAPE)},
        {"counts": "01400000h", "size": list(SHAPE)},
        {"counts": "014000004", "size": [4, 60]},
        {"counts": "0 4000004", "size": list(SHAPE)},
    ],
)
def test_run_lengths_that_do_not_fill_the_image_are_refused(wrong):
    with pytest.raises(InputError, match=r"Annotation 70 .* is damaged .*run lengths"):
        paint(IMAGE, [annotation(7, wrong)])


def test_compressed_run_lengths_are_decompressed_as_pycocotools_compresses_them():
    generator = np.random.default_rng(0)
    for _ in range(20):
        coarse = generator.integers(0, 2, (7, 9), np.uint8)
        mask = np.asfortranarray(np.kron(coarse, np.ones((generator.integers(1, 40), 1), np.uint8)))
        runs = _decompressed(pycocotools_mask.encode(mask)["counts"])
        assert sum(runs) == mask.size and sum(runs[1::2]) == mask.sum()
