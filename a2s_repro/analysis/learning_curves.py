"""Learning curves of several runs in one figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from a2s_repro.analysis.compare_runs import TrainedRun, rows_of

INCHES = (9, 4)


def learning_curves(runs: Sequence[TrainedRun]) -> Figure:
    """Draws the loss of the merged scores and the validations' mIoU in per cent against the iterations.

    Runs that differ only in the seed make one line, their mean; the mIoU has a band from the least to the greatest. The
    loss is a running mean over a tenth of the log's lines. Runs without validations have no line of the mIoU.
    """
    titles, rows = rows_of(runs)
    figure = Figure(INCHES, layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for number, (head, seeds) in enumerate(rows):
        name = ", ".join(f"{title} {value}" for title, value in zip(titles, head, strict=True) if value)
        style = {"color": f"C{number % 10}", "linewidth": 1.3}
        iterations, values = _aligned([_losses(run) for run in seeds])
        width = max(len(iterations) // 10, 1)
        smooth = np.convolve(values.mean(0), np.full(width, 1 / width), "valid")
        losses.plot(iterations[width - 1 :], smooth, label=name or "all runs", **style)
        iterations, values = _aligned([_scores(run) for run in seeds])
        if len(iterations):
            scores.plot(iterations, values.mean(0), ".-", **style)
            scores.fill_between(iterations, values.min(0), values.max(0), color=style["color"], alpha=0.12, linewidth=0)
    losses.set(xlabel="iteration", ylabel="loss")
    scores.set(xlabel="iteration", ylabel="mIoU in validation, %")
    for axes in (losses, scores):
        axes.grid(linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _losses(run: TrainedRun) -> dict[int, float]:
    """Losses of the merged scores, a net's first, by iteration."""
    return {line["iteration"]: next(iter(line["losses"].values())) for line in run.log}


def _scores(run: TrainedRun) -> dict[int, float]:
    """mIoU in per cent by iteration, without validations that scored no pixel."""
    scores = {line["iteration"]: line["validation"]["mean_iou"] for line in run.validations}
    return {iteration: 100 * score for iteration, score in scores.items() if score is not None}


def _aligned(curves: Sequence[dict[int, float]]) -> tuple[list[int], np.ndarray]:
    """The n iterations that all curves have, and the values there, (curves, n)."""
    common = sorted(set.intersection(*map(set, curves)))
    return common, np.array([[curve[iteration] for iteration in common] for curve in curves])
