"""Scores a run's net on a list of images and writes the report page."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from a2s_repro.analysis.report.examples import example
from a2s_repro.analysis.report.page import render
from a2s_repro.analysis.report.run_folder import read_run_folder
from a2s_repro.data.lists import VOID, Item, read_list, select
from a2s_repro.errors import InputError
from a2s_repro.files import replacing
from a2s_repro.inference.evaluation import ConfusionMatrix, Result, evaluate
from a2s_repro.inference.segmenter import Segmentation, Segmenter
from a2s_repro.runtime.progress import Progress


def write_report(
    folder: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    data_root: str | os.PathLike | None = None,
    list_file: str | os.PathLike | None = None,
    label_dir: str | None = None,
    pad_to: int | None = None,
    ids: Sequence[str] = (),
    count: int = 6,
    device: str = "cpu",
) -> Path:
    """Writes the page of a run to `out` (default: report.html in the run's folder) and returns its path.

    Defaults come from the run: `data_root`, the list (the run's evaluation list, else its recipe's) and `pad_to`, the
    minimum side to which images are padded. The explorer shows the images `ids`, the `count` images with the lowest IoU
    and the `count` with the highest. Shows a progress bar.

    Raises InputError if the folder is not a run's or has no weights yet, and for bad files of the data set.
    """
    if count < 0:
        raise InputError(f"count is {count}: give a number of best and worst images of at least 0.")
    run = read_run_folder(folder, device)
    settings, recipe = run.config["run"], run.config["recipe"]
    segmenter = dataclasses.replace(run.segmenter, pad_to=recipe["test_crop"] if pad_to is None else pad_to)
    root = Path(data_root or settings["data_root"])
    named = list_file or settings["val_list"]
    list_file = Path(named or root / recipe["evaluation_set"])
    if not named and not list_file.exists():
        raise InputError(f"{run.path} names no evaluation list, and there is no {list_file}: give one with --list.")
    items = read_list(list_file, root, label_dir=label_dir)
    chosen = [items.index(item) for item in select(items, list(ids))]

    result, ious = _score(segmenter, items)
    groups = {"chosen": chosen, **_extremes(ious, count)}
    shown = [(group, index) for group, indices in groups.items() for index in indices]
    examples = [
        (group, example(segmenter, items[index], ious[index])) for group, index in Progress(shown, "exploring", "image")
    ]
    out = Path(out or run.path / "report.html")
    with replacing(out) as temporary:
        temporary.write_text(render(run, list_file, result, examples), encoding="utf-8")
    return out


def _score(segmenter: Segmenter, items: Sequence[Item]) -> tuple[Result, list[float | None]]:
    """Scores of the set, and the IoU of each image, as defined by `Example.iou`."""
    ious: list[float | None] = []

    def keep_iou(_: Item, __: np.ndarray, truth: np.ndarray, segmentation: Segmentation) -> None:
        own = ConfusionMatrix(len(segmenter.classes))
        own.update(truth, segmentation.labels)
        occurring = [label for label in counted if own.counts[label].any() or own.counts[:, label].any()]
        ious.append(float(own.iou[occurring].mean()) if occurring else None)

    counted = [label for label, name in enumerate(segmenter.classes) if name != VOID]
    result = evaluate(segmenter.model, items, pad_to=segmenter.pad_to, classes=segmenter.classes, seen=keep_iou)
    return result, ious


def _extremes(ious: Sequence[float | None], count: int) -> dict[str, list[int]]:
    """Indices of the images with the lowest and the highest IoU; the groups are disjoint."""
    ranked = sorted((index for index, iou in enumerate(ious) if iou is not None), key=lambda index: ious[index])
    worst = ranked[: min(count, (len(ranked) + 1) // 2)]
    best = ranked[len(worst) :][::-1][:count]
    return {"lowest IoU": worst, "highest IoU": best}
