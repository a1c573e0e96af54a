"""The ways out of a run under way, in real processes: its workers end with it, and the state before is saved."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from a2s_repro.checkpoint.snapshots import load_snapshot, snapshot_path, snapshots
from a2s_repro.recipes import Recipe
from a2s_repro.runtime import distributed
from a2s_repro.solver import CaffeSGD
from a2s_repro.training import Outcome, Run, train
from a2s_repro.training.trainer import Trainer
from tests.paths import ROOT
from tests.processes import RECIPE, finish, make_files, start

ITERATION = 3
SECONDS = 10 * max(1, os.getloadavg()[0] / os.cpu_count())
"""Limit from the failure to the end of the process: ten seconds, more on an overloaded machine (measured: one)."""


def unexpected() -> None:
    raise RuntimeError("unexpected")


def memory_runs_out() -> None:
    torch.empty(2**50)


def interrupted() -> None:
    raise KeyboardInterrupt


def exits() -> None:
    sys.exit(7)


def stopped_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass
class Failing:
    """Trains until one of the processes fails in a pass, or in the update, of ITERATION."""

    failure: Callable[[], None]
    rank: int = 0
    in_update: bool = False

    def __call__(self, recipe: Recipe, run: Run) -> Outcome:
        def failing(real: Callable, iteration: Callable[..., int]) -> Callable:
            def call(*args: object) -> object:
                if iteration(*args) == ITERATION and distributed.rank() == self.rank:
                    workers = [process.pid for process in multiprocessing.active_children()]
                    (run.out / "failed.json").write_text(json.dumps({"time": time.time(), "workers": workers}))
                    self.failure()
                return real(*args)

            return call

        updates = iter(range(recipe.max_iter))
        if self.in_update:
            CaffeSGD.step = failing(CaffeSGD.step, lambda _: next(updates))
        else:
            real = Trainer.backward_passes
            Trainer.backward_passes = failing(real, lambda _, group: group[0].number // recipe.iter_size)
        return train(recipe, run)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def undisturbed(files, tmp_path_factory) -> Path:
    """A run's snapshot after ITERATION updates."""
    run = Run(out=tmp_path_factory.mktemp("undisturbed") / "run", workers=0, caffe_streams="ziggurat", **files)
    assert finish(start(RECIPE.changed(max_iter=ITERATION), run)) == [0], output(run)
    return snapshot_path(run.out, ITERATION)


def output(run: Run) -> str:
    return Path(f"{run.out}.txt").read_text()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def check_end(run: Run, workers: int) -> None:
    """Asserts that the process ended within SECONDS, and its workers before it."""
    failure = json.loads((run.out / "failed.json").read_text())
    assert time.time() - failure["time"] < SECONDS
    assert len(failure["workers"]) == workers
    assert not [pid for pid in failure["workers"] if is_running(pid)]


@pytest.mark.parametrize(
    "failure, workers, status",
    [
        (unexpected, 0, 1),
        (unexpected, 2, 1),
        (memory_runs_out, 2, 2),
        (interrupted, 2, 130),
        (exits, 2, 7),
        (stopped_twice, 2, 143),
    ],
)
def test_the_state_before_is_saved_and_the_workers_end(failure, workers, status, files, undisturbed, tmp_path):
    """Weights, momentum, losses, and the place in Caffe's streams, which the failed pass had left, bit for bit."""
    run = Run(out=tmp_path / "run", workers=workers, caffe_streams="ziggurat", **files)
    assert finish(start(RECIPE, run, task=Failing(failure))) == [status], output(run)
    check_end(run, workers)
    assert f"The state before it is in {snapshot_path(run.out, ITERATION)}." in output(run)
    saved, expected = load_snapshot(snapshot_path(run.out, ITERATION)), load_snapshot(undisturbed)
    assert (saved.iteration, saved.losses, saved.random) == (ITERATION, expected.losses, expected.random)
    assert all(torch.equal(saved.model[name], tensor) for name, tensor in expected.model.items())
    histories = [[state["history"] for state in kept.solver["state"].values()] for kept in (saved, expected)]
    assert histories[0] and all(map(torch.equal, *histories))


def test_too_little_memory_is_one_sentence_that_names_what_to_lower(files, tmp_path):
    run = Run(out=tmp_path / "run", workers=0, **files)
    assert finish(start(RECIPE, run, task=Failing(memory_runs_out))) == [2]
    sentence = output(run).splitlines()[-1]
    assert "Traceback" not in output(run) and sentence.startswith(f"error: iteration {ITERATION}: ")
    for words in (
        "a batch of 2 crops of 65x65 pixels in a net of width 0.03125 needs more memory than there is",
        "lower --batch-size and raise --iter-size, or lower --crop or --width",
        f"The state before it is in {snapshot_path(run.out, ITERATION)}.",
    ):
        assert words in sentence


def test_a_half_made_update_is_not_saved(files, tmp_path):
    run = Run(out=tmp_path / "run", workers=2, **files)
    recipe = RECIPE.changed(snapshot=2)
    assert finish(start(recipe, run, task=Failing(unexpected, in_update=True))) == [1], output(run)
    check_end(run, workers=2)
    assert f"iteration {ITERATION} was ended by RuntimeError. Earlier snapshots are untouched." in output(run)
    assert snapshots(run.out) == [snapshot_path(run.out, 2)]


@pytest.mark.parametrize(
    "failure, rank, workers, statuses, sentence",
    [
        (unexpected, 0, 2, [1, 2], "RuntimeError: unexpected"),
        (unexpected, 1, 0, [2, 1], "error: iteration 3: process 1 ended with RuntimeError (unexpected). The state"),
        (unexpected, 1, 2, [2, 1], "error: iteration 3: process 1 ended with RuntimeError (unexpected). The state"),
        (memory_runs_out, 1, 2, [2, 2], "error: iteration 3: a batch of 2 crops of 65x65 pixels"),
        (killed, 1, 2, [2, -signal.SIGKILL], "error: iteration 3: another process of the run has died"),
        (interrupted, 1, 2, [2, 130], "error: iteration 3: another process of the run has died"),
    ],
)
def test_a_failure_in_one_process_ends_them_all(failure, rank, workers, statuses, sentence, files, tmp_path):
    run = Run(out=tmp_path / "run", workers=workers, **files)
    assert finish(start(RECIPE, run, ranks=2, task=Failing(failure, rank))) == statuses, output(run)
    if failure is not killed:  # orphans notice it after some seconds
        check_end(run, workers)
    assert sentence in output(run)
    assert [load_snapshot(path).iteration for path in snapshots(run.out)] == [ITERATION]


@pytest.mark.slow
def test_torchrun_ends_with_a_process_that_fails(files, tmp_path):
    """The real thing, with workers; the tests above have its environment and exit statuses without its start."""
    run = Run(out=tmp_path / "run", workers=2, **files)
    (tmp_path / "run.pickle").write_bytes(pickle.dumps(run))
    script = tmp_path / "failing.py"
    script.write_text(f"""
import pickle, sys
sys.path.insert(0, {str(ROOT)!r})
from a2s_repro.commands.run import run
from tests.processes import RECIPE
from tests.training.test_failures import Failing, unexpected
run(lambda: Failing(unexpected, rank=1)(RECIPE, pickle.load(open({str(tmp_path / "run.pickle")!r}, "rb"))) and 0)
""")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "RuntimeError: unexpected" in done.stderr
    assert (
        "error: iteration 3: process 1 ended with RuntimeError (unexpected). The state before it is in" in done.stderr
    )
    check_end(run, workers=2)
    assert [load_snapshot(path).iteration for path in snapshots(run.out)] == [ITERATION]
