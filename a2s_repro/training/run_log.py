"""What a training run writes down as it goes: `log.jsonl` and TensorBoard events."""

import errno
import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from a2s_repro.errors import InputError
from a2s_repro.files import is_at, replacing

SCORES_IN_LOG = ("images", "mean_iou", "pixel_accuracy", "mean_class_accuracy", "iou", "attention")
"""Parts of `evaluation.Result.summary` in the log's lines of validations."""


OnEvent = Callable[[dict[str, Any]], object]
"""Gets every line of a run's log as it is written, in the first process: to pass it on to another program."""


class RunLog:
    """Appends a line per display to `log.jsonl` in a run's folder and the same values to `tensorboard/`.

    A line is {"iteration", "epoch": images seen per image of the list, "losses": {name: value, ...}, "total", "lr",
    "images_per_second", "seconds" since the line before, "peak_memory" of the process in bytes}, or of a validation
    {"iteration": number of updates made, "validation": scores as fractions, "seconds"}. Opening the log of a run that
    is resumed at iteration `start` drops the lines that the run will write again. Lines for which the disk has no room
    wait until it has; what TensorBoard should have had meanwhile is lost.

    Args:
        on_event: is called with every line, as a dict.

    Attributes:
        validations: the lines of validations.
    """

    def __init__(self, folder: str | os.PathLike, start: int, on_event: OnEvent | None = None) -> None:
        path = Path(folder) / "log.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _is_before(line, start)]
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))
        self.validations = read_validations(folder)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self._waiting = b""
        self._on_event = on_event
        self._events = _Events(Path(folder) / "tensorboard")
        self._validation_events = _Events(Path(folder) / "tensorboard" / "validation")

    def write(
        self,
        iteration: int,
        epoch: float,
        losses: dict[str, float],
        lr: float,
        images_per_second: float,
        seconds: float,
        peak_memory: int,
    ) -> None:
        """Writes down the losses (smoothed), their sum and the rate of the update numbered `iteration` from 0.

        seconds: since the last line. peak_memory: in bytes. Raises InputError if the log was removed.
        """
        total = sum(losses.values())
        line = {"iteration": iteration, "epoch": round(epoch, 4), "losses": losses, "total": total, "lr": lr}
        line |= {"images_per_second": round(images_per_second, 3), "seconds": round(seconds, 3)}
        self._append(line | {"peak_memory": peak_memory})
        values = {f"loss/{name}": value for name, value in losses.items()}
        values |= {"loss/total": total, "lr": lr, "epoch": epoch, "images_per_second": images_per_second}
        self._events.show(values, iteration)

    def write_validation(
        self, iteration: int, scores: dict[str, Any], seconds: float, pictures: dict[str, np.ndarray]
    ) -> None:
        """Writes down the scores, in the form of `evaluation.Result.summary`, of the net after `iteration` updates.

        pictures: (H, W, 3) uint8 BGR, for TensorBoard alone.
        """
        kept = {name: scores[name] for name in SCORES_IN_LOG}
        line = {"iteration": iteration, "validation": kept, "seconds": round(seconds, 3)}
        self.validations.append(line)
        self._append(line)
        values = {"mIoU": kept["mean_iou"], "pixel accuracy": kept["pixel_accuracy"]}
        values |= {f"IoU/{name}": iou for name, iou in kept["iou"].items()}
        if attention := kept["attention"]:
            for statistic in ("mean", "std"):
                scales = zip(attention["scales"], attention[statistic], strict=True)
                values |= {f"attention/{statistic} at scale {scale:g}": value for scale, value in scales}
        values = {name: value for name, value in values.items() if value is not None}
        self._validation_events.show(values, iteration, pictures)

    def _append(self, line: dict[str, Any]) -> None:
        if not is_at(self._file.name, self._file.fileno()):
            raise InputError(
                f"{self._file.name} is gone: the folder of the run was removed or replaced while the run went on."
            )
        end = self._file.seek(0, os.SEEK_END)
        before, self._waiting = self._waiting, self._waiting + f"{json.dumps(line)}\n".encode()
        try:
            if self._file.write(self._waiting) < len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            if not before:
                tqdm.write(f"{self._file.name} cannot be written now ({error.strerror}): its lines wait.")
        else:
            self._waiting = b""
        if self._on_event is not None:
            self._on_event(line)

    def close(self) -> None:
        self._file.close()
        self._events.close()
        self._validation_events.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Events:
    """TensorBoard events in a folder. The first one of a session replaces those of its iteration and later ones.

    What the disk has no room for is lost in silence: TensorBoard's thread ends with the error, and the next events come
    from a new one.
    """

    def __init__(self, folder: Path) -> None:
        threading.excepthook = _without_tensorboards_errors
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def show(self, values: dict[str, float], iteration: int, pictures: dict[str, np.ndarray] | None = None) -> None:
        try:
            self._writer = self._writer or SummaryWriter(self._folder, purge_step=iteration)
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)
            for name, picture in (pictures or {}).items():
                self._writer.add_image(name, picture[..., ::-1].copy(), iteration, dataformats="HWC")
        except OSError:  # the writer has ended with it
            self._writer = None

    def close(self) -> None:
        if self._writer:
            with suppress(OSError):
                self._writer.close()


