"""Training snapshots: everything that a run needs to go on as if it had never stopped."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch

from a2s_repro.checkpoint.weights import is_stored
from a2s_repro.errors import InputError
from a2s_repro.files import check_archive, replacing

FORMAT = "a2s_repro.snapshot/1"


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state between two updates; only tensors and plain values.

    The place in the data and in dropout is not in it: both are functions of the seed and the number of the pass, which
    is that of updates since `start` times iter_size. Only Caffe's streams, where data and dropout draw in turn from one
    generator, keep their place, in `random`.
    """

    iteration: int
    """Updates done."""
    model: dict[str, torch.Tensor]
    solver: dict[str, Any]
    """The solver's state dict: histories and groups."""
    random: dict[str, Any]
    """The state of a run on Caffe's streams as "caffe"; else empty."""
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


def snapshots(folder: str | os.PathLike) -> list[Path]:
    """The snapshots in a run's folder, the one of most iterations first."""
    found = (re.fullmatch(r"snapshot_iter_(\d+)\.pth", path.name) for path in Path(folder).glob("snapshot_iter_*.pth"))
    return [snapshot_path(folder, n) for n in sorted((int(match[1]) for match in found if match), reverse=True)]


def newest_snapshot(folder: str | os.PathLike) -> Path | None:
    """The snapshot of most iterations in a run's folder; None if it has none."""
    return next(iter(snapshots(folder)), None)


def save_snapshot(path: str | os.PathLike, snapshot: Snapshot, keep: int | None = None) -> None:
    """Writes a snapshot, with a checksum of every part; a file of that name is replaced only by a whole one.

    keep: this one and as many before it as make up the number stay in the folder; all of them by default. None is
    removed before the new one is whole. Raises InputError if it cannot be written, as on a full disk.
    """
    content = {field.name: getattr(snapshot, field.name) for field in dataclasses.fields(snapshot)}
    try:
        with replacing(path) as temporary:
            torch.save({"format": FORMAT, **content}, temporary)
    except (OSError, RuntimeError) as error:  # the latter is how torch reports a failed write
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{path} cannot be written ({reason}): is the disk full?") from error
    if keep is not None:
        until_here = [old for old in snapshots(Path(path).parent) if _iteration(old) <= snapshot.iteration]
        for old in until_here[keep:]:
            old.unlink()


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
    if not _is_sound(content):
        raise InputError(f"{path} lacks parts of a snapshot or has others: resume from another.")
    return Snapshot(**content)


def load_newest(folder: str | os.PathLike) -> tuple[Path, Snapshot, list[str]] | None:
    """The newest snapshot in a run's folder that is whole, its path, and a sentence for each newer one that is not.

    None if there is no snapshot. Raises InputError if there are some and none is whole.
    """
    refused = []
    for path in snapshots(folder):
        try:
            return path, load_snapshot(path), refused
        except InputError as error:
            refused.append(str(error))
    if refused:
        raise InputError(f"no snapshot in {folder} is whole: remove them and log.jsonl to start anew. {refused[0]}")
    return None


def _is_sound(content: dict) -> bool:
    kinds = get_type_hints(Snapshot)
    required = {field.name for field in dataclasses.fields(Snapshot) if field.default is dataclasses.MISSING}
    return (
        required <= set(content) <= set(kinds)
        and all(isinstance(value, get_origin(kinds[name]) or kinds[name]) for name, value in content.items())
        and all(isinstance(tensor, torch.Tensor) and is_stored(tensor) for tensor in content["model"].values())
    )


def _iteration(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])
