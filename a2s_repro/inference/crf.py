"""The dense CRF of Krähenbühl and Koltun (NIPS 2011), which aligns score maps with edges of the image.

Parameters and protocol are the authors'. Commands: `a2s evaluate --crf` and `a2s crf-search`.
"""

import ctypes
import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import torch

from a2s_repro.errors import InputError
from a2s_repro.ops import _native

MAX_LATTICE_PIXELS = 2**31 // 6
"""Maximum number of pixels: the native code indexes lattice vertices, at most six per pixel, with int32."""
TOO_SMALL, OUT_OF_MEMORY = 1, 2
"""Statuses of the native function: a standard deviation is too small for the image; memory ran out."""


@dataclasses.dataclass(frozen=True)
class CRF:
    """Parameters of a dense CRF. The defaults are those of the authors' submission (run_densecrf.sh).

    Raises InputError for a value out of range.
    """

    iterations: int = 10
    """Iterations of mean field inference; 0 gives the softmax of the scores."""
    pos_w: float = 3
    """Weight of the position kernel."""
    pos_xy_std: float = 3
    """Standard deviation of the position kernel, in pixels."""
    bi_w: float = 4
    """Weight of the bilateral kernel (position and colour)."""
    bi_xy_std: float = 49
    """Standard deviation of the bilateral kernel in position, in pixels."""
    bi_rgb_std: float = 5
    """Standard deviation of the bilateral kernel in colour, in grey levels."""

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, int) or self.iterations < 0:
            raise InputError(f"CRF: iterations is {self.iterations!r}; it must be a whole number, 0 or more.")
        for name in ("pos_w", "bi_w"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"CRF: {name} is {getattr(self, name)}; a weight must be 0 or more.")
        for name in ("pos_xy_std", "bi_xy_std", "bi_rgb_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"CRF: {name} is {getattr(self, name)}; a standard deviation must be above 0.")

    @classmethod
    def parse(cls, words: list[str]) -> "CRF":
        """Parameters from command-line words: optionally a key of PARAMETERS, then values as key=value; the rest are
        defaults. Raises InputError for any other word."""
        crf = cls()
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        for position, word in enumerate(words):
            name, is_value, value = word.partition("=")
            if position == 0 and word in PARAMETERS:
                crf = PARAMETERS[word]
            elif is_value and name in fields:
                try:
                    crf = dataclasses.replace(crf, **{name: fields[name](value)})
                except InputError:
                    raise
                except ValueError:
                    kind = "a whole number" if fields[name] is int else "a number"
                    raise InputError(f"CRF: '{word}': the value must be {kind}.") from None
            elif is_value:
                raise InputError(f"CRF: there is no parameter '{name}'; there are {', '.join(fields)}.")
            else:
                raise InputError(f"CRF: '{word}' is no model with known parameters; known are {', '.join(PARAMETERS)}.")
        return crf

    def __str__(self) -> str:
        return " ".join(f"{name}={value:g}" for name, value in dataclasses.asdict(self).items())


PARAMETERS = {
    "person_part/largefov": CRF(bi_w=4, bi_xy_std=21, bi_rgb_std=3),
    "person_part/msc_largefov": CRF(bi_w=4, bi_xy_std=21, bi_rgb_std=3),
    "person_part/average3_esupv": CRF(bi_w=5, bi_xy_std=11, bi_rgb_std=5),
    "person_part/max3_esupv": CRF(bi_w=4, bi_xy_std=15, bi_rgb_std=3),
    "person_part/attention3_esupv": CRF(bi_w=4, bi_xy_std=19, bi_rgb_std=3),
    "person_part/max4_esupv": CRF(bi_w=4, bi_xy_std=20, bi_rgb_std=5),
    "person_part_msc/average3_esupv": CRF(bi_w=4, bi_xy_std=9, bi_rgb_std=5),
    "person_part_msc/max3_esupv": CRF(bi_w=4, bi_xy_std=19, bi_rgb_std=3),
    "person_part_msc/attention3_esupv": CRF(bi_w=4, bi_xy_std=13, bi_rgb_std=3),
    "voc12/largefov": CRF(bi_w=4, bi_xy_std=121, bi_rgb_std=5),
    "voc12_coco/largefov": CRF(bi_w=5, bi_xy_std=69, bi_rgb_std=5),
    "voc12_coco/attention3_esupv": CRF(bi_w=4, bi_xy_std=49, bi_rgb_std=5),
}
"""The authors' parameters by recipe (SetupEnv.m, run_densecrf.sh), found by grid search on 100 validation images.
person_part/max4_esupv, attention46 of the release, is of a net with four scales that has no number and no recipe."""


def dense_crf(
    image: np.ndarray,
    scores: np.ndarray,
    *,
    iterations: int = 10,
    pos_w: float = 3,
    pos_xy_std: float = 3,
    bi_w: float = 4,
    bi_xy_std: float = 49,
    bi_rgb_std: float = 5,
    threads: int | None = None,
) -> np.ndarray:
    """Marginals of a dense CRF by mean field inference: (C, H, W) float32, summing to 1 over the classes.

    Args:
        image: (H, W, 3) uint8, RGB.
        scores: (C, H, W) float32 class scores before any softmax; the unary energies are -scores.
        iterations, pos_w, ... : as in `CRF`.
        threads: number of threads, default torch.get_num_threads(). The result is bit-identical for any number. The
            GIL is released, so Python threads can refine images in parallel with threads=1 each.

    Gaussian sums are computed with the permutohedral lattice over all pixels, including the pixel itself, and are
    normalised per pixel after filtering; they equal those of the authors' prog_refine_pascal_v4
    (docs/fidelity/behaviours.md).

    Raises:
        InputError: a wrong shape, dtype or parameter, scores that are not finite, standard deviations too small for
            the image, or no native library.
    """
    crf = CRF(iterations, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std)
    if threads is None:
        threads = torch.get_num_threads()
    if threads < 1:
        raise InputError(f"dense_crf: threads is {threads}; it must be at least 1.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"dense_crf: image must be (H, W, 3) uint8, not {image.shape} {image.dtype}.")
    if scores.dtype != np.float32 or scores.ndim != 3 or scores.shape[1:] != image.shape[:2] or not len(scores):
        height, width = image.shape[:2]
        raise InputError(
            f"dense_crf: scores must be (C, {height}, {width}) float32, as large as the image, "
            f"not {scores.shape} {scores.dtype}."
        )
    if not 0 < image.shape[0] * image.shape[1] <= MAX_LATTICE_PIXELS:
        raise InputError(f"dense_crf: the image must have 1 to {MAX_LATTICE_PIXELS} pixels, not {image.shape[:2]}.")
    if not np.isfinite(scores).all():
        raise InputError("dense_crf: scores holds values that are not finite: check the net's weights.")
    image, scores = np.ascontiguousarray(image), np.ascontiguousarray(scores)
    marginals = np.empty_like(scores)
    status = _library(_native.LIBRARY_DIR / "liba2s_crf.so").a2s_mean_field(
        image.ctypes.data,
        scores.ctypes.data,
        *image.shape[:2],
        len(scores),
        *dataclasses.astuple(crf),
        min(threads, len(image)),
        marginals.ctypes.data,
    )
    if status == TOO_SMALL:
        raise InputError(
            "dense_crf: the standard deviations are too small for an image of this size: "
            f"choose larger ones than {crf}."
        )
    if status == OUT_OF_MEMORY:
        raise MemoryError(f"dense_crf: there is no memory for an image of {image.shape[1]}x{image.shape[0]} pixels.")
    return marginals


def refine(image: np.ndarray, scores: np.ndarray, crf: CRF, *, threads: int | None = None) -> np.ndarray:
    """Labels (H, W) uint8 from the CRF: the class with the largest marginal, the first one in a tie.

    Arguments and errors as for `dense_crf`; at most 256 classes.
    """
    if len(scores) > 256:
        raise InputError(f"refine: scores has {len(scores)} classes; uint8 labels hold at most 256.")
    return dense_crf(image, scores, threads=threads, **dataclasses.asdict(crf)).argmax(0).astype(np.uint8)


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    """The native library (csrc/crf/library.cpp), opened once."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        problem = _native.load_problem(path, error)
        raise InputError(f"the dense CRF cannot run, because {problem}: {_native.REMEDY}.") from None
    library.a2s_mean_field.argtypes = [
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 2,
        ctypes.c_int,
        ctypes.c_int64,
        *[ctypes.c_float] * 5,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    return library
