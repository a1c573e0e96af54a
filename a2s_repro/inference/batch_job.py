"""Batch segmentation of files: threads decode ahead and write results; an interrupted job resumes."""

import contextlib
import dataclasses
import errno
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from a2s_repro.data.images import read_photograph
from a2s_repro.data.voc import write_label_png
from a2s_repro.errors import InputError, first_line, not_written
from a2s_repro.files import replacing
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.overlays import attention_panel, legend, overlay
from a2s_repro.inference.segmenter import Segmentation, Segmenter, in_batches
from a2s_repro.inference.source_record import Entry, SourceRecord, Stamp
from a2s_repro.inference.sources import Source
from a2s_repro.inference.video import FrameReader, video_file
from a2s_repro.models.base import WEIGHING
from a2s_repro.runtime import distributed
from a2s_repro.runtime.pools import ahead, threads
from a2s_repro.runtime.progress import Progress

Read = tuple[str, np.ndarray]
"""Name and pixels, (H, W, 3) uint8 BGR, of a picture."""

Segmented = tuple[str, np.ndarray, Segmentation]
"""Name, pixels and segmentation of a picture."""

LONGEST_JPEG = 65500
"""Longest side of a JPEG in pixels (libjpeg's limit)."""

SETTINGS = "segment.json"
"""File in the folder of results that records the settings that made them."""


@dataclasses.dataclass(frozen=True)
class Results:
    """Files to write for each source.

    For a picture NAME: labels/NAME.png (class indices in VOC's palette), overlays/NAME.jpg, attention/NAME.jpg and
    scores/NAME.npz (arrays `scores`, `weights` and `recalibration` of a Segmentation, if the net has them). For a video
    NAME: overlays/NAME.mp4 and, with `attention`, attention/NAME.mp4 (alone without `overlays`); with `frames` also the
    files of every frame, as NAME/000000 and so on.
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

    def videos(self, name: str) -> dict[str, Path]:
        """The films of a video, by kind."""
        kinds = {"overlays": self.overlays or not self.attention, "attention": self.attention}
        return {kind: self.folder / kind / f"{name}.mp4" for kind, wanted in kinds.items() if wanted}

    def kinds(self, source: Source) -> tuple[str, ...]:
        """The kinds of the source's files; "video/overlays" is a film, "labels" are files of its frames."""
        if source.is_image:
            return tuple(self.paths(source.name))
        films = (f"video/{kind}" for kind in self.videos(source.name))
        return *films, *(self.paths(source.name) if self.frames else ())

    def has(self, source: Source) -> bool:
        """Whether all files of the source exist; always False for a camera."""
        if source.is_image:
            return all(path.is_file() for path in self.paths(source.name).values())
        first = self.paths(f"{source.name}/{0:06}") if self.frames else {}
        files = (*self.videos(source.name).values(), *first.values())
        return not source.is_camera and all(path.is_file() for path in files)

    def remove(self, entry: Entry) -> None:
        """Removes the files of an earlier source's result."""
        for kind in entry.kinds:
            folder = self.folder / kind.removeprefix("video/")
            if kind.startswith("video/"):
                (folder / f"{entry.name}.mp4").unlink(missing_ok=True)
                continue
            suffix = dataclasses.replace(self, overlays=True, attention=True, scores=True).paths("x")[kind].suffix
            (folder / f"{entry.name}{suffix}").unlink(missing_ok=True)
            for frame in (folder / entry.name).glob(f"{'[0-9]' * 6}{suffix}"):
                frame.unlink()

    def write(self, name: str, image: np.ndarray, segmentation: Segmentation, scales: Sequence[float]) -> None:
        """Writes the files of a picture, each atomically."""
        paths = self.paths(name)
        write_label_png(paths["labels"], segmentation.labels)
        if self.overlays:
            _write_picture(paths["overlays"], overlay(image, segmentation.labels))
        if self.attention:
            _write_picture(paths["attention"], attention_panel(image, segmentation, scales))
        if self.scores:
            maps = {field: getattr(segmentation, field) for field in ("scores", "weights", "recalibration")}
            with replacing(paths["scores"]) as temporary:
                np.savez(temporary, **{key: values for key, values in maps.items() if values is not None})

    def claim(self, settings: dict[str, Any], classes: Sequence[str]) -> None:
        """Records the settings of the results in SETTINGS, and writes legend.png with the colours of the classes.

        Raises InputError if the folder holds results of another model or other settings.
        """
        file, content = self.folder / SETTINGS, json.dumps(settings, indent=1) + "\n"
        if file.is_file() and _of_today(file.read_text(encoding="utf-8", errors="replace")) != content:
            raise InputError(f"{self.folder} holds results of another model or other settings: give another folder.")
        with replacing(file) as temporary:
            temporary.write_text(content, encoding="utf-8")
        if classes:
            _write_picture(self.folder / "legend.png", legend(classes))


