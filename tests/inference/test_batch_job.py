"""Batch segmentation of folders and videos: sources, written files, resuming and problems."""

import contextlib
import json
import os
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from a2s_repro import load
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.voc import palette
from a2s_repro.errors import InputError
from a2s_repro.inference.batch_job import Results, Summary, Work
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.overlays import attention_panel, legend, overlay
from a2s_repro.inference.segmenter import Segmentation, Segmenter
from a2s_repro.inference.sources import Source, find_sources
from a2s_repro.inference.video import FrameReader, video_file
from a2s_repro.models import DeepLabLargeFOV, ShareNet, Widths
from tests.processes import Tool

CLASSES = ["background", "cat", "dog"]
Run = Callable[..., Summary]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = ShareNet(len(CLASSES), (1, 0.5), widths=Widths().scaled(1 / 32))
    for parameter in model.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter)
    path = tmp_path_factory.mktemp("model") / "final.pth"
    save_weights(path, model.state_dict(), {"model": model.config(), "pool5a": False, "classes": CLASSES})
    return path


@pytest.fixture
def run(model_file: Path, tmp_path: Path) -> Run:
    """Segments inputs into tmp_path/out."""

    def segment(*inputs: Path, results: dict | None = None, **options) -> Summary:
        segmenter = load(model_file)
        segmenter.pad_to = 65
        return Work(segmenter, Results(tmp_path / "out", **results or {}), **options).run(find_sources(inputs))

    return segment


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write_picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture(seed=seed))
    return path


def write_video(path: Path, frames: int) -> Path:
    with video_file(path, 10) as video:
        for seed in range(frames):
            video.write(picture(seed=seed))
    return path


def read_video(path: Path) -> list[np.ndarray]:
    frames = []
    with contextlib.closing(FrameReader(path)) as reader:
        while (frame := reader.read()) is not None:
            frames.append(frame)
    return frames


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def tool(*arguments: object, **how: Any) -> Tool:
    return Tool("segment", *arguments, "--pad-to", "65", "--device", "cpu", **how)


