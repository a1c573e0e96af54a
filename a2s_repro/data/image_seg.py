"""Caffe's ImageSegData layer: random draws in the main process, decoding and cropping in workers.

The data of a training run is a pure function of (list, seed, batch number), so a resumed run starts at its batch
number. Caffe's own draws are in `a2s_repro.data.caffe_rng`.
"""

import contextlib
import functools
import multiprocessing
import signal
import tempfile
import threading
from collections.abc import Generator, Iterator
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from a2s_repro.data.cache import decode_all
from a2s_repro.data.images import IGNORE_LABEL, read_pair
from a2s_repro.data.lists import Item
from a2s_repro.data.normalization import NORMALIZATIONS, Normalization, net_input
from a2s_repro.errors import InputError, first_line
from a2s_repro.runtime.devices import Uploader


class Draw(NamedTuple):
    """The random choices for one sample, as raw 32-bit words: an offset's range is known only after decoding."""

    index: int
    mirror: int
    h_off: int
    w_off: int
    scale: int | None = None
    """Word for scale augmentation; None in Caffe's streams, which have none."""


class Sample(NamedTuple):
    """One sample, or a batch of them with a leading axis."""

    image: torch.Tensor
    """(3, crop, crop) float32, normalised; 0 where padded."""
    label: torch.Tensor
    """(crop, crop) uint8; 255 where ignored or padded."""
    index: torch.Tensor
    """int64, the item's index in the list; always on the CPU."""


class Crop(NamedTuple):
    """A sample as the workers deliver it, not yet normalised, or a batch with a leading axis."""

    pixels: torch.Tensor
    """(crop, crop, 3) uint8 BGR; the image's part is at the top left, if it is mirrored at the top right."""
    label: torch.Tensor
    """(crop, crop) uint8; 255 where ignored or padded."""
    index: np.ndarray
    """() int64, the item's index in the list."""
    size: np.ndarray
    """(2,) int64, rows and columns of the image's part."""
    mirrored: np.ndarray
    """() bool, whether the sample is flipped left to right."""


def scale_factor(draw: Draw, scale_range: tuple[float, float]) -> float:
    """Scale factor, uniform in the range (low, high). Raises InputError for a draw without a `scale` word."""
    if draw.scale is None:
        raise InputError("Caffe's streams have no scale augmentation: leave out one of the two.")
    low, high = scale_range
    return low + (high - low) * draw.scale / 2**32


