"""The look at all labels before a training: bad files by name, classes that cannot be learned."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from a2s_repro.data.lists import Item
from a2s_repro.data.survey import survey
from a2s_repro.errors import InputError

CLASSES = ["background", "thing", "stuff"]


def items(folder: Path, *labels: list[int], orientation: int = 1) -> list[Item]:
    """A pair for each row of label values, 2 pixels high."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    made = []
    for number, values in enumerate(labels):
        label = np.array([values, values], np.uint8)
        Image.fromarray(np.repeat(label[..., None], 3, 2)).save(folder / f"{number}.jpg", exif=exif)
        Image.fromarray(label).save(folder / f"{number}_label.png")
        made.append(Item(str(number), folder / f"{number}.jpg", folder / f"{number}_label.png"))
    return made


def test_pixels_are_counted_by_label(tmp_path: Path) -> None:
    counted = survey(items(tmp_path, [0, 0, 1], [1, 2, 255]), 3, threads=2)
    assert (counted.images, counted.pixels[[0, 1, 2, 255]].tolist(), counted.turned) == (2, [4, 4, 2, 2], 0)
    assert counted.remarks(CLASSES) == []


def test_absent_classes_are_named(tmp_path: Path) -> None:
    remarks = survey(items(tmp_path, [0, 1]), 3, threads=1).remarks(CLASSES)
    assert remarks == ["classes without a pixel in the training labels, which cannot be learned: stuff"]


def test_a_mask_of_0_and_255_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"only background occurs besides 255, which is ignored; .* save the object as 1"
    ):
        survey(items(tmp_path, [0, 255]), 2, threads=1).remarks(CLASSES[:2])
    with pytest.raises(InputError, match="no class occurs besides 255"):
        survey(items(tmp_path, [255, 255]), 2, threads=1).remarks(CLASSES[:2])


@pytest.mark.parametrize(
    ("values", "fault"), [([0, 1, 7], r"1_label.png holds values that are no labels \(7\)"), ([0], "1x2")]
)
def test_a_bad_label_is_named_wherever_it_is_in_the_list(tmp_path: Path, values: list[int], fault: str) -> None:
    pairs = items(tmp_path, [0, 1, 1], values)
    pairs[1] = pairs[1]._replace(image=pairs[0].image)
    with pytest.raises(InputError, match=fault):
        survey(pairs, 2, threads=2)


def test_images_with_an_orientation_are_counted(tmp_path: Path) -> None:
    (remark,) = survey(items(tmp_path, [0, 1], orientation=3), 2, threads=1).remarks(CLASSES[:2])
    assert remark.startswith("1 of the 1 images have an EXIF orientation; they are read as stored")
