"""The pictures of a list, decoded once and kept in memory."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from a2s_repro.data.images import read_pair
from a2s_repro.data.lists import Item
from a2s_repro.errors import InputError
from a2s_repro.runtime.distributed import is_main

LEFT = 0.25
"""The part of the machine's memory that stays available, to the net among others."""


def decode_all(
    items: list[Item], num_classes: int, threads: int, left: float = LEFT
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`read_pair` of every item, in their order, under a progress bar.

    Raises InputError as read_pair does, and where less than the part `left` of the memory would stay available.
    """
    pairs = []
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(items), desc="decoding", unit="image", disable=not is_main()) as bar,
    ):
        for pair in pool.map(partial(read_pair, num_classes=num_classes), items):
            pairs.append(pair)
            bar.update()
            if _available() < left:
                size = sum(image.nbytes + label.nbytes for image, label in pairs)
                raise InputError(
                    f"the first {len(pairs)} of {len(items)} images take {size / 2**30:.1f} GiB when decoded and leave "
                    f"less than {left:.0%} of the machine's memory: do without --cache."
                )
    return pairs


def _available() -> float:
    """The part of the machine's memory that can be had without swapping (Linux)."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kibibytes = {name.rstrip(":"): int(value) for name, value, *_ in lines}
    return kibibytes["MemAvailable"] / kibibytes["MemTotal"]
