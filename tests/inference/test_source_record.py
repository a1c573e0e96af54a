"""Which results `segment` keeps: those of the same file, as it was, cut at the same frame."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from a2s_repro.errors import InputError
from a2s_repro.inference.batch_job import Results, Summary, Work
from a2s_repro.inference.segmenter import Segmenter
from a2s_repro.inference.source_record import Entry, SourceRecord, Stamp
from a2s_repro.inference.sources import find_sources
from a2s_repro.models import DeepLabLargeFOV, Widths
from tests.inference.test_batch_job import read_video, write_picture, write_video

Run = Callable[..., Summary]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Segments inputs into tmp_path/out with a net whose labels depend on the colours."""
    net = DeepLabLargeFOV(3, widths=Widths().scaled(1 / 32)).eval()

    def segment(*inputs: Path, results: dict | None = None, **options) -> Summary:
        out = tmp_path / "out"
        return Work(Segmenter(net, pad_to=65), Results(out, **results or {}), **options).run(find_sources(inputs, out))

    return segment


def entry(name: str = "a", size: int = 1) -> Entry:
    return Entry(name, Stamp("/photos/a.jpg", size, 2), ("labels",))


def test_a_record_is_read_back_and_the_last_line_of_a_name_counts(tmp_path: Path) -> None:
    record = SourceRecord(tmp_path)
    for written in (entry(), entry("b"), entry(size=3)):
        record.add(written)
    again = SourceRecord(tmp_path)
    assert (again.get("a"), again.get("b"), again.get("c")) == (entry(size=3), entry("b"), None)


@pytest.mark.parametrize("torn", ['{"source": "/ph', "5\n", '{"name": 3, "source": "/x"}\n'])
def test_a_line_that_a_crash_cut_short_is_skipped(tmp_path: Path, torn: str) -> None:
    SourceRecord(tmp_path).add(entry())
    with open(tmp_path / "sources.jsonl", "a") as file:
        file.write(torn)
    SourceRecord(tmp_path).add(entry("b"))
    assert (SourceRecord(tmp_path).get("a"), SourceRecord(tmp_path).get("b")) == (entry(), entry("b"))


def test_a_file_of_the_same_name_from_another_folder_is_refused(run: Run, tmp_path: Path) -> None:
    """Version 0.1 took the first file's labels for the second's."""
    first, second = write_picture(tmp_path / "A/0001.jpg", 0), write_picture(tmp_path / "B/0001.jpg", 1)
    run(first)
    labels = (tmp_path / "out/labels/0001.png").read_bytes()
    with pytest.raises(
        InputError, match=r"out holds the result of .*A/0001.jpg under the name 0001, which .*B/0001.jpg"
    ):
        run(second)
    assert (tmp_path / "out/labels/0001.png").read_bytes() == labels


def test_a_replaced_image_is_segmented_again_and_no_old_file_stays(run: Run, tmp_path: Path) -> None:
    image = write_picture(tmp_path / "a.png", 0)
    run(image)
    shutil.copy(write_picture(tmp_path / "other.png", 1), image)
    outcome = run(image, results={"overlays": False})
    assert (outcome.done, outcome.skipped, outcome.replaced) == (1, 0, 1)
    assert not (tmp_path / "out/overlays/a.jpg").exists()  # it showed the earlier image
    assert run(image, results={"overlays": False}).skipped == 1
    assert run(image).done == 1


def test_results_without_a_record_are_made_again(run: Run, tmp_path: Path) -> None:
    image = write_picture(tmp_path / "a.png")
    run(image)
    (tmp_path / "out/sources.jsonl").unlink()
    outcome = run(image)
    assert (outcome.done, outcome.replaced) == (1, 1)


def test_a_moved_folder_keeps_its_results(run: Run, tmp_path: Path) -> None:
    write_picture(tmp_path / "photos/a.png")
    run(tmp_path / "photos")
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert run(tmp_path / "moved").skipped == 1


def test_a_video_cut_by_max_frames_is_not_the_whole_one(run: Run, tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", 5)
    run(video, results={"frames": True}, max_frames=4)
    assert run(video, max_frames=4).skipped == 1
    assert run(video).done == 1
    assert len(read_video(tmp_path / "out/overlays/v.mp4")) == 5
    assert run(video, results={"frames": True}, max_frames=2).done == 1
    assert sorted(path.name for path in (tmp_path / "out/labels/v").iterdir()) == ["000000.png", "000001.png"]


@pytest.mark.parametrize(("orientation", "size"), [(1, (60, 40)), (3, (60, 40)), (6, (40, 60)), (8, (40, 60))])
def test_photographs_are_segmented_upright_and_the_record_says_so(
    run: Run, tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.open(write_picture(tmp_path / "stored.png"))
    stored.save(tmp_path / "a.png", exif=exif)
    run(tmp_path / "a.png")
    assert Image.open(tmp_path / "out/labels/a.png").size == size
    assert SourceRecord(tmp_path / "out").get("a").orientation == orientation


def test_an_unchanged_file_is_kept_and_a_touched_one_is_not(run: Run, tmp_path: Path) -> None:
    image = write_picture(tmp_path / "a.png")
    run(image)
    assert run(image).skipped == 1
    os.utime(image, ns=(0, 0))
    assert run(image).done == 1
    assert np.asarray(Image.open(tmp_path / "out/labels/a.png")).shape == (40, 60)
