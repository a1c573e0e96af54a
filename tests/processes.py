"""Training runs in separate processes, forked quickly from a server that has already imported the package."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch

from a2s_repro.caffe.conversion import from_caffe, random_init
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.commands.run import run as run_command
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.models import Widths
from a2s_repro.recipes import Recipe
from a2s_repro.training import Run, train

WIDTH = 1 / 32

RECIPE = Recipe(
    "tests/attention2_esupv",
    num_classes=len(CLASSES),
    classifier="fc8",
    scales=(1, 0.5),
    merge="attention",
    extra_supervision=True,
    width=WIDTH,
    crop=65,
    test_crop=65,
    batch_size=2,
    iter_size=2,
    max_iter=20,
    display=1,
)


def make_files(root: Path, num_train: int = 8) -> dict[str, Path]:
    """Options of a run: a small data set and thin initial weights."""
    make_demo_data(root, num_train=num_train, num_val=2)
    weights = from_caffe(random_init(Widths().scaled(WIDTH), seed=0), "init").weights
    save_weights(root / "init.pth", weights.state_dict, weights.meta)
    lists = root / "ImageSets" / "Segmentation"
    return {
        "data_root": root,
        "init": root / "init.pth",
        "train_list": lists / "train.txt",
        "val_list": lists / "val.txt",
        "classes": root / "classes.txt",
    }


def start(recipe: Recipe, run: Run, ranks: int = 1, task: Callable = train) -> list[multiprocessing.Process]:
    """Starts `task(recipe, run)` in `ranks` processes with torchrun's environment.

    stdout and stderr of all go to `run.out`.txt. They exit with the status of the commands.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.processes"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_body, args=(task, recipe, run, rank, ranks, port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[multiprocessing.Process]) -> list[int]:
    """Joins processes and returns their exit codes; minus the signal's number for a killed process."""
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def _body(task: Callable, recipe: Recipe, run: Run, rank: int, ranks: int, port: int) -> None:
    output = os.open(f"{run.out}.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # the default for the loader's workers
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}

    def main() -> int:
        outcome = task(recipe, run)
        return 128 + outcome.interrupted if outcome.interrupted else 0

    run_command(main)
