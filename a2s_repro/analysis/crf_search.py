"""Grid search over the dense CRF's parameters on a random subset of the validation set, as in the authors'
run_densecrf_grid_search.sh."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import nn

from a2s_repro.data.images import read_pair
from a2s_repro.data.lists import VOID, Item
from a2s_repro.errors import InputError
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.evaluation import NO_PIXEL, ConfusionMatrix
from a2s_repro.inference.segmenter import Segmenter
from a2s_repro.runtime.pools import threads
from a2s_repro.runtime.progress import Progress

GRID = {
    "bi_w": (5, 10),
    "bi_xy_std": (40, 50, 60, 70, 80, 90, 100),
    "bi_rgb_std": (3, 4, 5, 6, 7, 8, 9, 10),
}
"""Grid of the authors' script; pos_w and pos_xy_std are fixed at 3."""


@dataclass(frozen=True)
class Search:
    """Mean IoU of a net on `images` images, without and with each CRF, as fractions."""

    images: int
    without: float
    mean_iou: dict[CRF, float]

    @property
    def best(self) -> CRF:
        """The CRF with the highest mean IoU; the first one in a tie."""
        return max(self.mean_iou, key=self.mean_iou.get)

    def table(self) -> str:
        """One table per bi_w of mean IoU in per cent, with a line per bi_xy_std and a column per bi_rgb_std; a star
        marks the best."""
        weights, positions, colours = (
            sorted({getattr(crf, name) for crf in self.mean_iou}) for name in ("bi_w", "bi_xy_std", "bi_rgb_std")
        )
        cells = {(crf.bi_w, crf.bi_xy_std, crf.bi_rgb_std): crf for crf in self.mean_iou}
        lines = []
        for weight in weights:
            lines += [f"bi_w {weight:g}", "  xy \\ rgb" + "".join(f"{colour:9g}" for colour in colours)]
            for position in positions:
                row = [cells[weight, position, colour] for colour in colours]
                marks = "".join(f"{100 * self.mean_iou[crf]:8.2f}{'*' if crf == self.best else ' '}" for crf in row)
                lines.append(f"{position:10g}{marks.rstrip()}")
        lines.append(
            f"mIoU {100 * self.without:.2f} % without CRF, {100 * self.mean_iou[self.best]:.2f} % with the best"
        )
        return "\n".join(lines)

    def summary(self) -> dict:
        """The search as plain values for a JSON file."""
        scores = [asdict(crf) | {"mean_iou": score} for crf, score in self.mean_iou.items()]
        return {"images": self.images, "without": self.without, "best": asdict(self.best), "scores": scores}


def candidates(base: CRF, grid: dict[str, Sequence[float]]) -> list[CRF]:
    """All combinations of the values in `grid`; other parameters come from `base`."""
    return [CRF(**asdict(base) | dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]


def sample(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """At most `count` random items, in the order of the list.

    The authors' sample, drawn with MATLAB's generator, is a different one. Raises InputError for a count below 1 or an
    item without a label file.
    """
    if count < 1:
        raise InputError(f"The search has {count} images; it needs at least 1.")
    chosen = np.random.default_rng(seed).permutation(len(items))[:count]
    picked = [items[i] for i in np.sort(chosen)]
    for item in picked:
        if item.label is None:
            raise InputError(f"{item.image} has no label file: search on a list with labels.")
    return picked


def search(
    model: nn.Module,
    items: Sequence[Item],
    crfs: Sequence[CRF],
    *,
    pad_to: int = 513,
    classes: Sequence[str] = (),
    workers: int = 1,
) -> Search:
    """Scores `model` on `items` with each of `crfs`; shows a progress bar.

    The net segments each image once; then `workers` threads refine its scores. Outputs named 'void' in `classes` are
    excluded from means. Raises InputError naming a bad file.
    """
    segmenter = Segmenter(model, pad_to=pad_to)
    void = [label for label, name in enumerate(classes) if name == VOID]
    without, *refined = (ConfusionMatrix(model.num_classes, void) for _ in range(len(crfs) + 1))
    with (
        threads(workers) as pool,
        Progress(title="refining", unit="CRF", total=len(items) * len(crfs)) as progress,
    ):
        for item in items:
            image, truth = read_pair(item, model.num_classes)
            segmentation = segmenter(image, scores=True, order="bgr")
            without.update(truth, segmentation.labels)

            def score(crf: CRF, confusion: ConfusionMatrix, image=image, truth=truth, unrefined=segmentation) -> None:
                confusion.update(truth, unrefined.refined(image, crf, threads=1).labels)

            for _ in pool.map(score, crfs, refined):
                progress.update()
    if not without.pixels:
        raise InputError(f"{NO_PIXEL}: search on other images.")
    means = [confusion.mean_iou for confusion in refined]
    return Search(len(items), without.mean_iou, dict(zip(crfs, means, strict=True)))
