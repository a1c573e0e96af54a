"""Validation of a net in training: its scores, its best weights, and pictures."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a2s_repro.checkpoint.trained import BEST
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.lists import Item
from a2s_repro.errors import InputError, not_written
from a2s_repro.files import replacing
from a2s_repro.inference.evaluation import Result, evaluate
from a2s_repro.inference.overlays import attention_panel
from a2s_repro.inference.segmenter import Segmentation
from a2s_repro.runtime.distributed import failing_together, is_main, max_, tell
from a2s_repro.runtime.precision import kernels_chosen_by_trial
from a2s_repro.training.display import Display
from a2s_repro.training.run_log import best_of
from a2s_repro.training.signals import StopRequest
from a2s_repro.training.trainer import Trainer

SCORES = "val.json"
"""File in a run's folder with the scores of the last validation, as `a2s evaluate --json` writes them."""
PICTURES = 3
"""Number of validation images shown in TensorBoard."""


class Validation:
    """Evaluates a run's net every `every` iterations and after the last, and keeps its scores and best weights.

    The scores are those of `evaluate`; the processes of a run share the images. The training is as without validation:
    evaluating draws no random numbers, and changes neither weights nor statistics of the net.

    Args:
        folder: folder of the run, for val.json and best.pth.
        patience: number of validations in a row, none better than the best before, that end the training.

    Attributes:
        last: result of the last validation of this session.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: str | os.PathLike,
        items: Sequence[Item],
        classes: Sequence[str],
        every: int,
        patience: int | None = None,
    ) -> None:
        self._trainer, self._folder, self._items, self._classes = trainer, Path(folder), items, classes
        self._every, self._patience = every, patience
        self.last: Result | None = None

    def is_hopeless(self, display: Display) -> bool:
        """Whether the last `patience` validations were no better than one before them."""
        if self._patience is None:
            return False
        best = best_of(display.validations)
        later = [line for line in display.validations if best and line["iteration"] > best["iteration"]]
        return max_(len(later) >= self._patience) == 1

    def follow(self, display: Display, stop: StopRequest) -> bool:
        """Makes the validation of this iteration, unless it has none or made it before; False if a signal ended it."""
        iteration = self._trainer.iteration
        last = iteration >= self._trainer.recipe.max_iter
        if not iteration or (iteration % self._every and not last):
            return True
        if max_(iteration in [line["iteration"] for line in display.validations]):
            return True
        begin, pictures = time.monotonic(), dict[str, np.ndarray]()

        def keep_picture(item: Item, image: np.ndarray, truth: np.ndarray, segmentation: Segmentation) -> None:
            if is_main() and len(pictures) < PICTURES:
                pictures[item.id] = attention_panel(image, segmentation, self._trainer.model.scales, truth)

        with kernels_chosen_by_trial(False):
            self.last = evaluate(
                self._trainer.model,
                self._items,
                classes=self._classes,
                seen=keep_picture,
                stopped=lambda: stop.signal != 0,
                **self._trainer.recipe.evaluation(),
            )
        self._trainer.model.train()
        if stop.agreed():
            return False
        with failing_together():
            if is_main():
                scores = self.last.summary(self._classes)
                is_best = self._keep(iteration, scores, best_of(display.validations))
                display.validated(iteration, scores, is_best, time.monotonic() - begin, pictures)
        return True

    def _keep(self, iteration: int, scores: dict[str, Any], best: dict[str, Any] | None) -> bool:
        """Writes the scores, and the weights if they are better than the best before; returns whether they are."""
        this = {"iteration": iteration, "mean_iou": scores["mean_iou"]}
        if is_best := this["mean_iou"] is not None and (best is None or this["mean_iou"] > best["mean_iou"]):
            best = this
            meta = {**self._trainer.meta, **this, "source": {"file": str(self._folder), "kind": "trained"}}
            self._write(BEST, lambda path: save_weights(path, self._trainer.model.state_dict(), meta))
        content = {"iteration": iteration, "best": best, **scores}
        self._write(SCORES, lambda path: _write_json(path, content))
        return is_best

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        """Writes a file; training goes on without it if the disk is full."""
        path = self._folder / name
        try:
            write(path)
        except (InputError, OSError) as error:
            tell(f"{error if isinstance(error, InputError) else not_written(path, error)} Training goes on.")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
