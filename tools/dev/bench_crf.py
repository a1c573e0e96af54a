"""Times the dense CRF against pydensecrf2 (pip install 'a2s_repro[bench]'), in turns in one process, and measures the
memory that each needs on top of its inputs in a process of its own. Without pydensecrf2 it times ours alone.

The picture and the scores are drawn unless --image is given; drawn scores are smooth, as a net's are.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from a2s_repro.bench.provenance import provenance
from a2s_repro.commands.options import positive
from a2s_repro.commands.run import run
from a2s_repro.data.images import read_image
from a2s_repro.files import replacing
from a2s_repro.inference.crf import dense_crf
from a2s_repro.runtime.progress import Progress

try:
    import pydensecrf.densecrf as peer
except ImportError:
    peer = None


def inputs(image_path: str | None, height: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image, and scores whose best class leads by some 5."""
    random = np.random.default_rng(seed)

    def smooth(channels: int, cell: int) -> np.ndarray:
        coarse = random.normal(size=(height // cell + 2, width // cell + 2, channels)).astype(np.float32)
        return np.atleast_3d(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))

    if image_path is None:
        drawn = 128 + 50 * smooth(3, 60) + 10 * smooth(3, 12) + random.normal(0, 1, (height, width, 3))
        image = np.clip(drawn, 0, 255).astype(np.uint8)
    else:
        image = cv2.resize(read_image(image_path)[:, :, ::-1], (width, height), interpolation=cv2.INTER_CUBIC)
    scores = np.concatenate([3 * smooth(1, 24) for _ in range(classes)], axis=2)
    return np.ascontiguousarray(image), np.ascontiguousarray(scores.transpose(2, 0, 1))


def ours(image: np.ndarray, scores: np.ndarray, iterations: int, threads: int) -> np.ndarray:
    return dense_crf(image, scores, iterations=iterations, threads=threads)


def theirs(image: np.ndarray, scores: np.ndarray, iterations: int, threads: int) -> np.ndarray:
    """The same CRF; pydensecrf2 has one thread."""
    classes, height, width = scores.shape
    crf = peer.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(-scores.reshape(classes, -1))
    how = {"kernel": peer.DIAG_KERNEL, "normalization": peer.NORMALIZE_AFTER}
    crf.addPairwiseGaussian(sxy=3, compat=3, **how)
    crf.addPairwiseBilateral(sxy=49, srgb=5, rgbim=image, compat=4, **how)
    return np.array(crf.inference(iterations)).reshape(scores.shape)


def peak_mebibytes(run: Callable, *arguments: object) -> float:
    """MiB by which the resident memory of this process rises at most while it runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    run(*arguments)
    return memory("VmHWM") - before


def memory(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/dev/bench_crf.py --image photo.jpg --json benchmarks/results/crf.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--image", help="a photograph, resized to the size below")
    parser.add_argument("--image-height", dest="height", type=positive, default=375, help="(default %(default)s)")
    parser.add_argument("--image-width", dest="width", type=positive, default=500, help="(default %(default)s)")
    parser.add_argument("--num-classes", dest="classes", type=positive, default=21, help="(default %(default)s)")
    parser.add_argument(
        "--crf-iterations",
        dest="iterations",
        type=int,
        default=10,
        help="of mean field inference (default %(default)s)",
    )
    parser.add_argument(
        "--threads", type=positive, default=os.cpu_count(), help="of ours (here by default %(default)s)"
    )
    parser.add_argument("--repeats", type=positive, default=21, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()

    image, scores = inputs(arguments.image, arguments.height, arguments.width, arguments.classes, arguments.seed)
    runs = {"ours": (ours, image, scores, arguments.iterations, arguments.threads)}
    if arguments.threads > 1:
        runs["ours, 1 thread"] = (ours, image, scores, arguments.iterations, 1)
    if peer is not None:
        runs["pydensecrf2"] = (theirs, image, scores, arguments.iterations, 1)

    results = {name: function(*rest) for name, (function, *rest) in runs.items()}
    seconds = {name: [] for name in runs}
    for _ in Progress(range(arguments.repeats), "dense CRF", "round", total=arguments.repeats):
        for name, (function, *rest) in runs.items():
            start = time.perf_counter()
            function(*rest)
            seconds[name].append(time.perf_counter() - start)
    figures = {}
    for name, (function, *rest) in runs.items():
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            mebibytes = fresh.apply(peak_mebibytes, (function, *rest))
        times = seconds[name]
        figures[name] = {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}
        figures[name]["peak_memory_MiB"] = round(mebibytes, 1)
        line = "{median_s:.3f} s (median; {min_s:.3f} to {max_s:.3f}), {peak_memory_MiB:.0f} MiB"
        if name != "ours":
            ratios = [other / own for other, own in zip(times, seconds["ours"], strict=True)]
            figures[name]["times_ours"] = statistics.median(ratios)
            figures[name]["times_ours_quartiles"] = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else []
            line += ", {times_ours:.2f} times ours"
        print(f"{name:<15} " + line.format(**figures[name]))
    if peer is not None:
        difference = float(np.abs(results["ours"] - results["pydensecrf2"]).max())
        agreement = float((results["ours"].argmax(0) == results["pydensecrf2"].argmax(0)).mean())
        print(
            f"marginals differ by at most {difference:.1e}; {100 * agreement:.3f} % of the pixels have the same label"
        )
        figures["pydensecrf2"] |= {"version": version("pydensecrf2"), "difference": difference, "same": agreement}

    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "image")}
        settings["image"] = "photograph" if arguments.image else "drawn"
        with replacing(arguments.json) as temporary:
            record = provenance() | settings | {"figures": figures}
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        print(f"figures: {arguments.json}")


if __name__ == "__main__":
    run(main)
