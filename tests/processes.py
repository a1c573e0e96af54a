"""Tools and training runs in separate processes, forked quickly from a server that has already imported the package."""

import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401  (for the processes that draw)
import scipy.ndimage  # noqa: F401  (for those that evaluate)
import torch

from a2s_repro.caffe.conversion import from_caffe, random_init
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.commands.run import run as run_command
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.models import Widths
from a2s_repro.recipes import Recipe
from a2s_repro.training import Run, train
from tests.paths import TOOLS

WIDTH = 1 / 32

# The processes inherit what is imported here. An optimiser imports torch's compiler when it is first used.
torch.optim.SGD([torch.zeros(1)]).zero_grad()

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


def make_files(root: Path, num_train: int = 8, validated: bool = False) -> dict[str, Path]:
    """Options of a run: a small data set, with a list to validate on if `validated`, and thin initial weights."""
    make_demo_data(root, num_train=num_train, num_val=2)
    weights = from_caffe(random_init(Widths().scaled(WIDTH), seed=0), "init").weights
    save_weights(root / "init.pth", weights.state_dict, weights.meta)
    lists = root / "ImageSets" / "Segmentation"
    files = {
        "data_root": root,
        "init": root / "init.pth",
        "train_list": lists / "train.txt",
        "classes": root / "classes.txt",
    }
    return files | {"val_list": lists / "val.txt"} if validated else files


class Tool:
    """`python tools/TOOL.py ARGUMENTS`, running in `folder`.

    `largest_file`: bytes beyond which no file grows, as on a full disk.
    With more than one rank it runs in as many processes, with torchrun's environment.
    """

    def __init__(
        self,
        tool: str,
        *arguments: object,
        folder: Path | str | None = None,
        environment: Mapping[str, str] | None = None,
        largest_file: int = resource.RLIM_INFINITY,
        ranks: int = 1,
    ) -> None:
        self.words = [tool, *map(str, arguments)]
        self._outputs = tempfile.TemporaryDirectory()
        settings = dict(os.environ) | dict(environment or {})
        place = (str(folder or Path.cwd()), settings, largest_file, self._outputs.name)
        self._processes = _start(_tool, (self.words, *place), ranks)

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self._processes)

    def send_signal(self, number: int) -> None:
        for process in self._processes:
            os.kill(process.pid, number)

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Status (the highest of all ranks), stdout and stderr. The tool has two minutes."""
        for process in self._processes:
            process.join(120)
        statuses = [process.exitcode for process in self._processes]
        for process in self._processes:
            process.kill()
            process.join()  # before its folder is removed
        stdout, stderr = (Path(self._outputs.name, stream).read_text() for stream in ("stdout", "stderr"))
        self._outputs.cleanup()
        assert None not in statuses, f"{self.words} takes more than two minutes: {stderr}"
        return subprocess.CompletedProcess(self.words, max(statuses), stdout, stderr)


def run_tool(tool: str, *arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Runs a tool to its end."""
    return Tool(tool, *arguments, **how).finish()


def start(recipe: Recipe, run: Run, ranks: int = 1, task: Callable = train) -> list[multiprocessing.Process]:
    """Starts `task(recipe, run)` in `ranks` processes with torchrun's environment.

    stdout and stderr of all go to `run.out`.txt. They exit with the status of the commands.
    """
    return _start(_body, (task, recipe, run), ranks)


def finish(processes: list[multiprocessing.Process]) -> list[int]:
    """Joins processes and returns their exit codes; minus the signal's number for a killed process."""
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def _start(target: Callable, arguments: tuple, ranks: int) -> list[multiprocessing.Process]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.processes"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torchrun = {"WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
    processes = []
    for rank in range(ranks):
        environment = torchrun | {"RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}
        processes.append(context.Process(target=_process, args=(environment, target, arguments)))
        processes[-1].start()
    return processes


def _process(environment: dict[str, object], target: Callable, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    multiprocessing.set_start_method("fork", force=True)  # the default for the loader's workers
    target({name: str(value) for name, value in environment.items()}, *arguments)


def _write_to(stdout: Path | str, stderr: Path | str) -> None:
    for stream, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), stream)


def _tool(
    torchrun: dict, words: list[str], folder: str, environment: dict, largest_file: int, outputs: str
) -> None:
    _write_to(f"{outputs}/stdout", f"{outputs}/stderr")
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment | torchrun)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    path = TOOLS / f"{words[0]}.py"
    sys.argv = [str(path), *words[1:]]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _body(torchrun: dict, task: Callable, recipe: Recipe, run: Run) -> None:
    _write_to(f"{run.out}.txt", f"{run.out}.txt")
    torch.set_num_threads(1)
    os.environ |= torchrun

    def main() -> int:
        outcome = task(recipe, run)
        return 128 + outcome.interrupted if outcome.interrupted else 0

    run_command(main)
