"""Segmenting files by the thousand: read ahead, run the net, write behind, go on where a run was interrupted."""

import contextlib
import dataclasses
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from a2s_repro.data.images import read_image
from a2s_repro.data.voc import write_label_png
from a2s_repro.errors import InputError
from a2s_repro.files import replacing
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.overlays import attention_panel, legend, overlay
from a2s_repro.inference.segmenter import Segmentation, Segmenter
from a2s_repro.inference.sources import Source
from a2s_repro.inference.video import FrameReader, video_file
from a2s_repro.runtime import distributed

Read = tuple[str, np.ndarray]
"""A picture's name, and its pixels (H, W, 3) uint8 BGR."""

Found = tuple[str, np.ndarray, Segmentation]
"""And what the net makes of it."""

T = TypeVar("T")
R = TypeVar("R")

LONGEST_JPEG = 65500
"""Pixels of a side, by libjpeg."""

SETTINGS = "segment.json"
"""In the folder of the results: what made them."""


@dataclasses.dataclass(frozen=True)
class Results:
    """What is written, and where. Of a source named NAME:

    labels/NAME.png (class indices in VOC's palette), overlays/NAME.jpg, attention/NAME.jpg and scores/NAME.npz (arrays
    `scores`, `weights` and `recalibration` of a Segmentation, as far as the net has them). Of a video overlays/NAME.mp4
    or, with `attention`, attention/NAME.mp4; with `frames` also the files of every frame, as NAME/000000 and so on.
    """

    folder: Path
    overlays: bool = True
    attention: bool = False
    scores: bool = False
    frames: bool = False

    def paths(self, name: str) -> dict[str, Path]:
        """The files of a picture, by kind."""
        kinds = {"labels": (True, "png"), "overlays": (self.overlays, "jpg")}
        kinds |= {"attention": (self.attention, "jpg"), "scores": (self.scores, "npz")}
        return {kind: self.folder / kind / f"{name}.{suffix}" for kind, (wanted, suffix) in kinds.items() if wanted}

    def video(self, name: str) -> Path:
        """The file of a video."""
        return self.folder / ("attention" if self.attention else "overlays") / f"{name}.mp4"

    def has(self, source: Source) -> bool:
        """Whether the source is done. A camera never is."""
        if source.is_image:
            return all(path.is_file() for path in self.paths(source.name).values())
        first = self.paths(f"{source.name}/{0:06}") if self.frames else {}
        return not source.is_camera and all(path.is_file() for path in (self.video(source.name), *first.values()))

    def write(self, name: str, image: np.ndarray, found: Segmentation, scales: Sequence[float]) -> None:
        """Writes the files of a picture, each of them whole or not at all."""
        paths = self.paths(name)
        write_label_png(paths["labels"], found.labels)
        if self.overlays:
            _write_picture(paths["overlays"], overlay(image, found.labels))
        if self.attention:
            _write_picture(paths["attention"], attention_panel(image, found, scales))
        if self.scores:
            maps = {"scores": found.scores, "weights": found.weights, "recalibration": found.recalibration}
            with replacing(paths["scores"]) as temporary:
                np.savez(temporary, **{key: values for key, values in maps.items() if values is not None})

    def claim(self, settings: dict[str, Any], classes: Sequence[str]) -> None:
        """Notes what the results are made by, and writes legend.png, the colours of the classes.

        Raises InputError if the folder holds results that were made by something else.
        """
        file, content = self.folder / SETTINGS, json.dumps(settings, indent=1) + "\n"
        if file.is_file() and file.read_text(encoding="utf-8") != content:
            raise InputError(f"{self.folder} holds results of another model or other settings: give another folder.")
        with replacing(file) as temporary:
            temporary.write_text(content, encoding="utf-8")
        if classes:
            _write_picture(self.folder / "legend.png", legend(classes))


@dataclasses.dataclass
class Outcome:
    """What became of the sources."""

    done: int = 0
    """Pictures and videos that were segmented."""
    skipped: int = 0
    """Those whose results were there."""
    problems: list[str] = dataclasses.field(default_factory=list)
    """A sentence for each that could not be segmented."""


