"""A training run survives kill -9 at any moment, a full disk, damaged snapshots, and a decoding process that dies."""

import dataclasses
import errno
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path

import pytest
import torch

from a2s_repro.checkpoint.snapshots import load_newest, load_snapshot, newest_snapshot, snapshot_path, snapshots
from a2s_repro.checkpoint.weights import load_weights
from a2s_repro.errors import InputError
from a2s_repro.files import PART
from a2s_repro.training import Run, train
from a2s_repro.training.run_log import read_log
from tests.processes import RECIPE, finish, make_files, start


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def run(files, tmp_path) -> Run:
    return Run(out=tmp_path / "run", workers=0, **files)


def wait_for(happened: Callable[[], object], process: Process) -> None:
    while not happened():
        assert process.is_alive()
        time.sleep(0.002)


def output(run: Run) -> str:
    return Path(f"{run.out}.txt").read_text()


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["iteration"], line["total"]) for line in read_log(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / "final.pth").state_dict


def is_equal(folder: Path, other: Path) -> bool:
    """Whether two runs have the same weights, bit for bit, and the same log."""
    ours, theirs = weights(folder), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs) and losses(folder) == losses(other)


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.long), pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_in_the_same_weights(run, tmp_path, kills):
    """Every second kill falls while a snapshot is written; the others wherever it happens."""
    last = 6 * kills + 6
    recipe = RECIPE.changed(iter_size=1, max_iter=last, snapshot=1)
    undisturbed = dataclasses.replace(run, out=tmp_path / "undisturbed")
    assert finish(start(recipe, undisturbed)) == [0], output(undisturbed)

    moments = random.Random(0)
    disturbed = dataclasses.replace(run, workers=1, resume="auto", keep=3)
    for kill in range(kills):
        (process,) = start(recipe, disturbed)
        target = 6 * kill + moments.randint(0, 5)
        wait_for(lambda target=target: target == 0 or snapshot_path(run.out, target).exists(), process)
        time.sleep(moments.uniform(0, 0.05))
        if kill % 2:
            wait_for(lambda: any(run.out.glob(f"{PART}*.pth")), process)
        process.kill()
        assert finish([process]) == [-signal.SIGKILL], output(run)
    assert finish(start(recipe, disturbed)) == [0], output(run)
    assert is_equal(run.out, undisturbed.out)
    assert [path.name for path in snapshots(run.out)] == [f"snapshot_iter_{last - n}.pth" for n in range(3)]
    assert not any(run.out.glob(".*"))


@pytest.fixture(params=["small disk", "quota"])
def limited(request, tmp_path) -> Callable[[int, bool], None]:
    """A folder `run` on a disk of 4 MB, or under a quota on a process's files; call it to fill or to free the disk."""
    if request.param == "small disk":
        folder = tmp_path / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk is not permitted here")
        request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", folder], check=True))

        def limit(_: int, full: bool) -> None:
            filling = folder / "filling"
            if not full:
                return filling.unlink()
            with open(filling, "wb", buffering=0) as file, pytest.raises(OSError, match=str(errno.ENOSPC)):
                while True:
                    file.write(bytes(1 << 12))
    else:
        unlimited = resource.RLIM_INFINITY

        def limit(pid: int, full: bool) -> None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 16 if full else unlimited, unlimited))

    return limit


@pytest.mark.long
def test_a_full_disk_is_told_and_survived(limited, run, tmp_path):
    """Earlier snapshots stay, training and its log go on, and once there is room so do the snapshots; then SIGTERM."""
    run = dataclasses.replace(run, out=tmp_path / "disk" / "run", keep=2)
    run.out.parent.mkdir(exist_ok=True)
    Path(f"{run.out}.txt").symlink_to(tmp_path / "printed.txt")  # on another disk
    (process,) = start(RECIPE.changed(max_iter=10_000, snapshot=2), run)
    wait_for(lambda: newest_snapshot(run.out), process)
    limited(process.pid, True)
    wait_for(lambda: output(run).count("Training goes on, and the next snapshot is tried.") >= 2, process)
    _, kept, refused = load_newest(run.out)
    assert not refused
    limited(process.pid, False)
    wait_for(lambda: load_newest(run.out)[1].iteration > kept.iteration, process)
    process.terminate()
    assert finish([process]) == [143], output(run)
    last = load_snapshot(newest_snapshot(run.out)).iteration
    assert [iteration for iteration, _ in losses(run.out)] == list(range(last))
    assert "snapshot_iter_" in output(run) and "is the disk full? Training goes on" in output(run)
    assert "Traceback" not in output(run)


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "foreign", "empty"])
def test_a_damaged_snapshot_is_refused_by_name_and_the_one_before_it_used(run, files, tmp_path, capsys, damage):
    train(RECIPE.changed(max_iter=4, snapshot=1), run)
    newest = snapshot_path(run.out, 4)
    whole = newest.read_bytes()
    content = {
        "cut": whole[: len(whole) * 9 // 10],
        "flipped bit": whole[:50_000] + bytes([whole[50_000] ^ 1]) + whole[50_001:],
        "foreign": files["init"].read_bytes(),
        "empty": b"",
    }
    model = load_snapshot(newest).model
    newest.write_bytes(content[damage])
    train(RECIPE.changed(max_iter=4, snapshot=1), dataclasses.replace(run, resume="auto"))
    captured = capsys.readouterr()
    assert f"{newest} " in captured.out + captured.err
    assert f"resumed from {snapshot_path(run.out, 3)} at iteration 3" in captured.out + captured.err
    again = load_snapshot(newest).model
    assert all(torch.equal(again[name], tensor) for name, tensor in model.items())


def test_where_no_snapshot_is_whole_nothing_is_overwritten(run):
    train(RECIPE.changed(max_iter=1), run)
    newest_snapshot(run.out).write_bytes(b"torn")
    with pytest.raises(InputError, match=r"all snapshots in .* are damaged: remove them and log\.jsonl to restart"):
        train(RECIPE, dataclasses.replace(run, resume="auto"))


def test_snapshots_of_later_iterations_do_not_count_among_those_to_keep(run):
    """They were refused when the run was resumed."""
    (run.out).mkdir()
    snapshot_path(run.out, 99).write_bytes(b"torn")
    train(RECIPE.changed(max_iter=3, snapshot=1), dataclasses.replace(run, keep=2, resume=None, out=run.out / "a"))
    assert [path.name for path in snapshots(run.out / "a")] == ["snapshot_iter_3.pth", "snapshot_iter_2.pth"]


def test_a_decoding_process_that_is_killed_costs_nothing_but_a_restart(run, tmp_path):
    recipe = RECIPE.changed(iter_size=1, max_iter=40)
    run = dataclasses.replace(run, workers=1)
    (process,) = start(recipe, run)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    log = run.out / "log.jsonl"
    wait_for(lambda: log.exists() and len(losses(run.out)) > 2, process)
    subprocess.run(["kill", "-KILL", *children.read_text().split()], check=True)
    assert finish([process]) == [2], output(run)
    sentence = output(run).splitlines()[-1]
    assert sentence.startswith("error: iteration ") and "because a decoding process ended" in sentence
    undisturbed = dataclasses.replace(run, out=tmp_path / "undisturbed", workers=0)
    assert finish(start(recipe, dataclasses.replace(run, resume="auto")) + start(recipe, undisturbed)) == [0, 0]
    assert is_equal(run.out, undisturbed.out)