_hook_of_the_program = threading.excepthook


def _without_tensorboards_errors(end: threading.ExceptHookArgs) -> None:
    """Prints how a thread ended, unless it is TensorBoard's and could not write."""
    if not (isinstance(end.exc_value, OSError) and type(end.thread).__module__.startswith("tensorboard.")):
        _hook_of_the_program(end)


def read_log(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's log without those of validations. Raises FileNotFoundError without a log.

    They end before the first that a crash has cut short or that is of another program.
    """
    return [line for line in _whole_lines(folder) if "losses" in line]


def read_validations(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of validations in a run's log. Raises FileNotFoundError without a log."""
    return [line for line in _whole_lines(folder) if "validation" in line]


def best_of(validations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Iteration and mIoU, a fraction, of the first validation with the highest one; None if none has a score."""
    scored = [
        {"iteration": line["iteration"], "mean_iou": line["validation"]["mean_iou"]}
        for line in validations
        if line["validation"]["mean_iou"] is not None
    ]
    return max(scored, key=lambda scores: scores["mean_iou"], default=None)


def _whole_lines(folder: str | os.PathLike) -> list[dict[str, Any]]:
    lines = []
    for text in (Path(folder) / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not (_is_line(line) or _is_validation(line)):
            break
        lines.append(line)
    return lines


_NUMBERS = ("iteration", "total", "lr", "seconds", "peak_memory")


def _is_line(line: Any) -> bool:
    losses = line.get("losses") if isinstance(line, dict) else None
    if not isinstance(losses, dict) or not losses:
        return False
    return all(isinstance(value, int | float) for value in (*losses.values(), *(line.get(key) for key in _NUMBERS)))


def _is_validation(line: Any) -> bool:
    scores = line.get("validation") if isinstance(line, dict) else None
    if not isinstance(scores, dict) or not isinstance(line.get("iteration"), int):
        return False
    iou = scores.get("iou")
    return isinstance(iou, dict) and all(
        isinstance(value, int | float | None)
        for value in (scores.get("mean_iou", ""), scores.get("pixel_accuracy", ""), *iou.values())
    )


class Cost(NamedTuple):
    """What a run took, over all its sessions."""

    seconds: float
    peak_memory: int
    """Bytes."""


def cost(folder: str | os.PathLike) -> Cost:
    """What the training in a run's folder took, by its log, without validations."""
    lines = read_log(folder)
    return Cost(sum(line["seconds"] for line in lines), max((line["peak_memory"] for line in lines), default=0))


def _is_before(text: str, start: int) -> bool:
    """Whether a line tells of updates before `start`, or of the net with which `start` begins."""
    try:
        line = json.loads(text)
        return line["iteration"] < start + ("validation" in line)
    except (ValueError, TypeError, KeyError, RecursionError):  # it was cut short by a crash
        return False