@dataclasses.dataclass(frozen=True)
class Work:
    """How sources are segmented."""

    segmenter: Segmenter
    results: Results
    crf: CRF | None = None
    batch_size: int = 1
    """Pictures that go through the net together, where they have one padded size."""
    workers: int = 2
    """Threads that decode, and as many that refine, draw and write, while the net is busy with other pictures."""
    max_frames: int | None = None
    """Of a video, or from a camera."""

    def run(self, sources: Sequence[Source]) -> Outcome:
        """Segments the sources whose results are not there yet, pictures first, under a progress bar.

        A source that cannot be read does not stop the others. Of several processes each takes its share. Raises
        InputError if results cannot be written, or the net has no attention to show.
        """
        if self.results.attention and self.segmenter.model.merge != "attention":
            raise InputError("the net has no attention weights that could be drawn: leave out the attention panels.")
        share = sources[distributed.rank() :: distributed.world_size()]
        todo = [source for source in share if not self.results.has(source)]
        outcome = Outcome(skipped=len(share) - len(todo))
        try:
            self._pictures([source for source in todo if source.is_image], outcome)
            for source in todo:
                if not source.is_image:
                    self._video(source, outcome)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.results.folder} cannot be written to ({reason}): is the disk full?") from error
        return outcome

    def _pictures(self, sources: Sequence[Source], outcome: Outcome) -> None:
        def readable() -> Iterator[Read]:
            for source, reading in ahead(lambda source: read_image(source.path), sources, readers, 2 * self.workers):
                try:
                    yield source.name, reading.result()
                except InputError as error:
                    outcome.problems.append(str(error))
                    bar.update()

        with self._threads() as readers, self._threads() as finishers, _bar("images", "image", len(sources)) as bar:
            for (name, *_), finishing in ahead(self._write, self._segmented(readable()), finishers, self.workers):
                try:
                    finishing.result()
                    outcome.done += 1
                except InputError as error:
                    outcome.problems.append(f"{name}: {error}")
                bar.update()

    def _video(self, source: Source, outcome: Outcome) -> None:
        try:
            with contextlib.closing(FrameReader(source.path)) as reader:
                expected = min(filter(None, (reader.frames, self.max_frames)), default=None)
                with _bar(source.name, "frame", expected) as bar:
                    written = self._copy_video(source, reader, bar)
        except InputError as error:
            outcome.problems.append(str(error))
            return
        outcome.done += 1
        if expected and written < expected:
            outcome.problems.append(f"{source.path}: only {written} of its {expected} frames could be decoded.")

    def _copy_video(self, source: Source, reader: FrameReader, bar: tqdm) -> int:
        """Writes the video of the results, and returns how many frames it has. Ctrl-C ends that of a camera, kept."""

        def decoded() -> Iterator[Read]:
            numbers = itertools.count() if self.max_frames is None else range(self.max_frames)
            for number, reading in ahead(lambda _: reader.read(), numbers, decoder, 2 * self.workers):
                if (frame := reading.result()) is None:
                    return
                yield f"{source.name}/{number:06}", frame

        interrupted = False
        with (
            ThreadPoolExecutor(1) as decoder,
            self._threads() as finishers,
            video_file(self.results.video(source.name), reader.fps) as video,
        ):
            try:
                for _, finishing in ahead(self._draw, self._segmented(decoded()), finishers, self.workers):
                    video.write(finishing.result())
                    bar.update()
            except KeyboardInterrupt:
                if not source.is_camera:
                    raise
                interrupted = True
            if not video.frames:
                raise InputError(f"{source.path}: no frame of it can be decoded.")
        if interrupted:
            raise KeyboardInterrupt
        return video.frames

    def _segmented(self, pictures: Iterator[Read]) -> Iterator[Found]:
        scores = self.results.scores or self.crf is not None
        while batch := list(itertools.islice(pictures, self.batch_size)):
            found = self.segmenter([image for _, image in batch], scores=scores)
            yield from ((name, image, each) for (name, image), each in zip(batch, found, strict=True))

    def _write(self, picture: Found) -> None:
        name, image, found = picture
        self.results.write(name, image, self._refined(image, found), self.segmenter.model.scales)

    def _draw(self, picture: Found) -> np.ndarray:
        """The frame of a video; writes its own files, too, if they are wanted."""
        name, image, found = picture
        found, scales = self._refined(image, found), self.segmenter.model.scales
        if self.results.frames:
            self.results.write(name, image, found, scales)
        return attention_panel(image, found, scales) if self.results.attention else overlay(image, found.labels)

    def _refined(self, image: np.ndarray, found: Segmentation) -> Segmentation:
        return found if self.crf is None else found.refined(image, self.crf, threads=1)

    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers)


def ahead(
    function: Callable[[T], R], items: Iterable[T], pool: ThreadPoolExecutor, depth: int
) -> Iterator[tuple[T, "Future[R]"]]:
    """The items in their order, each with what `function` makes of it in the pool, begun `depth` items ahead."""
    begun: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        begun.append((item, pool.submit(function, item)))
        if len(begun) > depth:
            yield begun.popleft()
    while begun:
        yield begun.popleft()


def _bar(what: str, unit: str, total: int | None) -> tqdm:
    return tqdm(desc=what, unit=unit, total=total, disable=not distributed.is_main() or total == 0)


def _write_picture(path: Path, picture: np.ndarray) -> None:
    """In the format of the suffix."""
    if path.suffix == ".jpg" and max(picture.shape) > LONGEST_JPEG:
        raise InputError(f"an overlay cannot be longer than {LONGEST_JPEG} pixels: segment it without.")
    _, encoded = cv2.imencode(path.suffix, picture)
    with replacing(path) as temporary:
        temporary.write_bytes(encoded)
