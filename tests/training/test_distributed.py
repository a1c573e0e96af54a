"""Several processes make one run: the weights, losses and scores of a single process, and a single voice."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from a2s_repro.checkpoint.snapshots import load_snapshot, newest_snapshot
from a2s_repro.checkpoint.weights import load_weights
from a2s_repro.reproduction.trial import SMOKE_CHANGES, draw_pretrained
from a2s_repro.training import Run
from a2s_repro.training.run_log import read_log
from tests.paths import TOOLS
from tests.processes import RECIPE, finish, make_files, start

SIX = RECIPE.changed(iter_size=6, max_iter=10, snapshot=5)
TOOL = TOOLS / "train_voc.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """With a seed of which no ReLU or max-pool unit flips, whatever the order of the sums."""
    return make_files(tmp_path_factory.mktemp("shapes")) | {"seed": 4}


@pytest.fixture(scope="module")
def single(files, tmp_path_factory) -> Path:
    """The run of a single process, the reference for the others."""
    run = Run(out=tmp_path_factory.mktemp("single") / "run", workers=0, **files)
    assert finish(start(SIX, run)) == [0], Path(f"{run.out}.txt").read_text()
    return run.out


def deviation(folder: Path, other: Path) -> float:
    """The largest over the layers of |ours - theirs| / |theirs|, in Euclidean norms of a layer's weights and biases."""
    ours, theirs = (load_weights(path / "final.pth").state_dict for path in (folder, other))
    squares = {name: torch.zeros(2, dtype=torch.float64) for name in (key.rpartition(".")[0] for key in theirs)}
    for key, value in theirs.items():
        squares[key.rpartition(".")[0]] += torch.stack([(ours[key] - value).square().sum(), value.square().sum()])
    return max(float((difference / size).sqrt()) for difference, size in squares.values())


def losses(folder: Path) -> list[float]:
    return [line["total"] for line in read_log(folder)]


