"""The demo set: layout, determinism, and difficulty."""


import numpy as np
import pytest

from a2s_repro.data.demo import CLASSES, draw_scene, make_demo_data
from a2s_repro.data.images import read_pair
from a2s_repro.data.lists import read_classes, read_list
from a2s_repro.errors import InputError
from tests.processes import run_tool


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "shapes"
    done = run_tool("make_demo_data", root, "--num-train", "6", "--num-val", "3")
    assert done.returncode == 0, done.stderr
    return root


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_layout_is_vocs_and_every_pair_reads(demo):
    items = {split: read_list(demo / f"ImageSets/Segmentation/{split}.txt", demo) for split in ("train", "val")}
    assert [len(items[split]) for split in ("train", "val")] == [6, 3]
    assert read_classes(demo / "classes.txt") == list(CLASSES)
    for item in items["train"] + items["val"]:
        image, labels = read_pair(item, len(CLASSES))
        assert 160 <= image.shape[0] <= 200 <= image.shape[1] <= 240
        assert (labels == 255).any()
        assert (labels == 0).any()


def test_same_seed_same_bytes_other_seed_other_pictures(demo, tmp_path):
    assert files(make_demo_data(tmp_path / "again", num_train=6, num_val=3)) == files(demo)
    other = make_demo_data(tmp_path / "other", num_train=1, num_val=1, seed=1)
    assert (other / "JPEGImages/train_0000.jpg").read_bytes() != (demo / "JPEGImages/train_0000.jpg").read_bytes()
    assert (demo / "JPEGImages/val_0000.jpg").read_bytes() != (demo / "JPEGImages/train_0000.jpg").read_bytes()


def test_every_class_occurs_and_colour_alone_does_not_classify():
    """The most frequent label of a colour bin (8 x 8 x 8) predicts 30 to 80 % of object pixels in other pictures."""

    def bins_and_labels(numbers):
        scenes = [draw_scene(np.random.default_rng((7, number))) for number in numbers]
        pixels = np.concatenate([picture[labels != 255] for picture, labels in scenes])
        return (pixels // 32) @ np.array([64, 8, 1]), np.concatenate([labels[labels != 255] for _, labels in scenes])

    bins, labels = bins_and_labels(range(12))
    assert (np.bincount(labels, minlength=len(CLASSES)) > 0.01 * labels.size).all()
    counts = np.zeros((512, len(CLASSES)))
    np.add.at(counts, (bins, labels), 1)
    bins, labels = bins_and_labels(range(12, 24))
    accuracy = (counts.argmax(1)[bins] == labels)[labels > 0].mean()
    assert 0.3 < accuracy < 0.8


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least 1 picture"):
        make_demo_data(tmp_path, num_val=0)


def test_bench_loader_reports_a_rate(demo):
    words = ["--data-root", demo, "--list", demo / "ImageSets/Segmentation/train.txt", "--crop", "65"]
    words += ["--num-classes", len(CLASSES), "--batch-size", "2", "--batches", "2", "--repeats", "3", "--workers", "1"]
    done = run_tool("dev/bench_loader", *words)
    assert done.returncode == 0, done.stderr
    rate, unit = done.stdout.split()[:2]
    assert float(rate) > 0
    assert unit == "samples/s"
