"""What a run displays: its progress, and lines in its log."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a2s_repro.runtime.devices import peak_memory
from a2s_repro.runtime.distributed import is_main
from a2s_repro.runtime.progress import Progress
from a2s_repro.training.run_log import OnEvent, RunLog
from a2s_repro.training.trainer import Trainer


class Display:
    """Progress and log of a run, in the first process alone.

    Losses, learning rate and speed are displayed every `recipe.display` iterations and at the last.
    """

    def __init__(self, trainer: Trainer, folder: str | os.PathLike, on_event: OnEvent | None = None) -> None:
        self._trainer, recipe = trainer, trainer.recipe
        self._log = RunLog(folder, trainer.iteration, on_event) if is_main() else None
        self._progress: Progress = Progress(
            title=Path(folder).name, total=recipe.max_iter, initial=trainer.iteration, shown=is_main()
        )
        self._since, self._shown = time.monotonic(), trainer.iteration - 1
        self._score = ""

    @property
    def validations(self) -> Sequence[dict[str, Any]]:
        """The log's lines of validations; none but in the first process."""
        return self._log.validations if self._log else ()

    @property
    def is_due(self) -> bool:
        """Whether this iteration is displayed: the same in every process."""
        iteration, recipe = self._trainer.iteration, self._trainer.recipe
        return iteration % recipe.display == 0 or iteration + 1 >= recipe.max_iter

    def show(self) -> None:
        """Call it after the passes of an iteration that `is_due`, before its update."""
        iteration, recipe = self._trainer.iteration, self._trainer.recipe
        if not self._log:
            return
        seconds = time.monotonic() - self._since
        images_per_second = (iteration - self._shown) * recipe.batch_size * recipe.iter_size / seconds
        self._since, self._shown = time.monotonic(), iteration
        losses, lr = self._trainer.smoothed(), self._trainer.rate(iteration)
        epoch, memory = self._trainer.epoch, peak_memory(self._trainer.device)
        self._log.write(iteration, epoch, losses, lr, images_per_second, seconds, memory)
        terms = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
        self._progress.show(f"epoch {epoch:.3g}, {images_per_second:.1f} images/s, {terms}, lr {lr:.1e}{self._score}")

    def validated(
        self, iteration: int, scores: dict[str, Any], is_best: bool, seconds: float, pictures: dict[str, np.ndarray]
    ) -> None:
        """Shows the scores of a validation (see `RunLog.write_validation`), whose time is not the training's."""
        self._since += seconds
        self._log.write_validation(iteration, scores, seconds, pictures)
        if scores["mean_iou"] is not None:
            self._score = f", mIoU {100 * scores['mean_iou']:.2f} %"
            accuracy = f"pixel accuracy {100 * scores['pixel_accuracy']:.2f} %"
            self._progress.show(f"validation{self._score}, {accuracy}{', the best so far' * is_best}")

    def advance(self) -> None:
        """Call it after every update."""
        self._progress.update()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__()
        if self._log:
            self._log.close()
