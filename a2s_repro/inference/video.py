"""Reading frames from video files and cameras, and writing video files, with OpenCV."""

import os
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


class FrameReader:
    """Reads the frames, (H, W, 3) uint8 BGR, of a video file or of a camera, given by its number.

    Raises InputError naming the source if it cannot be opened.
    """

    def __init__(self, source: Path | int) -> None:
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        finally:
            cv2.utils.logging.setLogLevel(level)
        if not self._capture.isOpened():
            if isinstance(source, int):
                raise InputError(f"camera {source} cannot be opened: check that it is connected and not in use.")
            raise InputError(f"{source} cannot be decoded as a video: replace the file.")

    @property
    def fps(self) -> float:
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        return fps if 0 < fps < 1000 else USUAL_FPS

    @property
    def frames(self) -> int | None:
        """Number of frames according to the file's header, or None."""
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        return count if count > 0 else None

    def read(self) -> np.ndarray | None:
        """The next frame, or None after the last."""
        success, frame = self._capture.read()
        return frame if success else None

    def close(self) -> None:
        self._capture.release()


class FrameWriter:
    """Writes frames (H, W, 3) uint8 BGR, all of one size; see `video_file`."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self.frames = 0

    def write(self, frame: np.ndarray) -> None:
        height, width = frame.shape[:2]
        # The codec supports only even sides.
        even = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._writer is None:
            codec = cv2.VideoWriter_fourcc(*CODEC)
            self._writer = cv2.VideoWriter(str(self._path), codec, self._fps, even.shape[1::-1])
        self._writer.write(even)
        self.frames += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


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
