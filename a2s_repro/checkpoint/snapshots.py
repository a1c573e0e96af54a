"""Training snapshots: the complete state for resuming a run with identical results."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from a2s_repro.checkpoint.weights import is_stored, stored_format
from a2s_repro.errors import InputError, not_written
from a2s_repro.files import check_archive, refuse_foreign, replacing
from a2s_repro.models import check_state
from a2s_repro.solver import CaffeSGD, TorchSGD

FORMAT = "a2s_repro.snapshot/1"


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a run between two updates, as tensors and plain values.

    The positions in the data and in the dropout masks are not stored: both are functions of the seed and the pass
    number, which is (`iteration` - `start`) * iter_size. Only with Caffe's streams, where data and dropout share one
    generator, the position is stored in `random`.
    """

    iteration: int
    """Number of updates made."""
    model: dict[str, torch.Tensor]
    solver: dict[str, Any]
    """State dict of the solver: histories and groups."""
    random: dict[str, Any]
    """State of Caffe's streams under the key "caffe"; empty without them."""
    losses: list[dict[str, float]]
    """Losses of the last iterations, which enter the displayed average."""
    config: dict[str, Any]
    """Settings that determine the run; a snapshot resumes only a run with equal settings."""
    start: int = 0
    """Number of updates made by Caffe before this run took over."""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The net's description, as in a weights file; empty in snapshots of version 0.1."""

    @property
    def has_slots(self) -> bool:
        """Whether every sharing copy has its own history."""
        return not all(group["owner"] for group in self.solver["param_groups"])


def snapshot_path(folder: str | os.PathLike, iteration: int) -> Path:
    return Path(folder) / f"snapshot_iter_{iteration}.pth"


def snapshots(folder: str | os.PathLike) -> list[Path]:
    """The snapshots in a run's folder, the latest first."""
    names = (re.fullmatch(r"snapshot_iter_(\d+)\.pth", path.name) for path in Path(folder).glob("snapshot_iter_*.pth"))
    return [snapshot_path(folder, n) for n in sorted((int(match[1]) for match in names if match), reverse=True)]


def newest_snapshot(folder: str | os.PathLike) -> Path | None:
    """The latest snapshot in a run's folder, or None."""
    return next(iter(snapshots(folder)), None)


def save_snapshot(path: str | os.PathLike, snapshot: Snapshot, keep: int | None = None) -> None:
    """Writes a snapshot atomically, with a checksum for every part.

    `keep` limits the snapshots in the folder to this one and the latest before it; older ones are deleted after the new
    one is complete. Default: all are kept. Raises InputError if the file cannot be written, as on a full disk.
    """
    content = {field.name: getattr(snapshot, field.name) for field in dataclasses.fields(snapshot)}
    try:
        with replacing(path) as temporary:
            torch.save({"format": FORMAT, **content}, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        raise not_written(path, error) from error
    if keep is not None:
        up_to_this = [old for old in snapshots(Path(path).parent) if _iteration(old) <= snapshot.iteration]
        for old in up_to_this[keep:]:
            old.unlink()


def is_snapshot(path: str | os.PathLike) -> bool:
    """Whether a file is a snapshot; False for a damaged one."""
    return stored_format(path) == FORMAT


def load_snapshot(path: str | os.PathLike) -> Snapshot:
    """Reads a snapshot to the CPU. Raises InputError if the file is damaged or no snapshot, OSError if missing."""
    refuse_foreign(path)
    if Path(path).suffix in (".caffemodel", ".safetensors"):
        raise InputError(
            f"{path} holds weights alone: resume from the .solverstate beside a .caffemodel or from a "
            "snapshot_iter_*.pth, or start from weights by --init."
        )
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types for a damaged file
        raise InputError(f"{path} cannot be read: the file is damaged or no snapshot; resume from another.") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InputError(
            f"{path} is not a training snapshot (format {FORMAT!r}): give a snapshot_iter_*.pth, or start from weights "
            "by --init."
        )
    if not _is_sound(content):
        raise InputError(f"{path} has missing or unknown parts: resume from another snapshot.")
    return Snapshot(**content)


def load_newest(folder: str | os.PathLike) -> tuple[Path, Snapshot, list[str]] | None:
    """Path and content of the latest intact snapshot in a run's folder, and a sentence for each later damaged one.

    None if there is no snapshot. Raises InputError if all snapshots are damaged.
    """
    refused: list[str] = []
    for path in snapshots(folder):
        try:
            return path, load_snapshot(path), refused
        except InputError as error:
            refused.append(str(error))
    if refused:
        raise InputError(f"all snapshots in {folder} are damaged: remove them and log.jsonl to restart. {refused[0]}")
    return None


def load_into(snapshot: Snapshot, model: nn.Module, solver: CaffeSGD | TorchSGD) -> None:
    """Loads the weights of a snapshot into `model` and its histories into `solver`, the net and the solver of its run.

    Weights and histories are checked first: nothing is loaded of a snapshot that does not fit. The solver keeps the
    multipliers of its own groups. Raises InputError naming the first part that does not fit.
    """
    check_state(model, snapshot.model, "the snapshot")
    groups, theirs = solver.state_dict()["param_groups"], snapshot.solver["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in theirs]:
        raise InputError("the snapshot's solver has other groups of parameters than the net's: resume from another.")
    states, histories = snapshot.solver["state"], {}
    for index, parameter in enumerate(parameter for group in solver.param_groups for parameter in group["params"]):
        if index not in states and not (parameter.requires_grad and snapshot.iteration > snapshot.start):
            continue
        history = states.get(index, {}).get(solver.HISTORY)
        if history is None or not _is_like(history, parameter):
            raise InputError(f"the snapshot's history {index} does not fit its parameter: resume from another.")
        histories[index] = {solver.HISTORY: torch.zeros_like(parameter).copy_(history)}
    if not states.keys() <= histories.keys():
        raise InputError("the snapshot has histories without a parameter: resume from another.")
    model.load_state_dict(snapshot.model)
    solver.load_state_dict({"state": histories, "param_groups": groups})


def _is_like(history: Tensor, parameter: Tensor) -> bool:
    return history.shape == parameter.shape and history.is_floating_point() and bool(history.isfinite().all())


def _is_sound(content: dict) -> bool:
    kinds = get_type_hints(Snapshot)
    required = {field.name for field in dataclasses.fields(Snapshot)} - {"start", "meta"}
    return (
        required <= set(content) <= set(kinds)
        and all(isinstance(value, get_origin(kinds[name]) or kinds[name]) for name, value in content.items())
        and 0 <= content.get("start", 0) <= content["iteration"]
        and _are_tensors(content["model"])
        and _is_solvers(content["solver"])
        and all(isinstance(losses, dict) for losses in content["losses"])
        and all(isinstance(loss, float) for losses in content["losses"] for loss in losses.values())
    )


def _is_solvers(state: dict) -> bool:
    """Whether `state` has the form of a solver's state dict."""
    groups, histories = state.get("param_groups"), state.get("state")
    return (
        isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
        and all(isinstance(group.get("owner"), bool) for group in groups)
        and isinstance(histories, dict)
        and all(isinstance(history, dict) and _are_tensors(history) for history in histories.values())
    )


def _are_tensors(tensors: dict) -> bool:
    return all(isinstance(tensor, Tensor) and is_stored(tensor) for tensor in tensors.values())


def _iteration(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])
