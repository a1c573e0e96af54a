"""Reading frames from video files and cameras, and writing video files, with OpenCV."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from a2s_repro.errors import InputError
from a2s_repro.files import replacing

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # errors are reported as InputError instead

CODEC = "mp4v"
"""MPEG-4 part 2, the codec that every build of OpenCV can write to mp4."""

USUAL_FPS = 25
"""Default frames per second, for a source without a frame rate."""

LARGEST_RATE = 65535
"""Largest numerator of a frame rate in MPEG-4, which OpenCV writes as a decimal fraction of up to three digits."""

LONGEST_STILL = 600
"""Longest time in seconds for which a frame is repeated."""


class _SafePath:
    """A path that OpenCV opens as the file it is.

    OpenCV crashes on a name that is not UTF-8, and FFmpeg takes the beginning of a relative path, such as 12:30:45.mp4,
    for a protocol. The path is absolute, and for a name that is not UTF-8 a link in a temporary folder.
    """

    def __init__(self, path: Path) -> None:
        self._folder: tempfile.TemporaryDirectory | None = None
        self.path = os.path.abspath(path)
        try:
            self.path.encode()
        except UnicodeEncodeError:
            self._folder = tempfile.TemporaryDirectory()
            link = os.path.join(self._folder.name, f"video{path.suffix}")
            os.symlink(self.path, link)
            self.path = link

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()


class FrameReader:
    """Reads the frames, (H, W, 3) uint8 BGR, of a video file or of a camera, given by its number.

    Raises InputError naming the source if it cannot be opened.
    """

    def __init__(self, source: Path | int) -> None:
        self._safe = None if isinstance(source, int) else _SafePath(source)
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            self._capture = cv2.VideoCapture(source if self._safe is None else self._safe.path)
        finally:
            cv2.utils.logging.setLogLevel(level)
        if not self._capture.isOpened():
            self.close()
            if isinstance(source, int):
                raise InputError(f"camera {source} cannot be opened: check that it is connected and not in use.")
            raise InputError(f"{source} cannot be decoded as a video: replace the file.")

    @property
    def path(self) -> str:
        """The file, or a link to it."""
        return "" if self._safe is None else self._safe.path

    @property
    def fps(self) -> float:
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        return fps if 0 < fps < 1000 else USUAL_FPS

    @property
    def frames(self) -> int | None:
        """Number of frames according to the file's header, or None."""
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        return count if count > 0 else None

    @property
    def duration(self) -> float | None:
        """Duration in seconds according to the file's header, or None."""
        return None if self.frames is None else self.frames / self.fps

    def read(self) -> np.ndarray | None:
        """The next frame, or None after the last."""
        success, frame = self._capture.read()
        return frame if success else None

    def read_at(self) -> tuple[np.ndarray, float | None] | None:
        """The next frame and its time in seconds, None for a file without times and for a camera."""
        frame = self.read()
        if frame is None:
            return None
        seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        known = self._safe is not None and self.duration is not None and 0 <= seconds <= self.duration
        return frame, seconds if known else None

    def close(self) -> None:
        self._capture.release()
        if self._safe is not None:
            self._safe.close()


class FrameWriter:
    """Writes frames (H, W, 3) uint8 BGR, all of one size; see `video_file`.

    An mp4 file has one frame rate. Where the frames of a source come at their own times, the last one is repeated until
    the time of the next, so that the video takes as long as its source and has all its frames.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._safe, self._fps = _SafePath(path), writable_rate(fps)
        self._writer: cv2.VideoWriter | None = None
        self._last: np.ndarray | None = None
        self._begin = 0.0
        self.frames = 0
        """Number of frames written, with repetitions."""

    def write(self, frame: np.ndarray, seconds: float | None = None) -> None:
        """Writes a frame; `seconds` is its time in the source."""
        if self._last is None:
            self._begin = seconds or 0
        elif seconds is not None:
            due = int((seconds - self._begin) * self._fps + 0.25)  # times are rounded, often to milliseconds
            for _ in range(min(due - self.frames, round(LONGEST_STILL * self._fps))):
                self._append(self._last)
        self._last = frame
        self._append(frame)

    def _append(self, frame: np.ndarray) -> None:
        height, width = frame.shape[:2]
        # The codec supports only even sides.
        even = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._writer is None:
            codec = cv2.VideoWriter_fourcc(*CODEC)
            self._size = even.shape[1::-1]
            self._writer = cv2.VideoWriter(self._safe.path, codec, self._fps, self._size)
            if not self._writer.isOpened():
                raise InputError(f"frames of {width}x{height} pixels at {self._fps:g} a second cannot be encoded.")
        if even.shape[1::-1] != self._size:  # the writer drops frames of another size
            even = cv2.resize(even, self._size)
        self._writer.write(even)
        self.frames += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
        self._safe.close()


def writable_rate(fps: float) -> float:
    """The frame rate nearest to `fps` that MPEG-4 can hold, with up to three decimals: 196.263 becomes 196.26."""
    for decimals in (3, 2, 1):
        if round(fps * 10**decimals) <= LARGEST_RATE:
            return max(round(fps, decimals), 0.1)
    return min(float(round(fps)), LARGEST_RATE)


@contextmanager
def video_file(path: Path, fps: float) -> Iterator[FrameWriter]:
    """Writes an mp4 file atomically.

    Raises OSError if the file lacks frames, because OpenCV reports no write errors.
    """
    with replacing(path) as temporary:
        writer = FrameWriter(temporary, fps)
        try:
            yield writer
        finally:
            writer.close()
        if not _holds(temporary, writer.frames):
            raise OSError(f"frames are missing in {path}")


def _holds(path: Path, frames: int) -> bool:
    try:
        reader = FrameReader(path)
    except InputError:
        return False
    try:
        return reader.frames == frames
    finally:
        reader.close()
