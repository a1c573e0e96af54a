"""What a training run left in its folder."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from a2s_repro.checkpoint.snapshots import load_newest
from a2s_repro.errors import InputError
from a2s_repro.inference.segmenter import Segmenter, load
from a2s_repro.models import build_model
from a2s_repro.runtime.devices import usable_device
from a2s_repro.training.run_log import read_log


class RunFolder(NamedTuple):
    """A run, finished or not."""

    path: Path
    config: dict[str, Any]
    """config.json, as `run_log.write_config` wrote it."""
    log: list[dict[str, Any]]
    """The lines of log.jsonl, as `run_log.RunLog` wrote them."""
    weights: Path
    """What the net was read from: final.pth, or the newest whole snapshot of a run that has none."""
    segmenter: Segmenter


def read_run_folder(path: str | os.PathLike, device: str = "cpu") -> RunFolder:
    """Reads a run and makes its net, ready to segment.

    Raises InputError, naming the file, where the folder is no run's, a file is damaged or there are no weights yet.
    """
    path = Path(path)
    config, log = _read_config(path / "config.json"), read_log(path) if (path / "log.jsonl").exists() else []
    final = path / "final.pth"
    if final.exists():
        return RunFolder(path, config, log, final, load(final, device))
    newest = load_newest(path)
    if newest is None:
        raise InputError(
            f"{path} holds neither final.pth nor a snapshot yet: train it for longer, or lower --snapshot."
        )
    weights, snapshot, _ = newest
    model = build_model(config["model"])
    try:
        model.load_state_dict(snapshot.model)
    except RuntimeError:
        raise InputError(f"{weights} does not fit the net that config.json describes: remove it.") from None
    model = model.to(usable_device(device), memory_format=torch.channels_last)
    return RunFolder(path, config, log, weights, Segmenter(model, config["classes"]))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: give the folder of a run, the --out of its training.") from None
    except ValueError:
        raise InputError(f"{path} is no JSON file: give the folder of another run.") from None
    if not isinstance(config, dict) or not {"recipe", "model", "classes", "run"} <= config.keys():
        raise InputError(f"{path} does not describe a training run: give the --out of a training.")
    return config
