"""Reads the folder of a training run."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from a2s_repro.checkpoint.trained import load_trained
from a2s_repro.inference.segmenter import Segmenter, class_names, load_model
from a2s_repro.training.config import read_config
from a2s_repro.training.run_log import read_log, read_validations


class RunFolder(NamedTuple):
    """A finished or unfinished run."""

    path: Path
    config: dict[str, Any]
    """Content of config.json, written by `write_config`."""
    log: list[dict[str, Any]]
    """Lines of log.jsonl, written by `run_log.RunLog`, but for validations."""
    validations: list[dict[str, Any]]
    """Lines of validations in log.jsonl."""
    weights: Path
    """Source of the weights: best.pth, else the newest of final.pth and the snapshots."""
    segmenter: Segmenter


def read_run_folder(path: str | os.PathLike, device: str = "cpu") -> RunFolder:
    """Reads a run and builds a segmenter with its net.

    Raises InputError naming the file if the folder is not a run's, a file is damaged, or there are no weights yet.
    """
    path = Path(path)
    config, has_log = read_config(path), (path / "log.jsonl").exists()
    log, validations = (read(path) if has_log else [] for read in (read_log, read_validations))
    trained = load_trained(path)
    model, meta = load_model(trained, device)
    segmenter = Segmenter(model, class_names(model.num_classes, meta), meta)
    return RunFolder(path, config, log, validations, trained.file, segmenter)