def rescale(image: np.ndarray, label: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Resizes an image (H, W, 3) bilinearly and its labels (H, W) by nearest neighbour, both uint8.

    As in DeepLab v2's TransformImgAndSeg, sides H * factor and W * factor are truncated to whole pixels, at least 1.
    """
    height, width = (max(int(side * factor), 1) for side in label.shape)
    return (
        cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST),
    )


def recolour(image: np.ndarray, deviation: float, draw: Draw) -> np.ndarray:
    """Changes saturation, contrast about the mean grey, and brightness of an image (H, W, 3) uint8 BGR.

    The three factors are uniform in 1 - deviation to 1 + deviation; their generator is seeded by the words of `draw`.
    Raises InputError for a draw without a `scale` word.
    """
    if draw.scale is None:
        raise InputError("Caffe's streams have no colour augmentation: leave out one of the two.")
    words = draw.mirror, draw.h_off, draw.w_off, draw.scale
    saturation, contrast, brightness = np.random.default_rng(words).uniform(1 - deviation, 1 + deviation, 3)
    pixels = image.astype(np.float32)
    grey = pixels @ np.float32([0.114, 0.587, 0.299])
    pixels = saturation * contrast * pixels + (contrast * (1 - saturation) * grey)[..., None]
    pixels = brightness * (pixels + (1 - contrast) * grey.mean())
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def cut(image: np.ndarray, label: np.ndarray, crop: int, draw: Draw | None) -> Crop:
    """Pads an image (H, W, 3) uint8 and its labels (H, W) uint8 at the bottom and right, crops and mirrors them.

    An offset is its word modulo the number of positions, counted after padding; the sample is mirrored if its mirror
    word is odd. Without a draw (TEST phase) the crop is the centre.
    """
    height, width = label.shape
    h_range, w_range = max(height - crop, 0), max(width - crop, 0)
    if draw is None:
        h_off, w_off, mirrored, index = h_range // 2, w_range // 2, False, 0
    else:
        h_off, w_off = draw.h_off % (h_range + 1), draw.w_off % (w_range + 1)
        mirrored, index = draw.mirror % 2 == 1, draw.index

    rows, columns = min(crop, height), min(crop, width)
    window = slice(h_off, h_off + rows), slice(w_off, w_off + columns)
    pixels, labels = np.zeros((crop, crop, 3), np.uint8), np.full((crop, crop), IGNORE_LABEL, np.uint8)
    for canvas, source in ((pixels, image), (labels, label)):
        part = source[window]
        if mirrored:
            canvas[:rows, crop - columns :] = part[:, ::-1]
        else:
            canvas[:rows, :columns] = part
    tensors = torch.from_numpy(pixels), torch.from_numpy(labels)
    return Crop(*tensors, np.array(index), np.array([rows, columns]), np.array(mirrored))


def finished(crops: Crop, normalization: Normalization) -> Sample:
    """A batch of crops, normalised on their device."""
    image = net_input(crops.pixels, crops.size.tolist(), normalization, crops.mirrored.tolist())
    return Sample(image, crops.label, torch.from_numpy(crops.index))


def transform(
    image: np.ndarray, label: np.ndarray, crop: int, normalization: Normalization, draw: Draw | None
) -> tuple[np.ndarray, np.ndarray]:
    """Caffe's DataTransformer::TransformImgAndSeg: pad at the bottom and right, crop, normalise, mirror.

    Takes an image (H, W, 3) uint8 and labels (H, W) uint8; returns (3, crop, crop) float32, 0 where padded, and
    (crop, crop) uint8, 255 where padded.
    """
    sample = finished(_collate([cut(image, label, crop, draw)]), normalization)
    return sample.image[0].contiguous().numpy(), sample.label[0].numpy()


class Stream(Protocol):
    """Source of the draws of a loader's batches; lives in the main process."""

    def batch(self, k: int) -> list[Draw]:
        """The draws of batch k, counted from 0."""


class RandomStream:
    """A stateless stream: `batch(k)` depends on the constructor's arguments and k alone.

    Every epoch has its own permutation, and batches straddle epochs as in Caffe. Words depend on the position in the
    stream, so that 3 x 10 and 30 x 1 images see the same draws. `mirror=False` sets every mirror word to 0.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int, shuffle: bool = True, mirror: bool = True):
        if num_items < 1 or batch_size < 1 or seed < 0:
            raise InputError(
                f"A stream needs images, a batch size of at least 1 and a seed of at least 0, but has "
                f"{num_items} images, batch size {batch_size} and seed {seed}."
            )
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.shuffle, self.mirror = shuffle, mirror
        self._epoch, self._order = -1, np.arange(num_items)

    def batch(self, k: int) -> list[Draw]:
        """The draws of batch k, counted from 0."""
        return [self._draw(position) for position in range(k * self.batch_size, (k + 1) * self.batch_size)]

    def _draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self.num_items)
        mirror, *words = np.random.default_rng((self.seed, 1, position)).integers(2**32, size=4).tolist()
        return Draw(int(self._permutation(epoch)[place]), mirror if self.mirror else 0, *words)

    def _permutation(self, epoch: int) -> np.ndarray:
        if self.shuffle and epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, 0, epoch)).permutation(self.num_items)
        return self._order


class SegmentationDataset(Dataset):
    """Reads and transforms images: `dataset[draw]` is the Sample of a draw. Raises InputError naming a bad file.

    With a `scale_range` (low, high) each sample is rescaled before padding and cropping, by a factor uniform in the
    range; the stream must supply `scale` words. With `fill_crop` an image too small for the crop is enlarged until it
    covers the crop: the factor is at least crop / (shorter side - 1). With `colour_deviation` it is recoloured.
    """

    def __init__(
        self,
        items: list[Item],
        num_classes: int,
        crop: int,
        normalization: Normalization = NORMALIZATIONS["caffe"],
        scale_range: tuple[float, float] | None = None,
        fill_crop: bool = False,
        colour_deviation: float | None = None,
    ):
        if colour_deviation is not None and not 0 < colour_deviation <= 1:
            raise InputError(f"colours cannot deviate by {colour_deviation}: give a number above 0 and at most 1.")
        if scale_range and not 0 < scale_range[0] <= scale_range[1]:
            raise InputError(
                f"scale_range {scale_range} is not possible: give two factors above 0, the lower one first."
            )
        self.items, self.num_classes, self.crop = items, num_classes, crop
        self.normalization, self.scale_range, self.fill_crop = normalization, scale_range, fill_crop
        self.colour_deviation = colour_deviation
        self._decoded: list[tuple[np.ndarray, np.ndarray]] = []

    def cache(self, threads: int) -> None:
        """Decodes and keeps all images; a loader's workers share them. Raises InputError as `decode_all` does."""
        self._decoded = decode_all(self.items, self.num_classes, threads)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, draw: Draw) -> Sample:
        batch = finished(_collate([self.crop_of(draw)]), self.normalization)
        return Sample(*(values[0] for values in batch))

    def crop_of(self, draw: Draw) -> Crop:
        """The crop of a draw, not yet normalised."""
        image, label = self._pair(draw.index)
        factor = scale_factor(draw, self.scale_range) if self.scale_range else 1
        if self.fill_crop:
            factor = max(factor, self.crop / max(min(label.shape) - 1, 1))
        if factor != 1:
            image, label = rescale(image, label, factor)
        if self.colour_deviation:
            image = recolour(image, self.colour_deviation, draw)
        return cut(image, label, self.crop, draw)

    def _pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._decoded[index] if self._decoded else read_pair(self.items[index], self.num_classes)


