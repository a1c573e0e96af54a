"""In-memory cache of a list's decoded images and label maps."""

from functools import partial
from pathlib import Path

import numpy as np

from a2s_repro.data.images import read_pair
from a2s_repro.data.lists import Item
from a2s_repro.errors import InputError
from a2s_repro.runtime import pools
from a2s_repro.runtime.distributed import is_main
from a2s_repro.runtime.progress import Progress

LEFT = 0.25
"""Fraction of the machine's memory that must remain available, for the net among others."""


def decode_all(
    items: list[Item], num_classes: int, threads: int, left: float = LEFT
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`read_pair` of every item, in the order of the list; shows a progress bar.

    Raises InputError as `read_pair` does, and if less than the fraction `left` of the memory remains available.
    """
    pairs = []
    with (
        pools.threads(threads) as pool,
        Progress(title="decoding", unit="image", total=len(items), shown=is_main()) as bar,
    ):
        for pair in pool.map(partial(read_pair, num_classes=num_classes), items):
            pairs.append(pair)
            bar.update()
            if _available() < left:
                size = sum(image.nbytes + label.nbytes for image, label in pairs)
                raise InputError(
                    f"the first {len(pairs)} of {len(items)} images take {size / 2**30:.1f} GiB when decoded and leave "
                    f"less than {left:.0%} of the machine's memory: leave out --cache."
                )
    return pairs


def _available() -> float:
    """The fraction of the machine's memory that can be allocated without swapping (Linux)."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kibibytes = {name.rstrip(":"): int(value) for name, value, *_ in lines}
    return kibibytes["MemAvailable"] / kibibytes["MemTotal"]
