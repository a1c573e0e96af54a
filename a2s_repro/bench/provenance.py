"""Provenance of a measured figure: the machine, the versions, and a hash of the native sources."""

import datetime
import hashlib
import os
import platform
import subprocess
from pathlib import Path

import torch

from a2s_repro.errors import InputError

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def sources_hash(folder: Path = CSRC) -> str:
    """16 hex digits of a hash over the names and contents of all files in `folder`; if it differs, figures are stale.

    Raises:
        InputError: there is no such folder (an installed package has no sources).
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise InputError(f"{folder} holds no sources: run this from a checkout of the project.")
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def provenance() -> dict[str, str | int]:
    """Date, machine and versions of a measurement, as plain values for a JSON file.

    `gpu` and `driver` are "none" if torch finds no GPU.
    """
    gpu = torch.cuda.is_available()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "gpu": torch.cuda.get_device_name() if gpu else "none",
        "driver": _driver() if gpu else "none",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "csrc": sources_hash(),
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