def loader(
    dataset: SegmentationDataset,
    stream: Stream,
    start: int,
    num_batches: int,
    workers: int,
    device: torch.device | str = "cpu",
    step: int = 1,
) -> Generator[Sample, None, None]:
    """Yields `num_batches` batches of a stream, `start`, `start + step`, ..., as Samples with a batch axis.

    Workers decode ahead, and deliver 8-bit crops; with 0 workers this process decodes. Crops are normalised on
    `device`, where image and labels stay. To a GPU they are copied on a stream of its own, from pinned
    memory, while it works. torch's global random state is not used. Closing the generator (`contextlib.closing`) ends
    the workers.

    Raises:
        InputError: a bad file or a killed worker, when the batch is due.
    """
    sockets = tempfile.TemporaryDirectory(ignore_cleanup_errors=True) if workers else contextlib.nullcontext()
    batches = DataLoader(
        _Reporting(dataset),
        batch_sampler=map(stream.batch, range(start, start + step * num_batches, step)),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # shares the dataset's cache
        collate_fn=_collate,
        pin_memory=torch.device(device).type == "cuda",
        worker_init_fn=functools.partial(_set_up_worker, sockets.name) if workers else None,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),
    )
    upload = Uploader(device)
    with sockets, _iterating(batches) as decoded:
        for k in range(num_batches):
            try:
                batch = next(decoded)
            except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:  # batches arrive by a socket
                images = ", ".join(dataset.items[draw.index].id for draw in stream.batch(start + step * k))
                raise InputError(
                    f"the images {images} were not read because a decoding process ended ({first_line(error)}); if "
                    "memory was short, give fewer --workers."
                ) from error
            if isinstance(batch, InputError):
                raise batch
            pixels, label = upload(batch.pixels, batch.label)
            yield finished(batch._replace(pixels=pixels, label=label), dataset.normalization)


@contextlib.contextmanager
def _iterating(batches: DataLoader) -> Iterator[Iterator[Crop | InputError]]:
    """The loader's iterator, whose workers are killed at the end of the block.

    The interpreter joins them at exit, and they ignore SIGTERM. DataLoader stops them when its iterator is deleted, but
    the traceback of an error can keep the iterator alive.
    """
    on_death, others = signal.getsignal(signal.SIGCHLD), multiprocessing.active_children()
    workers = []
    try:
        try:
            decoded = iter(batches)
        finally:
            workers = [child for child in multiprocessing.active_children() if child not in others]
        if threading.current_thread() is threading.main_thread():
            # DataLoader's SIGCHLD handler raises at any point of the program, even within an update. Without the
            # handler, fetching the next batch raises.
            signal.signal(signal.SIGCHLD, on_death)
        yield decoded
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()


class _Reporting(Dataset):
    """Returns an InputError as the sample, because DataLoader wraps an exception raised in a worker in a traceback."""

    def __init__(self, dataset: SegmentationDataset):
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> Crop | InputError:
        try:
            return self.dataset.crop_of(draw)
        except InputError as error:
            return error


def _collate(crops: list[Crop | InputError]) -> Crop | InputError:
    if errors := [crop for crop in crops if isinstance(crop, InputError)]:
        return errors[0]
    pixels, labels, *others = zip(*crops, strict=True)
    # Arrays reach the main process by value; every tensor takes shared memory and a message of its own.
    return Crop(default_collate(pixels), default_collate(labels), *map(np.stack, others))


def _set_up_worker(temporary: str, _: int) -> None:
    """One thread per worker. SIGINT and SIGTERM are left to the main process, which may still need batches.

    Workers are killed at the end, so the main process removes `temporary`, the folder of the sockets for batches.
    """
    cv2.setNumThreads(0)
    tempfile.tempdir = temporary
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