def test_inputs_are_files_folders_patterns_and_cameras(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/er/b.PNG", "deep/c.mp4", "deep/notes.txt", ".hidden/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = {source.name: (source.is_image, source.is_camera) for source in find_sources([tmp_path, 3])}
    assert names == {
        "a": (True, False),
        "deep/c": (False, False),
        "deep/er/b": (True, False),
        "camera_3": (False, True),
    }
    assert (
        find_sources([f"{tmp_path}/**/*.jpg"])
        == find_sources([tmp_path / "a.jpg"] * 2)
        == [Source("a", tmp_path / "a.jpg")]
    )


def test_results_in_a_folder_are_not_segmented_again(run: Run, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    run(tmp_path)
    assert len(find_sources([tmp_path])) > 1
    assert find_sources([tmp_path], tmp_path / "out") == [Source("a", tmp_path / "a.png")]


def test_empty_and_missing_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given, sentence in (
        (tmp_path / "empty", "empty holds no image or video"),
        (tmp_path / "none.jpg", r"none.jpg is no file, folder, pattern"),
        (f"{tmp_path}/*.jpg", r"\*.jpg is no file, folder, pattern"),
    ):
        with pytest.raises(InputError, match=sentence):
            find_sources([given])


def test_two_files_with_one_result_name_are_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_picture(tmp_path / folder / "a.png")
    with pytest.raises(InputError, match=r"x/a.png and .*y/a.png would be written under one name, a:"):
        find_sources([tmp_path / "x", tmp_path / "y"])


def test_files_of_a_folder_that_differ_in_their_suffix_keep_it(run: Run, tmp_path: Path) -> None:
    """Phones name a photograph and the film beside it alike."""
    write_picture(tmp_path / "in/IMG_1.JPG"), write_picture(tmp_path / "in/IMG_2.JPG")
    write_video(tmp_path / "in/IMG_1.MP4", 2)
    assert [source.name for source in find_sources([tmp_path / "in"])] == ["IMG_1.JPG", "IMG_1.MP4", "IMG_2"]
    outcome = run(tmp_path / "in")
    assert (outcome.done, outcome.problems) == (3, [])
    assert (tmp_path / "out/labels/IMG_1.JPG.png").is_file() and (tmp_path / "out/overlays/IMG_1.MP4.mp4").is_file()


@pytest.mark.parametrize("out", [".", "..", "results"])
def test_results_may_lie_beside_their_sources(tmp_path: Path, out: str) -> None:
    """The results alone are left out, be it their folder, its parent, or a folder in it."""
    folder, results = tmp_path / "photos", tmp_path / "photos" / out
    write_picture(folder / "a.png")
    for name in ("labels/a.png", "overlays/a.jpg", "attention/b/000000.jpg", "legend.png"):
        write_picture(results / name)
    assert [source.name for source in find_sources([folder], results)] == ["a"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    write_picture(tmp_path / "elsewhere/b.png"), write_picture(tmp_path / "in/a.png")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    assert [source.name for source in find_sources([tmp_path / "in"])] == ["a", "link/b"]


def test_every_kind_that_opencv_decodes_is_segmented_and_others_are_counted(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    kinds = {"gif": "GIF", "jfif": "JPEG", "avif": "AVIF", "jp2": "JPEG2000", "pgm": "PPM"}
    for suffix, form in kinds.items():
        Image.fromarray(picture()[:, :, 0]).convert("RGB").save(folder / f"{suffix}.{suffix}", form)
    for suffix in ("ts", "flv", "wmv"):
        writer = cv2.VideoWriter(str(folder / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (60, 40))
        writer.write(picture())
        writer.release()
        (folder / "v.avi").rename(folder / f"{suffix}.{suffix}")
    for name in ("a.heic", "b.HEIC", "notes.txt", "README"):
        (folder / name).touch()
    left_out: Counter[str] = Counter()
    assert len(find_sources([folder], left_out=left_out)) == 8
    assert left_out == {".heic": 2, ".txt": 1, "": 1}
    assert (run(folder).done, run(folder).problems) == (8, [])


def test_the_tool_segments_readable_files_and_reports_the_others(model_file: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_picture(folder / "a.png"), write_picture(folder / "sub" / "b.jpg"), write_video(folder / "c.mp4", 3)
    (folder / "text.jpg").write_text("no picture\n")
    encoded = (folder / "sub" / "b.jpg").read_bytes()
    (folder / "torn.jpg").write_bytes(encoded[: len(encoded) // 2])
    (folder / "broken.mp4").write_bytes((folder / "c.mp4").read_bytes()[:500])
    done = tool(
        folder, "--model", model_file, "--out", out, "--attention", "--save-scores", "--crf", "iterations=1"
    ).finish()
    assert done.returncode == 3, done.stderr
    assert done.stdout == f"{out}: 3 segmented, 0 already there, 3 with problems.\n"
    for name, fault in (
        ("text.jpg", "is not an image"),
        ("torn.jpg", "is truncated"),
        ("broken.mp4", "cannot be decoded"),
    ):
        assert f"{folder / name} {fault}" in done.stderr
    pictures = {
        f"{kind}{name}" for name in ("a", "sub/b") for kind in ("labels/", "overlays/", "attention/", "scores/")
    }
    suffixes = {"labels": ".png", "overlays": ".jpg", "attention": ".jpg", "scores": ".npz"}
    written = {name + suffixes[name.partition("/")[0]] for name in pictures}
    assert files(out) == written | {"overlays/c.mp4", "attention/c.mp4", "legend.png", "segment.json", "sources.jsonl"}

    segmenter = load(model_file)
    segmenter.pad_to = 65
    expected = segmenter(folder / "a.png", scores=True, crf=CRF(iterations=1))
    labels = Image.open(out / "labels/a.png")
    assert labels.mode == "P" and labels.getpalette() == palette().ravel().tolist()
    assert np.array_equal(np.asarray(labels), expected.labels)
    with np.load(out / "scores/a.npz") as arrays:
        assert set(arrays) == {"scores", "weights"}
        np.testing.assert_allclose(arrays["scores"], expected.scores, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(arrays["weights"], expected.weights, rtol=1e-5, atol=1e-5)
    assert len(read_video(out / "attention/c.mp4")) == len(read_video(out / "overlays/c.mp4")) == 3


def test_an_interrupted_run_resumes(run: Run, tmp_path: Path) -> None:
    for seed in range(4):
        write_picture(tmp_path / "in" / f"{seed}.png", seed)
    assert run(tmp_path / "in", batch_size=3).done == 4
    labels, removed = tmp_path / "out/labels/0.png", tmp_path / "out/overlays/2.jpg"
    written = labels.stat().st_mtime_ns
    removed.unlink()
    outcome = run(tmp_path / "in")
    assert (outcome.done, outcome.skipped, outcome.problems) == (1, 3, [])
    assert removed.is_file() and labels.stat().st_mtime_ns == written


def test_settings_that_are_no_text_are_those_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "segment.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(InputError, match="holds results of another model or other settings"):
        Results(tmp_path).claim({"crop": 513}, CLASSES)


def test_results_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.claim({"crop": 513}, CLASSES)
    results.claim({"crop": 513}, CLASSES)
    assert json.loads((tmp_path / "segment.json").read_text()) == {"crop": 513}
    with pytest.raises(InputError, match="holds results of another model or other settings"):
        results.claim({"crop": 65}, CLASSES)


def test_results_of_version_0_1_go_on_under_todays_name_of_the_precision(tmp_path: Path) -> None:
    (tmp_path / "segment.json").write_text(json.dumps({"precision": "caffe"}, indent=1) + "\n")
    Results(tmp_path).claim({"precision": "fp32"}, CLASSES)
    assert json.loads((tmp_path / "segment.json").read_text()) == {"precision": "fp32"}


def test_results_that_cannot_be_written_end_the_run(run: Run, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").touch()
    with pytest.raises(InputError, match=r"out cannot be written \(File exists\): give another path"):
        run(tmp_path / "a.png")


def test_result_video_has_every_frame(run: Run, tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", 5)
    outcome = run(video, results={"frames": True}, batch_size=2)
    assert (outcome.done, outcome.problems) == (1, [])
    frames, drawn = read_video(video), read_video(tmp_path / "out/overlays/v.mp4")
    assert len(drawn) == len(frames) == 5
    for number, (frame, seen) in enumerate(zip(frames, drawn, strict=True)):
        labels = np.asarray(Image.open(tmp_path / f"out/labels/v/{number:06}.png"))
        # The codec loses colour at the edges of the labels.
        assert np.abs(seen.astype(int) - overlay(frame, labels)).mean() < 8
    assert run(video).skipped == 1


def test_a_truncated_video_is_segmented_partly_and_reported(run: Run, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole.avi", tmp_path / "torn.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter_fourcc(*"MJPG"), 10, (60, 40))
    for seed in range(10):
        writer.write(picture(seed=seed))
    writer.release()
    encoded = whole.read_bytes()
    torn.write_bytes(encoded[: len(encoded) // 2])
    outcome = run(torn)
    frames = len(read_video(tmp_path / "out/overlays/torn.mp4"))
    assert 0 < frames < 10
    assert outcome.problems == [f"{torn}: only {frames} of its 10 frames could be decoded."]


def write_film(path: Path, milliseconds: list[int], duration: int) -> Path:
    """A Matroska file of frames at these times, whose header has a rate of 30 frames a second and the duration."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (60, 40))
    for number in range(len(milliseconds)):
        writer.write(np.full((40, 60, 3), 25 * number, np.uint8))
    writer.release()
    content, at = bytearray(path.read_bytes()), 0
    for number, time_of in enumerate(milliseconds):  # a block of track 1: its time, flags, and a JPEG
        block = b"\x81" + struct.pack(">h", round(number * 1000 / 30)) + b"\x80\xff\xd8"
        at = content.index(block, at)
        content[at + 1 : at + 3] = struct.pack(">h", time_of)
        at += len(block)
    field = content.index(b"\x44\x89\x88") + 3
    content[field : field + 8] = struct.pack(">d", duration)
    path.write_bytes(content)
    return path


def test_a_video_of_variable_frame_rate_keeps_its_time(run: Run, tmp_path: Path) -> None:
    """Its ten frames of a second are all segmented, and last a second at the rate of the header."""
    outcome = run(write_film(tmp_path / "v.mkv", [0, 100, 200, 300, 400, 500, 600, 700, 800, 900], 1000))
    assert (outcome.done, outcome.problems) == (1, [])
    drawn = read_video(tmp_path / "out/overlays/v.mp4")
    with contextlib.closing(FrameReader(tmp_path / "out/overlays/v.mp4")) as reader:
        assert reader.fps == 30 and len(drawn) == 28  # the last frame is shown once: its duration is not known
    changes = [n for n in range(1, 28) if np.abs(drawn[n].astype(int) - drawn[n - 1]).mean() > 3]
    assert changes == [3, 6, 9, 12, 15, 18, 21, 24, 27]


def test_a_video_of_variable_frame_rate_that_ends_early_is_reported(run: Run, tmp_path: Path) -> None:
    film = write_film(tmp_path / "v.mkv", [0, 100, 200], 1000)
    assert run(film).problems == [f"{film}: only 3 of its 30 frames could be decoded."]


@pytest.mark.parametrize(("fps", "written"), [(120.003, 120), (196.263, 196.26), (1000 / 3, 333.33), (29.97, 29.97)])
def test_any_frame_rate_can_be_written(run: Run, tmp_path: Path, fps: float, written: float) -> None:
    """MPEG-4 has no rates whose fraction has a numerator above 65535."""
    with video_file(tmp_path / "v.mp4", fps) as video:
        video.write(picture())
    with contextlib.closing(FrameReader(tmp_path / "v.mp4")) as reader:
        assert reader.fps == written and abs(written / fps - 1) < 3e-5


@pytest.mark.parametrize("name", [b"l\xe9.avi", b"12:30:45.avi", b"%03d.avi", "Größe.avi".encode()])
def test_a_video_may_have_any_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    """OpenCV crashes on names that are not UTF-8, and FFmpeg takes what precedes a colon for a protocol."""
    monkeypatch.chdir(tmp_path)
    video = write_video(tmp_path / "v.mp4", 2).rename(os.fsdecode(name))
    assert len(read_video(video)) == 2
    outcome = run(video)
    assert (outcome.done, outcome.problems) == (1, [])
    assert len(read_video(tmp_path / "out/overlays" / f"{video.stem}.mp4")) == 2


def test_whatever_goes_wrong_with_a_file_the_others_are_segmented(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_video(tmp_path / "in" / name, 2)
    read = FrameReader.read_at

    def failing(reader: FrameReader) -> tuple | None:
        if "b.mp4" in reader.path:
            raise cv2.error("a decoder failed")
        return read(reader)

    monkeypatch.setattr(FrameReader, "read_at", failing)
    outcome = run(tmp_path / "in")
    assert (outcome.done, outcome.problems) == (2, [f"{tmp_path / 'in/b.mp4'}: a decoder failed."])


def test_a_name_too_long_for_a_result_is_reported(run: Run, tmp_path: Path) -> None:
    write_picture(tmp_path / "in/a.png")
    name = 251 * "x"
    (tmp_path / "in" / f"{name}.ts").write_bytes(write_video(tmp_path / "v.mp4", 2).read_bytes())
    outcome = run(tmp_path / "in")
    assert outcome.done + len(outcome.problems) == 2
    assert (tmp_path / "out/labels/a.png").is_file()


def test_max_frames_limits_a_video(run: Run, tmp_path: Path) -> None:
    outcome = run(write_video(tmp_path / "v.mp4", 5), max_frames=2)
    assert (outcome.done, outcome.problems) == (1, [])
    assert len(read_video(tmp_path / "out/overlays/v.mp4")) == 2


def test_a_picture_too_long_for_an_overlay_is_reported(run: Run, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "long.png"), np.zeros((1, 65501, 3), np.uint8))
    assert run(tmp_path / "long.png").problems == [
        "long: an overlay cannot be longer than 65500 pixels: leave out the overlays."
    ]
    assert run(tmp_path / "long.png", results={"overlays": False}).problems == []


def test_a_video_with_odd_sides_is_padded_to_even_ones(tmp_path: Path) -> None:
    with video_file(tmp_path / "v.mp4", 12.5) as video:
        video.write(picture(33, 51))
    assert read_video(tmp_path / "v.mp4")[0].shape == (34, 52, 3)
    assert FrameReader(tmp_path / "v.mp4").fps == 12.5


def test_a_video_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="frames are missing"), video_file(tmp_path / "v.mp4", 10) as video:
        video.write(picture())
        video.frames += 1
    assert files(tmp_path) == set()


def test_a_net_without_attention_has_no_panels(tmp_path: Path) -> None:
    segmenter = Segmenter(DeepLabLargeFOV(3, widths=Widths().scaled(1 / 32)), pad_to=65)
    work = Work(segmenter, Results(tmp_path / "out", attention=True))
    with pytest.raises(InputError, match="no attention weights to draw"):
        work.run([Source("a", write_picture(tmp_path / "a.png"))])


def test_an_attention_panel_shows_image_labels_and_weights() -> None:
    image, labels = picture(320, 160), np.ones((320, 160), np.uint8)
    weights = np.stack([np.ones((320, 160), np.float32), np.zeros((320, 160), np.float32)])
    panel = attention_panel(image, Segmentation(labels, weights), (1, 0.5))
    shown = np.split(panel, 4, axis=1)
    viridis = cv2.applyColorMap(np.array([[0, 255]], np.uint8), cv2.COLORMAP_VIRIDIS)[0]
    for part, expected in zip(shown, (image, overlay(image, labels), viridis[1], viridis[0]), strict=True):
        assert (part[24:344, 2:162] == expected).all()
        assert part[:24].min() < 128  # a title
    assert (legend(CLASSES)[24 + 12, 20] == palette()[1, ::-1]).all()


def test_ctrl_c_leaves_whole_files_and_exit_status_130(model_file: Path, tmp_path: Path) -> None:
    for seed in range(300):
        write_picture(tmp_path / "in" / f"{seed:03}.png", seed)
    out = tmp_path / "out"
    running = tool(tmp_path / "in", "--model", model_file, "--out", out)
    deadline = time.monotonic() + 60
    while not (out / "labels/003.png").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    done = running.finish()
    assert done.returncode == 130 and "Traceback" not in done.stderr
    recorded = len((out / "sources.jsonl").read_text().splitlines())
    assert done.stderr.splitlines()[-1] == (
        f"interrupted: {recorded} of 300 images and videos are done and lie in {out}; "
        "run the command again to go on with the others."
    )
    labels = sorted(out.glob("labels/*"))
    assert 3 < len(labels) < 300
    for path in labels:
        Image.open(path).load()
    assert not [name for name in files(out) if "/." in name]


def test_ctrl_c_ends_the_video_of_a_camera(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A film stands in for the camera."""
    film = write_video(tmp_path / "film.mp4", 9)
    monkeypatch.setattr("a2s_repro.inference.batch_job.FrameReader", lambda camera: FrameReader(film))

    class Interrupted(Work):
        def _draw(self, picture):
            if picture[0].endswith("000003"):
                raise KeyboardInterrupt
            return super()._draw(picture)

    segmenter = load(model_file)
    segmenter.pad_to = 65
    with pytest.raises(KeyboardInterrupt, match=r"^1 of 1 images and videos are done and lie in .*/out\.$"):
        Interrupted(segmenter, Results(tmp_path / "out")).run(find_sources([0]))
    assert len(read_video(tmp_path / "out/overlays/camera_0.mp4")) == 3


def test_two_processes_share_a_folder(model_file: Path, tmp_path: Path) -> None:
    for seed in range(5):
        write_picture(tmp_path / "in" / f"{seed}.png", seed)
    (tmp_path / "in" / "text.jpg").write_text("no picture\n")
    done = tool(tmp_path / "in", "--model", model_file, "--out", tmp_path / "out", ranks=2).finish()
    assert done.returncode == 3  # because text.jpg is not an image
    assert done.stdout == f"{tmp_path / 'out'}: 5 segmented, 0 already there, 1 with problems.\n"
    assert done.stderr.count("text.jpg is not an image") == 1
    assert len(files(tmp_path / "out" / "labels")) == 5
