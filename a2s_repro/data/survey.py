"""A look at all files of a training list before the training: bad files, and classes that never occur."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from a2s_repro.data.images import IGNORE_LABEL, check_same_size, image_size, read_label
from a2s_repro.data.lists import Item
from a2s_repro.errors import InputError
from a2s_repro.runtime import distributed, pools
from a2s_repro.runtime.progress import Progress


@dataclass(frozen=True)
class Survey:
    """The labels of a list, counted."""

    images: int
    pixels: np.ndarray
    """(256,) int64, number of pixels of each label value."""
    turned: int
    """Number of images with an EXIF orientation, by which viewers turn them."""

    def balanced_weights(self, num_classes: int) -> tuple[float, ...]:
        """Weights of the classes inverse to their numbers of pixels, with a mean of 1 over the pixels; 1 if absent."""
        pixels = self.pixels[:num_classes]
        share = pixels.sum() / max(np.count_nonzero(pixels), 1)
        return tuple(float(share / count) if count else 1.0 for count in pixels)

    def remarks(self, classes: Sequence[str]) -> list[str]:
        """Sentences on what a user may not expect of the list.

        Raises InputError if at most one of several classes occurs: nothing can be learned from such labels.
        """
        absent = [name for name, pixels in zip(classes, self.pixels, strict=False) if not pixels]
        if len(classes) > 1 and len(classes) - len(absent) < 2:
            occurring = next((name for name in classes if name not in absent), None)
            message = f"of the classes, only {occurring} occurs" if occurring else "no class occurs"
            if self.pixels[IGNORE_LABEL]:
                message += f" besides {IGNORE_LABEL}, which is ignored; in masks of two values save the object as 1"
            raise InputError(f"in the labels of the {self.images} training images {message}: correct the labels.")
        remarks = []
        if absent:
            remarks.append(
                f"classes without a pixel in the training labels, which cannot be learned: {_listed(absent)}"
            )
        if self.turned:
            remarks.append(
                f"{self.turned} of the {self.images} images have an EXIF orientation; they are read as stored, "
                "and their labels must lie on the stored pixels"
            )
        return remarks


def survey(items: Sequence[Item], num_classes: int, threads: int) -> Survey:
    """Reads all label maps and the headers of all images with a progress bar; processes share the work.

    Raises InputError for the first file that is unreadable or truncated, label that is not one of the classes, or pair
    of different sizes.
    """
    share = items[distributed.rank() :: distributed.world_size()]
    totals = torch.zeros(257, dtype=torch.int64)
    with distributed.failing_together():
        for counts, turned in _looks(share, num_classes, threads):
            totals[:256] += torch.from_numpy(counts)
            totals[256] += turned
    totals = distributed.sum_(totals)
    return Survey(len(items), totals[:256].numpy(), int(totals[256]))


def _looks(items: Sequence[Item], num_classes: int, threads: int) -> Iterator[tuple[np.ndarray, bool]]:
    bar = Progress(title="checking labels", unit="image", total=len(items), shown=distributed.is_main())
    with bar, pools.threads(threads) as pool:
        for look in pool.map(partial(_look, num_classes), items):
            yield look
            bar.update()


def _look(num_classes: int, item: Item) -> tuple[np.ndarray, bool]:
    """Number of pixels of each label value (256,), and whether the image has an EXIF orientation."""
    size, orientation = image_size(item.image)
    if item.label is None:
        return np.zeros(256, np.int64), orientation != 1
    labels = read_label(item.label, num_classes)
    check_same_size(item, size, labels.shape)
    return np.bincount(labels.ravel(), minlength=256), orientation != 1


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