@dataclasses.dataclass
class Summary:
    """Counts of processed sources, and problems."""

    done: int = 0
    """Number of pictures and videos segmented."""
    skipped: int = 0
    """Number of sources whose results already existed, made of the same file."""
    replaced: int = 0
    """Number of sources that were segmented again, because their results were of another file or of unknown origin."""
    problems: list[str] = dataclasses.field(default_factory=list)
    """One sentence for each source that could not be segmented."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A batch job: segmenter, results and settings."""

    segmenter: Segmenter
    results: Results
    crf: CRF | None = None
    batch_size: int = 1
    """Maximum number of pictures of the same padded size per forward pass."""
    workers: int = 2
    """Number of threads that decode, and of threads that refine, draw and write, while the net runs."""
    max_frames: int | None = None
    """Maximum number of frames from a video or a camera."""

    def run(self, sources: Sequence[Source]) -> Summary:
        """Segments the sources without results, pictures first; shows a progress bar.

        A result counts if `source_record.RECORD` names the same file, with the same size, time of change and limit of
        frames; others are made again. A source that cannot be read is recorded as a problem, and the job continues.
        Several processes share the sources. Raises InputError if results cannot be written, if a result of that name
        was made of another existing file, or if attention panels are requested from a net without attention. Ctrl-C is
        raised again with a sentence on the sources that are done.
        """
        if self.results.attention and self.segmenter.model.merge not in WEIGHING:
            raise InputError("the net has no attention weights to draw: leave out the attention panels.")
        record = SourceRecord(self.results.folder)
        for source in sources:
            self._check_name(source, record)
        share = sources[distributed.rank() :: distributed.world_size()]
        todo = [source for source in share if not self._is_done(source, record)]
        outcome = Summary(skipped=len(share) - len(todo))
        try:
            for source in todo:
                outcome.replaced += self._clear(source, record)
            self._pictures([source for source in todo if source.is_image], record, outcome)
            for source in todo:
                if not source.is_image:
                    self._video(source, record, outcome)
        except OSError as error:
            raise not_written(self.results.folder, error) from error
        except KeyboardInterrupt:
            done = outcome.skipped + outcome.done
            process = f" of process {distributed.rank()}" if distributed.world_size() > 1 else ""
            remedy = "; run the command again to go on with the others" if done < len(share) else ""
            raise KeyboardInterrupt(
                f"{done} of {len(share)} images and videos{process} are done and lie in {self.results.folder}{remedy}."
            ) from None
        return outcome

    def _check_name(self, source: Source, record: SourceRecord) -> None:
        entry = record.get(source.name)
        if entry is None or source.is_camera:
            return
        other = Path(entry.stamp.source)
        if other.exists() and not (source.path.exists() and other.samefile(source.path)):
            raise InputError(
                f"{self.results.folder} holds the result of {other} under the name {source.name}, which {source.path} "
                "would overwrite: give another folder."
            )

    def _is_done(self, source: Source, record: SourceRecord) -> bool:
        entry = record.get(source.name)
        if source.is_camera or entry is None or not self.results.has(source):
            return False
        if not self._is_of(source, entry):
            return False
        return set(self.results.kinds(source)) <= set(entry.kinds)

    def _is_of(self, source: Source, entry: Entry) -> bool:
        """Whether an entry is of the source as it is now, cut at the same frame."""
        try:
            stamp = Stamp.of(source.path)
        except OSError:  # its reader names it
            return False
        return stamp.is_of(entry.stamp) and (source.is_image or entry.limit == self.max_frames)

    def _clear(self, source: Source, record: SourceRecord) -> bool:
        """Removes results that are not of the source, so that none of them stay beside the new ones."""
        entry = record.get(source.name)
        if entry is None or source.is_camera:
            return entry is None and self.results.has(source)
        if self._is_of(source, entry):
            return False
        self.results.remove(entry)
        return True

    def _entry(self, source: Source, stamp: Stamp, orientation: int = 1) -> Entry:
        limit = None if source.is_image else self.max_frames
        return Entry(source.name, stamp, self.results.kinds(source), limit, orientation)

    def _pictures(self, sources: Sequence[Source], record: SourceRecord, outcome: Summary) -> None:
        entries: dict[str, Entry] = {}

        def read(source: Source) -> tuple[np.ndarray, Entry]:
            stamp = _stamp(source)
            pixels, orientation = read_photograph(source.path)
            return pixels, self._entry(source, stamp, orientation)

        def readable() -> Iterator[Read]:
            for source, reading in ahead(read, sources, readers, 2 * self.workers):
                try:
                    pixels, entries[source.name] = reading.result()
                    yield source.name, pixels
                except Exception as error:  # of any kind, one file's error is no reason to leave out the others
                    outcome.problems.append(_problem(source, error))
                    bar.update()

        with (
            threads(self.workers) as readers,
            threads(self.workers) as finishers,
            _bar("images", "image", len(sources)) as bar,
        ):
            for (name, *_), writing in ahead(self._write, self._segmented(readable()), finishers, self.workers):
                try:
                    writing.result()
                    record.add(entries.pop(name))
                    outcome.done += 1
                except (InputError, OSError, cv2.error) as error:
                    if _is_of_folder(error):
                        raise
                    outcome.problems.append(f"{name}: {error}")
                bar.update()

    def _video(self, source: Source, record: SourceRecord, outcome: Summary) -> None:
        try:
            stamp = None if source.is_camera else _stamp(source)
            with contextlib.closing(FrameReader(source.path)) as reader:
                expected = min(filter(None, (reader.frames, self.max_frames)), default=None)
                with _bar(source.name, "frame", expected) as bar:
                    written, seconds, interrupted = self._copy_video(source, reader, bar)
                # Where frames have their own times, the header's number of frames is a guess from the duration.
                if expected and seconds and reader.duration and written > 1:
                    step = seconds / (written - 1)
                    expected = written if seconds + 1.5 * step > reader.duration else expected
        except Exception as error:  # as for pictures
            if _is_of_folder(error):
                raise
            outcome.problems.append(_problem(source, error))
            return
        complete = not expected or written >= expected
        if stamp is not None:
            entry = self._entry(source, stamp)
            record.add(entry if complete else dataclasses.replace(entry, kinds=()))  # made and reported again
        outcome.done += 1
        if interrupted:
            raise KeyboardInterrupt
        if not complete:
            outcome.problems.append(f"{source.path}: only {written} of its {expected} frames could be decoded.")

    def _copy_video(self, source: Source, reader: FrameReader, bar: Progress) -> tuple[int, float, bool]:
        """Writes the films; returns the number of frames read, the time of the last one in seconds, and whether it
        was ended by Ctrl-C, as a camera's video can be.
        """
        times: dict[str, float | None] = {}

        def decoded() -> Iterator[Read]:
            numbers = itertools.count() if self.max_frames is None else range(self.max_frames)
            for number, reading in ahead(lambda _: reader.read_at(), numbers, decoder, 2 * self.workers):
                if (read := reading.result()) is None:
                    return
                name = f"{source.name}/{number:06}"
                frame, times[name] = read
                yield name, frame

        written, seconds, interrupted = 0, 0.0, False
        with (
            threads(1) as decoder,
            threads(self.workers) as finishers,
            contextlib.ExitStack() as open_films,
        ):
            paths = self.results.videos(source.name)
            films = {kind: open_films.enter_context(video_file(path, reader.fps)) for kind, path in paths.items()}
            try:
                for (name, *_), drawing in ahead(self._draw, self._segmented(decoded()), finishers, self.workers):
                    at = times.pop(name)
                    for kind, drawn in drawing.result().items():
                        films[kind].write(drawn, at)
                    written, seconds = written + 1, at or 0.0
                    bar.update()
            except KeyboardInterrupt:
                if not source.is_camera:
                    raise
                interrupted = True
            if not written:
                raise InputError(f"{source.path}: no frame can be decoded; replace the file.")
        return written, seconds, interrupted

    def _segmented(self, pictures: Iterator[Read]) -> Iterator[Segmented]:
        wanted = {"scores": self.results.scores or self.crf is not None}
        wanted["weights"] = self.results.scores or self.results.attention
        for (name, image), result in in_batches(self.segmenter, pictures, self.batch_size, **wanted):
            yield name, image, result

    def _write(self, picture: Segmented) -> None:
        name, image, segmentation = picture
        self.results.write(name, image, self._refined(image, segmentation), self.segmenter.model.scales)

    def _draw(self, picture: Segmented) -> dict[str, np.ndarray]:
        """Draws a frame of the films, by kind; with `frames` also writes the frame's own files."""
        name, image, segmentation = picture
        segmentation, scales = self._refined(image, segmentation), self.segmenter.model.scales
        if self.results.frames:
            self.results.write(name, image, segmentation, scales)
        kinds = self.results.videos(name)
        drawn = {"overlays": overlay(image, segmentation.labels)} if "overlays" in kinds else {}
        return drawn | ({"attention": attention_panel(image, segmentation, scales)} if "attention" in kinds else {})

    def _refined(self, image: np.ndarray, segmentation: Segmentation) -> Segmentation:
        return segmentation if self.crf is None else segmentation.refined(image, self.crf, threads=1)


