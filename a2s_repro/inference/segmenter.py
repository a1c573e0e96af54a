"""Segmentation of images of any size with a trained net: `a2s_repro.load` returns a Segmenter."""

import dataclasses
import functools
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.checkpoint.trained import Trained, load_trained
from a2s_repro.data import voc
from a2s_repro.data.lists import read_classes
from a2s_repro.errors import InputError
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.pixels import Picture, fitting, padded, photograph, unpadded
from a2s_repro.inference.segmentation import Segmentation
from a2s_repro.inference.tiles import run_tiled
from a2s_repro.models import Net, at_scales, restored_model
from a2s_repro.runtime.devices import usable_device
from a2s_repro.runtime.precision import autocast_of, check_precision, precision_on, products_of

P = TypeVar("P", bound=tuple[Any, ...])

LONG_SIDE = 1000
"""Maximum longer side of a resized image, in pixels (CSAILVision's imgMaxSize)."""

SMALLEST_TILE = 4
"""Minimum side of a tile, in steps of the net's grid."""


@dataclasses.dataclass(eq=False)
class Segmenter:
    """Segments images of any size with a net: `segmenter(image)`.

    The normalised image is padded with 0, the mean colour, at the bottom and right: each side to `pad_to` or, if it is
    longer, to the next multiple of the net's grid step plus 1. The score map is interpolated to that size (fc8_interp),
    the class with the largest score is taken, and the padding is cut off. As in the authors' test nets, arithmetic is
    exact float32, unless `precision` selects another.

    An image whose activations exceed `memory` runs in overlapping tiles (see `tiles.spans`). Tiling depends only on the
    net, the image's size and `memory`, so results do not depend on the load of the machine.

    With `factors` or `short_sides` the image is resized instead of padded, with both sides rounded up to the grid, and
    the softmax of the scores and the attention weights are averaged over the sizes: CSAILVision's ADE20K evaluation.
    `factors` resize as that of 2017 did, bilinearly with the corners aligned; `short_sides`, its later form, by OpenCV,
    limited by LONG_SIDE. `scores` are then the logarithms of the averaged softmax.
    """

    model: Net
    classes: Sequence[str] = ()
    """Names of the C classes."""
    meta: dict = dataclasses.field(default_factory=dict)
    """Meta of the weights file."""
    pad_to: int = 513
    """Minimum side, in pixels, to which an image is padded; 1 pads only to the grid."""
    short_sides: Sequence[int] = ()
    """Shorter sides, in pixels, to which an image is resized in turn; `pad_to` is then ignored."""
    factors: Sequence[float] = ()
    """Factors by which an image is resized in turn, in place of `short_sides`."""
    memory: float = 4
    """Memory limit for the activations of a forward pass in GB, as estimated by `bytes_per_pixel`."""
    precision: str = "fp32"
    """One of precision.PRECISIONS, or auto: bf16 where the processor has units for it, else fp32."""
    file: Path | None = None
    """The file that the net was loaded from; of a run's folder the file of its weights."""

    def __post_init__(self) -> None:
        self.precision = precision_on(self.precision, self.device)
        check_precision(self.precision, self.device)
        if min((self.pad_to, *self.short_sides)) < 1:
            raise InputError(f"pad_to is {self.pad_to}, short sides {[*self.short_sides]}; they must be at least 1.")
        if self.factors and (self.short_sides or not min(self.factors) > 0):
            raise InputError(f"the factors are {[*self.factors]}; they must be positive, and without short sides.")
        if not self.memory > 0:
            raise InputError(f"memory is {self.memory} GB; it must be positive.")

    @property
    def device(self) -> torch.device:
        """Of the net."""
        return self.model.device

    @overload
    def __call__(
        self,
        image: Picture,
        *,
        scores: bool = False,
        weights: bool = True,
        order: str | None = None,
        crf: CRF | None = None,
    ) -> Segmentation: ...

    @overload
    def __call__(
        self,
        image: Sequence[Picture],
        *,
        scores: bool = False,
        weights: bool = True,
        order: str | None = None,
        crf: CRF | None = None,
    ) -> list[Segmentation]: ...

    def __call__(
        self,
        image: Picture | Sequence[Picture],
        *,
        scores: bool = False,
        weights: bool = True,
        order: str | None = None,
        crf: CRF | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segments an image, or a list of images; images of the same padded size run in one batch.

        Args:
            image: a file, its bytes, a Pillow image, or pixels in a form accepted by `as_bgr`. A file is turned upright
                by its EXIF orientation, and so are the results.
            scores: whether to return the class scores and their recalibration. Without `scores` and `crf` no score map
                of the image's size is allocated.
            weights: whether to return the attention weights, if the merge has any.
            order: "bgr" or "rgb", the order of the channels of an array or a tensor; see `as_bgr`.
            crf: refines the labels; the returned scores are those before the CRF.

        Leaves the model in evaluation mode. Raises InputError for an invalid image, naming the file.
        """
        if not isinstance(image, list | tuple):
            return self([image], scores=scores, weights=weights, order=order, crf=crf)[0]
        photographs = [photograph(picture, order) for picture in image]
        images = [taken.pixels for taken in photographs]
        results = self.start(images, scores=scores or crf is not None, weights=weights)()
        if crf is not None:
            results = [result.refined(pixels, crf) for pixels, result in zip(images, results, strict=True)]
        results = [
            dataclasses.replace(result, orientation=taken.orientation, image=taken.pixels, classes=self.classes)
            for taken, result in zip(photographs, results, strict=True)
        ]
        return results if scores else [result.without_scores() for result in results]

    def start(
        self, images: Sequence[np.ndarray], *, scores: bool = False, weights: bool = True
    ) -> Callable[[], list[Segmentation]]:
        """Starts segmenting images (H, W, 3) uint8 BGR; returns a function that waits for the results.

        A GPU works on while the host fetches the results of an earlier batch. `scores` and `weights` as in a call.
        """
        self.model.eval()
        with torch.inference_mode(), products_of(self.precision):
            parts = list(self._segment(images, scores, weights))

        def results() -> list[Segmentation]:
            by_index: dict[int, Segmentation] = {}
            for indices, fetch in parts:
                by_index |= zip(indices, fetch(), strict=True)
            return [by_index[index] for index in range(len(images))]

        return results

    def padded_size(self, image: np.ndarray) -> tuple[int, int]:
        """Rows and columns to which an image (H, W, 3) is padded."""
        return self._fitting(max(self.pad_to, side) for side in image.shape[:2])

    def padded(self, images: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
        """The net's input (N, 3, *size), on its device, from images (H, W, 3) uint8 BGR no larger than `size`."""
        return padded(images, size, self.model.normalization, self.device)

    @functools.cached_property
    def bytes_per_pixel(self) -> float:
        """Estimated memory of a forward pass per pixel (see `Net.bytes_per_pixel`)."""
        return self.model.bytes_per_pixel()

    @property
    def _pixels(self) -> int:
        """Maximum number of pixels per forward pass."""
        return int(self.memory * 1e9 / self.bytes_per_pixel)

    def _fitting(self, sides: Iterable[int]) -> tuple[int, ...]:
        """The sides, rounded up to the net's grid."""
        return fitting(sides, self.model.grid_step)

    def _segment(self, images: Sequence[np.ndarray], scores: bool, weights: bool) -> Iterator["_Part"]:
        """Starts on the images, those of one padded size together."""
        if self.short_sides or self.factors:
            for index, image in enumerate(images):
                maps = self._average(image)
                yield [index], _fetching(maps, image.shape[:2], [image], scores, weights)
            return
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(self.padded_size(image), []).append(index)
        for size, indices in by_size.items():
            together = max(1, self._pixels // math.prod(size))
            for start in range(0, len(indices), together):
                part = indices[start : start + together]
                batch = [images[index] for index in part]
                yield part, _fetching(self._maps(batch, size), size, batch, scores, weights)

    def _average(self, image: np.ndarray) -> "_Maps":
        """Averages over the resized images, at the size of the image: log of the mean softmax, means of other maps."""
        size = image.shape[:2]
        passes = [self._maps_of(batch) for batch in self._resized(image)]
        mean = sum(ops.interp(maps.scores, size).softmax(1) for maps in passes) / len(passes)
        scores = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()  # the clamp keeps scores finite if the softmax is 0
        others = (
            None if group[0] is None else sum(ops.interp(maps, size) for maps in group) / len(group)
            for group in zip(*(maps[1:] for maps in passes), strict=True)
        )
        return _Maps(scores, *others)

    def _resized(self, image: np.ndarray) -> Iterator[Tensor]:
        """The net's inputs (1, 3, h, w) from the image at each of the short sides, or at each of the factors."""
        size = image.shape[:2]
        for short in self.short_sides:
            factor = min(short / min(size), LONG_SIDE / max(size))
            height, width = self._fitting(max(1, int(side * factor)) for side in size)
            resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
            yield self.padded([resized], (height, width))
        if self.factors:
            whole = self.padded([image], size)
            for factor in self.factors:
                yield ops.interp(whole, self._fitting(max(1, round(side * factor)) for side in size))

    def _maps(self, images: Sequence[np.ndarray], size: tuple[int, int]) -> "_Maps":
        """The net's maps for images padded to `size`."""
        return self._maps_of(self.padded(images, size))

    def _maps_of(self, batch: Tensor) -> "_Maps":
        """The net's maps for its input; tiled if a forward pass would exceed the memory limit."""

        def net(batch: Tensor) -> _Maps:
            with autocast_of(self.precision, batch.device):
                prediction = self.model(batch)
            maps = prediction.scores, prediction.weights, prediction.recalibration
            return _Maps(*(None if values is None else values.to(batch.dtype) for values in maps))

        size = batch.shape[2:]
        if math.prod(size) <= self._pixels:
            return net(batch)
        step = self.model.grid_step
        longest = max(math.isqrt(self._pixels) - 1, self.pad_to - 1, SMALLEST_TILE * step) // step * step + 1
        rows, columns = (min(side, longest) for side in size)
        return _Maps(*run_tiled(net, batch, (rows, columns), step))


_Part = tuple[list[int], Callable[[], list[Segmentation]]]
"""Indices of images, and a function that waits for their results."""


class _Maps(NamedTuple):
    """The merged maps of a Prediction, with their own grids."""

    scores: Tensor
    weights: Tensor | None
    recalibration: Tensor | None


def _fetching(
    maps: _Maps, size: tuple[int, int], images: Sequence[np.ndarray], scores: bool, weights: bool
) -> Callable[[], list[Segmentation]]:
    """Starts to make labels from the maps of padded images, and to copy what is returned to the host.

    The function returned waits for the copies and cuts off the padding.
    """
    returned = (maps.weights if weights else None, *((maps.scores, maps.recalibration) if scores else (None, None)))
    full = [None if values is None else ops.interp(values, size) for values in returned]
    results = ops.segment(maps.scores, size), *full
    copies = [None if values is None else values.to("cpu", non_blocking=True) for values in results]
    finite = maps.scores.isfinite().all().to("cpu", non_blocking=True)
    copied = torch.cuda.Event() if maps.scores.is_cuda else None
    if copied is not None:
        copied.record()

    def fetch() -> list[Segmentation]:
        if copied is not None:
            copied.synchronize()
        if not finite:
            raise InputError("the net's scores are not finite: its training diverged, or its weights are damaged.")
        arrays = [None if values is None else values.numpy() for values in copies]
        return [
            Segmentation(*(None if values is None else unpadded(values[index], image) for values in arrays))
            for index, image in enumerate(images)
        ]

    return fetch


def in_batches(
    segmenter: Segmenter, pictures: Iterable[P], batch_size: int, *, scores: bool = False, weights: bool = True
) -> Iterator[tuple[P, Segmentation]]:
    """Pictures and their segmentations, in order; up to `batch_size` are segmented together.

    A picture is a tuple whose second value is the image, (H, W, 3) uint8 BGR. On a GPU a batch is started before the
    results of the one before are fetched.
    """
    pictures, started = iter(pictures), deque[tuple[list[P], Callable[[], list[Segmentation]]]]()
    waiting = 1 if segmenter.device.type == "cuda" else 0
    while batch := list(itertools.islice(pictures, batch_size)):
        started.append((batch, segmenter.start([image for _, image, *_ in batch], scores=scores, weights=weights)))
        if len(started) > waiting:
            earlier, fetch = started.popleft()
            yield from zip(earlier, fetch(), strict=True)
    for earlier, fetch in started:
        yield from zip(earlier, fetch(), strict=True)


def load_model(
    source: str | os.PathLike | Trained,
    device: str | torch.device = "cpu",
    scales: Sequence[float] | None = None,
    backbone: nn.Module | None = None,
) -> tuple[Net, dict]:
    """The net of a weights file, a snapshot or a run (see `load_trained`) in evaluation mode, and the file's meta.

    Args:
        source: the path, or what was read from it.
        scales: those of the image, in descending order, in place of those of the training (`models.at_scales`).
        backbone: that of a net that was built on a module of another program; it is filled.

    Raises InputError if the file does not hold a complete net, its tensors do not fit the net, the net cannot have the
    scales, or the device cannot be used.
    """
    file, weights = source if isinstance(source, Trained) else load_trained(source)
    if "model" not in weights.meta:
        raise InputError(f"{file} holds initial weights, not a complete net: train from it, and give the result.")
    config = weights.meta["model"] if scales is None else at_scales(weights.meta["model"], scales)
    model = restored_model(config, weights.state_dict, file, backbone)
    return model.to(usable_device(device), memory_format=torch.channels_last).eval(), weights.meta


def class_names(num_classes: int, meta: dict, classes_file: str | os.PathLike | None = None) -> list[str]:
    """Class names of a net: from a file, else from its meta, else VOC's if there are 21 classes, else numbers.

    Raises InputError if the file or the meta has another number of names.
    """
    if classes_file is not None:
        names = read_classes(classes_file)
    elif "classes" in meta:
        names = meta["classes"]
    else:
        names = list(voc.CLASSES) if num_classes == len(voc.CLASSES) else [str(label) for label in range(num_classes)]
    if len(names) != num_classes:
        source = classes_file or "the model file"
        raise InputError(f"{source} names {len(names)} classes, but the net has {num_classes}: give the matching list.")
    return names
