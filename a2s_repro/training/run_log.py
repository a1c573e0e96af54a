"""What a training run writes down: `config.json` at its start, `log.jsonl` and TensorBoard events as it goes."""

import errno
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from a2s_repro.errors import InputError
from a2s_repro.files import is_at, replacing
from a2s_repro.info import info


def write_config(folder: str | os.PathLike, settings: dict[str, Any]) -> None:
    """Writes `config.json`: the settings, the command line, the versions of everything and the commit if known."""
    origin = {"argv": sys.argv, "versions": info(), "git_commit": git_commit()}
    with replacing(Path(folder) / "config.json") as temporary:
        temporary.write_text(json.dumps(settings | origin, indent=1) + "\n")


def git_commit() -> str | None:
    """The commit of this package's checkout, with `-dirty` if it was changed; None if it is not in one."""
    package = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", package, *arguments], capture_output=True, check=True, text=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


class RunLog:
    """Appends a line per display to `log.jsonl` in a run's folder and the same values to `tensorboard/`.

    A line is {"iteration", "losses": {name: value, ...}, "total", "lr", "images_per_second", "seconds" since the line
    before, "peak_memory" of the process in bytes}. Opening the log of a run that is resumed at iteration `start` drops
    the lines that the run will write again. Lines for which the disk has no room wait until it has; what TensorBoard
    should have had meanwhile is lost.
    """

    def __init__(self, folder: str | os.PathLike, start: int) -> None:
        path = Path(folder) / "log.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _iteration(line) < start]
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self._waiting = b""
        self._folder = Path(folder) / "tensorboard"
        self._events: SummaryWriter | None = None

    def write(
        self,
        iteration: int,
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
        line = {"iteration": iteration, "losses": losses, "total": total, "lr": lr}
        line |= {"images_per_second": round(images_per_second, 3), "seconds": round(seconds, 3)}
        self._append(json.dumps(line | {"peak_memory": peak_memory}) + "\n")
        values = {f"loss/{name}": value for name, value in losses.items()}
        values |= {"loss/total": total, "lr": lr, "images_per_second": images_per_second}
        self._show(values, iteration)

    def _append(self, line: str) -> None:
        if not is_at(self._file.name, self._file.fileno()):
            raise InputError(
                f"{self._file.name} is gone: the folder of the run was removed or replaced while the run went on."
            )
        end = self._file.seek(0, os.SEEK_END)
        before, self._waiting = self._waiting, self._waiting + line.encode()
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

    def _show(self, values: dict[str, float], iteration: int) -> None:
        try:
            self._events = self._events or SummaryWriter(self._folder, purge_step=iteration)
            for name, value in values.items():
                self._events.add_scalar(name, value, iteration)
        except OSError:  # the writer has ended with it
            self._events = None

    def close(self) -> None:
        self._file.close()
        if self._events:
            with suppress(OSError):
                self._events.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The whole lines of a run's log, up to the first that a crash has cut short or that is of another program.

    Raises FileNotFoundError without a log.
    """
    lines = []
    for text in (Path(folder) / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not _is_line(line):
            break
        lines.append(line)
    return lines


_NUMBERS = ("iteration", "total", "lr", "seconds", "peak_memory")


def _is_line(line: Any) -> bool:
    losses = line.get("losses") if isinstance(line, dict) else None
    if not isinstance(losses, dict) or not losses:
        return False
    return all(isinstance(value, int | float) for value in (*losses.values(), *(line.get(key) for key in _NUMBERS)))


class Cost(NamedTuple):
    """What a run took, over all its sessions."""

    seconds: float
    peak_memory: int
    """Bytes."""


def cost(folder: str | os.PathLike) -> Cost:
    """What the training in a run's folder took, by its log."""
    lines = read_log(folder)
    return Cost(sum(line["seconds"] for line in lines), max((line["peak_memory"] for line in lines), default=0))


def _iteration(line: str) -> float:
    """The iteration of a line; a line that was cut short by a crash comes last."""
    try:
        iteration = json.loads(line)["iteration"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return float("inf")
    return iteration if isinstance(iteration, int | float) else float("inf")