def _stamp(source: Source) -> Stamp:
    try:
        return Stamp.of(source.path)
    except OSError as error:
        raise InputError(f"{source.path} cannot be read: {error.strerror}.") from None


def _of_today(settings: str) -> str:
    """Settings with the name that version 0.1 had for the precision fp32 replaced."""
    return settings.replace('"precision": "caffe"', '"precision": "fp32"')


def _is_of_folder(error: Exception) -> bool:
    """Whether an error in writing a result concerns the folder of results, and not the result of one source."""
    return isinstance(error, OSError) and error.errno not in (None, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


def _problem(source: Source, error: Exception) -> str:
    """A sentence that names the source."""
    sentence = str(error) if isinstance(error, InputError) else f"{first_line(error)}."
    return sentence if str(source.path) in sentence else f"{source.path}: {sentence}"


def _bar(title: str, unit: str, total: int | None) -> Progress:
    return Progress(title=title, unit=unit, total=total, shown=distributed.is_main())


def _write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes a picture atomically in the format of the path's suffix."""
    if path.suffix == ".jpg" and max(picture.shape) > LONGEST_JPEG:
        raise InputError(f"an overlay cannot be longer than {LONGEST_JPEG} pixels: leave out the overlays.")
    _, encoded = cv2.imencode(path.suffix, picture)
    with replacing(path) as temporary:
        temporary.write_bytes(encoded)
