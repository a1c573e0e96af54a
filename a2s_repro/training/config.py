"""`config.json` in a run's folder: all that the run was started with, so that it goes on from its folder alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from a2s_repro.checkpoint.trained import CONFIG
from a2s_repro.errors import InputError
from a2s_repro.files import replacing
from a2s_repro.info import info

PATHS = ("data_root", "init", "train_list", "val_list", "classes")
"""Settings of a run that are paths."""
OF_THE_SESSION = ("out", "resume", "processes", "together")
"""Settings that a resumed run does not take over."""


def write_config(folder: str | os.PathLike, settings: dict[str, Any]) -> None:
    """Writes `config.json`: the settings, the command line, the versions of everything and the commit if known."""
    origin = {"argv": sys.argv, "working_folder": os.getcwd(), "versions": info(), "git_commit": git_commit()}
    with replacing(Path(folder) / CONFIG) as temporary:
        temporary.write_text(json.dumps(settings | origin, indent=1) + "\n")


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The content of a run's `config.json`. Raises InputError, naming the file, if it is missing or another."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing: give the folder of a run (its --out).") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not a JSON file: give the folder of another run.") from None
    if not isinstance(config, dict) or not {"recipe", "model", "classes", "run"} <= config.keys():
        raise InputError(f"{path} does not describe a training run: give the folder of a run (its --out).")
    return config


def run_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings in a `config`, as fields of Run. Relative paths start where the run was started, if they exist."""
    settings = {name: value for name, value in config["run"].items() if name not in OF_THE_SESSION}
    start = Path(config.get("working_folder") or ".")
    for name in PATHS:
        if settings.get(name) is not None:
            there = start / settings[name]
            settings[name] = there if there.exists() else Path(settings[name])
    return settings


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
