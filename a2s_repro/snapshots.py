"""Training snapshots: everything that a run needs to go on as if it had never stopped."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import torch

from a2s_repro.errors import InputError
from a2s_repro.files import check_archive, replacing

FORMAT = "a2s_repro.snapshot/1"


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state between two updates; only tensors and plain values.

    The data position is not in it: the data is a function of the seed and the batch number, which is the number of
    updates since `start` times iter_size. Only Caffe's streams, where data and dropout draw in turn from one generator,
    keep their place, in `random`.
    """

    iteration: int
    """Updates done."""
    model: dict[str, torch.Tensor]
    solver: dict[str, Any]
    """The solver's state dict: histories and groups."""
    random: dict[str, Any]
    """States of torch's generators, as `random_state` gives them, and of a run on Caffe's streams as "caffe"."""
    losses: list[dict[str, float]]
    """The losses of the last iterations, over which the displayed ones are averaged."""
    config: dict[str, Any]
    """What determines the run; a snapshot only continues a run of the same."""
    start: int = 0
    """Updates that Caffe had done when this run took over from it."""

    @property
    def has_slots(self) -> bool:
        """Whether every sharing copy has a history of its own."""
        return not all(group["owner"] for group in self.solver["param_groups"])


def snapshot_path(folder: str | os.PathLike, iteration: int) -> Path:
    return Path(folder) / f"snapshot_iter_{iteration}.pth"


def newest_snapshot(folder: str | os.PathLike) -> Path | None:
    """The snapshot of most iterations in a run's folder; None if it has none."""
    found = (re.fullmatch(r"snapshot_iter_(\d+)\.pth", path.name) for path in Path(folder).glob("snapshot_iter_*.pth"))
    iterations = [int(match[1]) for match in found if match]
    return snapshot_path(folder, max(iterations)) if iterations else None


def save_snapshot(path: str | os.PathLike, snapshot: Snapshot) -> None:
    """Writes a snapshot; a file of that name is replaced only by a whole one. Raises InputError on a full disk."""
    content = {field.name: getattr(snapshot, field.name) for field in dataclasses.fields(snapshot)}
    with replacing(path) as temporary:
        try:
            torch.save({"format": FORMAT, **content}, temporary)
        except RuntimeError as error:  # how torch reports a failed write
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(f"{path} cannot be written ({reason}): is the disk full?") from error


def is_snapshot(path: str | os.PathLike) -> bool:
    """Whether a file says that it is a snapshot; a damaged one does not."""
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # the unpickler raises nearly anything on a damaged file
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def load_snapshot(path: str | os.PathLike) -> Snapshot:
    """Reads a snapshot onto the CPU. Raises InputError for a damaged or another file, OSError for a missing one."""
    with open(path, "rb"):  # a missing or unreadable file is an OSError that names it
        pass
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on a damaged file
        raise InputError(f"{path} cannot be read: the file is damaged or no snapshot; resume from another.") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InputError(f"{path} is not a training snapshot (format {FORMAT!r}): give a snapshot_iter_*.pth.")
    return Snapshot(**content)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's generators on the CPU and on `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts back what `random_state` gave. A snapshot from another kind of device restores the CPU's generator only."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
