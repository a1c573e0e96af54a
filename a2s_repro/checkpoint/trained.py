"""The net that training left: a weights file, a snapshot, or a run's folder, which holds several of them."""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from a2s_repro.checkpoint.snapshots import Snapshot, is_snapshot, load_newest, load_snapshot, newest_snapshot
from a2s_repro.checkpoint.weights import Weights, load_weights, stored_format
from a2s_repro.errors import InputError
from a2s_repro.runtime.distributed import tell

BEST, FINAL, CONFIG = "best.pth", "final.pth", "config.json"
"""Files in a run's folder: the weights of the best validation, those of the last iteration, and the settings."""


class Trained(NamedTuple):
    """Weights of a net, and the file that holds them."""

    file: Path
    weights: Weights


def load_trained(path: str | os.PathLike) -> Trained:
    """Reads a weights file, a training snapshot, or the weights in a run's folder, to the CPU.

    A folder stands for its best.pth or, where nothing was validated, for the newest of final.pth and the intact
    snapshots; a line on stderr names the file. Raises InputError as `load_weights` and `load_newest`, and if the folder
    holds no weights.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".pth" and is_snapshot(path):
        return _of_snapshot(path, load_snapshot(path))
    return Trained(path, load_weights(path))


def is_trained(path: str | os.PathLike) -> bool:
    """Whether `load_trained` takes a file or folder; False for a damaged file and for another program's state dict."""
    return Path(path).is_dir() or stored_format(path) is not None


def _of_folder(folder: Path) -> Trained:
    if (folder / BEST).exists():
        trained = Trained(folder / BEST, load_weights(folder / BEST))
    elif (folder / FINAL).exists() and not _has_later_snapshot(folder, final := load_weights(folder / FINAL)):
        trained = Trained(folder / FINAL, final)
    elif newest := load_newest(folder):
        file, snapshot, refused = newest
        for sentence in refused:
            tell(sentence, sys.stderr)
        trained = _of_snapshot(file, snapshot)
    else:
        raise InputError(f"{folder} holds neither {FINAL} nor a snapshot yet: continue training, or lower --snapshot.")
    tell(f"{folder}: {trained.file.name}{_remark(trained.weights.meta)}", sys.stderr)
    return trained


def _has_later_snapshot(folder: Path, final: Weights) -> bool:
    """Whether a run that was finished has gone on since."""
    newest, iteration = newest_snapshot(folder), final.meta.get("iteration")
    return bool(newest and isinstance(iteration, int) and int(newest.stem.rpartition("_")[2]) > iteration)


def _remark(meta: dict[str, Any]) -> str:
    """The iteration of weights and the score of their validation, as far as their file has them."""
    parts = [f"iteration {meta['iteration']}"] if "iteration" in meta else []
    score = meta.get("mean_iou")
    parts += [f"mIoU {100 * score:.2f} % in validation"] if isinstance(score, float) else []
    return f" ({', '.join(parts)})" if parts else ""


def _of_snapshot(file: Path, snapshot: Snapshot) -> Trained:
    """A snapshot's weights; snapshots of version 0.1 are described by the config.json beside them."""
    meta = snapshot.meta
    if not meta:
        try:
            config = json.loads((file.parent / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            config = None
        if not isinstance(config, dict) or "model" not in config:
            raise InputError(f"{file} does not describe its net: put the {CONFIG} of its run beside it.")
        meta = {name: config[name] for name in ("model", "classes", "recipe") if name in config}
    return Trained(file, Weights(snapshot.model, {**meta, "iteration": snapshot.iteration}))