def printed(run: Run) -> list[str]:
    """The lines that the processes of a run printed, without those of their progress, which begin with the date."""
    lines = Path(f"{run.out}.txt").read_text().splitlines()
    return [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d ", line)]


def errors(run: Run) -> list[str]:
    return [line for line in printed(run) if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("ranks", "together"),
    [(2, 1), pytest.param(3, 1, marks=pytest.mark.long), (1, 2), (2, 2), pytest.param(3, 2, marks=pytest.mark.long)],
)
def test_several_processes_compute_what_one_computes(single, files, tmp_path, ranks, together):
    """Within 1e-6 after 10 updates: only the order differs in which the gradients of the passes are added.

    Whether the passes of a process run one by one, or two as one batch: with two processes two and a single one.
    """
    run = Run(out=tmp_path / "run", workers=0, together=together, **files)
    assert finish(start(SIX, run, ranks)) == [0] * ranks, printed(run)
    assert deviation(run.out, single) < 1e-6
    assert losses(run.out) == pytest.approx(losses(single), rel=1e-6)
    lines = printed(run)  # net, schedule, origin of the weights, and the passes that run together: one voice
    assert len(lines) == len(set(lines)) == 2 + together
    assert json.loads((run.out / "config.json").read_text())["run"]["processes"] == ranks


def test_batch_norms_have_the_running_statistics_of_one_process(files, tmp_path):
    """The statistics of all passes are applied in the order of the passes, on any process; 1e-5 after 3 updates.

    Normalisation makes more of rounding than the other nets do.
    """
    draw_pretrained(tmp_path)
    recipe = RECIPE.changed(
        **{"backbone": "resnet34", "scales": (1,), "merge": None, "extra_supervision": False, "dropout": 0},
        **{"width": SMOKE_CHANGES["width"], "iter_size": 4, "max_iter": 3, "solver": "torch"},
    )
    files = files | {"init": tmp_path / "resnet34.pth"}
    one, two = (Run(out=tmp_path / name, workers=0, **files) for name in ("one", "two"))
    assert finish(start(recipe, one) + start(recipe, two, 2)) == [0, 0, 0], printed(two)
    assert deviation(two.out, one.out) < 1e-5
    nets = [load_weights(run.out / "final.pth").state_dict for run in (one, two)]
    counts = [key for key in nets[0] if key.endswith("num_batches_tracked")]
    assert counts and all(nets[0][key] == nets[1][key] == 12 for key in counts)


def test_caffes_streams_are_dealt_out_too(files, tmp_path):
    """Images, dropout masks and fillers come from one generator, in the order of the passes."""
    recipe = RECIPE.changed(max_iter=3)
    one, two = (Run(out=tmp_path / name, workers=0, caffe_streams="ziggurat", **files) for name in ("one", "two"))
    assert finish(start(recipe, one) + start(recipe, two, 2)) == [0, 0, 0], printed(two)
    assert deviation(two.out, one.out) < 1e-6
    states = [load_snapshot(newest_snapshot(run.out)).random for run in (one, two)]
    assert states[0] == states[1]


def test_a_killed_process_ends_the_run_and_others_go_on_with_it(single, files, tmp_path):
    run = Run(out=tmp_path / "run", workers=0, **files)
    processes = start(SIX, run, 2)
    while processes[1].is_alive() and newest_snapshot(run.out) is None:
        time.sleep(0.01)
    processes[1].kill()
    assert finish(processes) == [2, -signal.SIGKILL]
    (sentence,) = errors(run)
    assert "another process of the run has died: continue with --resume auto." in sentence

    again = dataclasses.replace(run, resume="auto")
    assert finish(start(SIX, again, 3)) == [0, 0, 0], printed(run)
    assert deviation(run.out, single) < 1e-6
    assert len(losses(run.out)) == SIX.max_iter


def test_a_file_that_one_process_cannot_read_ends_the_run_with_its_sentence(single, files, tmp_path):
    """The state before the failure is saved, and a run resumed from it equals an undisturbed one."""
    run = Run(out=tmp_path / "run", workers=0, **files)
    image = sorted((files["data_root"] / "JPEGImages").glob("train_*"))[3]
    processes = start(SIX, run, 2)
    while newest_snapshot(run.out) is None:
        time.sleep(0.01)
    hidden = image.rename(image.with_suffix(".hidden"))
    codes = finish(processes)
    hidden.rename(image)
    assert codes == [2, 2]
    (sentence,) = errors(run)
    assert re.match(rf"error: iteration \d+: {image} cannot be read: No such file or directory\. The state", sentence)

    again = dataclasses.replace(run, resume="auto")
    assert finish(start(SIX, again)) == [0], printed(run)
    assert deviation(run.out, single) < 1e-6


def test_a_stop_signal_to_any_process_stops_them_all_after_the_same_update(files, tmp_path):
    run = Run(out=tmp_path / "run", workers=0, **files)
    processes = start(SIX, run, 2)
    while newest_snapshot(run.out) is None:
        time.sleep(0.01)
    processes[1].terminate()
    assert finish(processes) == [143, 143], printed(run)
    assert 5 <= load_snapshot(newest_snapshot(run.out)).iteration < SIX.max_iter
    assert not (run.out / "final.pth").exists()


def test_passes_that_cannot_be_dealt_out_evenly_are_refused_once(files, tmp_path):
    run = Run(out=tmp_path / "run", workers=0, **files)
    assert finish(start(RECIPE, run, 3)) == [2, 2, 2]
    (sentence,) = printed(run)
    assert "the 2 passes of an update (--iter-size) cannot be dealt out to 3 processes evenly" in sentence


@pytest.mark.long
def test_torchrun_starts_the_tool(files, tmp_path):
    """The real thing; only the first process prints the result."""
    given = files | {"val_list": files["train_list"].with_name("val.txt")}
    options = [f"--{name.replace('_', '-')}={path}" for name, path in given.items()]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", TOOL)
    settings = {"width": 1 / 32, "crop": 65, "test-crop": 65, "batch-size": 2, "iter-size": 2, "max-iter": 2}
    command = [*torchrun, f"--out={tmp_path / 'run'}", *options, "--scales", "1", "0.5", "--device=cpu", "--workers=0"]
    command += [f"--{name}={value}" for name, value in settings.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 2 iterations") == 1 and done.stdout.count("mIoU") == 1
