"""Runs resume from Caffe's files and Caffe's from ours: weights, a history per copy, iteration and step."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from a2s_repro.caffe.conversion import from_caffe, random_init, to_caffe
from a2s_repro.caffe.export import export_caffemodel
from a2s_repro.caffe.state import caffe_histories, load_caffe_state
from a2s_repro.checkpoint.snapshots import load_snapshot, newest_snapshot, save_snapshot, snapshot_path
from a2s_repro.checkpoint.weights import Weights, load_weights, save_weights
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.models import Widths
from a2s_repro.models.losses import training_loss
from a2s_repro.recipes import Recipe
from a2s_repro.training import Run, Trainer, train
from caffe_weights import (
    CaffeNet,
    SolverState,
    read_caffemodel,
    read_solverstate,
    stream_of,
    write_caffemodel,
    write_solverstate,
)
from tests.paths import GOLDEN
from tests.processes import run_tool

pytestmark = pytest.mark.usefixtures("one_thread")

THEIRS = GOLDEN / "nets" / "iv_att2_esupv_B_iter_20.solverstate"

RECIPE = Recipe(
    "tests/attention2_esupv",
    num_classes=5,
    scales=(1, 0.5),
    merge="attention",
    extra_supervision=True,
    width=1 / 16,
    crop=65,
    batch_size=2,
    iter_size=2,
    base_lr=0.003,
    stepsize=8,
    max_iter=24,
)
"""Settings of the recorded run, except dropout and data."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Options of a run: the recorded stream's images and thin initial weights."""
    init = tmp_path_factory.mktemp("init") / "init.pth"
    weights = from_caffe(random_init(Widths().scaled(1 / 16), seed=0), "init").weights
    save_weights(init, weights.state_dict, weights.meta)
    images = GOLDEN / "data" / "files"
    return {"data_root": images, "train_list": images / "list.txt", "init": init}


def trainer_of(files: dict[str, Path], recipe: Recipe = RECIPE, caffe_streams: str | None = None) -> Trainer:
    torch.manual_seed(0)
    items = read_list(files["train_list"], files["data_root"])
    return Trainer(recipe, items, torch.device("cpu"), "fp32", seed=0, caffe_streams=caffe_streams)


def blobs(net: CaffeNet) -> list[tuple]:
    """Name, type and blobs of all layers with weights, in order, in a form that compares bit for bit."""
    return [
        (layer.name, layer.type, [(blob.dtype, blob.shape, blob.tobytes()) for blob in layer.blobs])
        for layer in net.layers
        if layer.blobs
    ]


def exported(trainer: Trainer, folder: Path, v1: bool = False) -> Path:
    """Exports a trainer's snapshot; returns the `.solverstate`."""
    save_snapshot(folder / "snapshot.pth", trainer.snapshot())
    _, state, _ = export_caffemodel(folder / "snapshot.pth", folder / "run.caffemodel", v1=v1, deploy_size=(65, 65))
    return state


def test_caffes_run_round_trips_bit_for_bit(files, tmp_path):
    """Weights, order of layers and copies, a history per copy, iteration and step pass through a snapshot of ours."""
    trainer = trainer_of(files)
    trainer.take_over(THEIRS)
    assert trainer.iteration == 20
    ours, theirs = read_solverstate(exported(trainer, tmp_path)), read_solverstate(THEIRS)
    assert (ours.iter, ours.current_step) == (theirs.iter, theirs.current_step) == (20, 2)
    assert [history.tobytes() for history in ours.history] == [history.tobytes() for history in theirs.history]
    assert [history.shape for history in ours.history] == [history.shape for history in theirs.history]
    assert any(history.any() for history in ours.history[32:64]), "the copies' histories are their own"
    caffemodels = [read_caffemodel(path) for path in (tmp_path / "run.caffemodel", THEIRS.with_suffix(".caffemodel"))]
    assert blobs(caffemodels[0]) == blobs(caffemodels[1])


@pytest.mark.parametrize("v1", [False, True], ids=["new", "v1"])
def test_written_files_can_be_taken_over_again(files, tmp_path, v1):
    first, second = trainer_of(files), trainer_of(files)
    first.take_over(THEIRS)
    second.take_over(exported(first, tmp_path, v1))
    batches = first.batches(0), second.batches(0)
    for trainer, stream in zip((first, second), batches, strict=True):
        torch.manual_seed(1)
        trainer.backward(stream)
        trainer.update()
    ours, theirs = (trainer.model.state_dict() for trainer in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("merge, skip_net", [("attention", False), ("average", False), ("attention", True)])
def test_one_slot_and_a_slot_per_copy_give_the_same_updates(tmp_path, merge, skip_net):
    """One history in the owner's blob with zeros in the copies' is equivalent to one slot; frozen layers have zeros,
    too. Both runs are float64 and start from the float32 values of the files, so only float64 rounding remains."""
    recipe = Recipe("one_slot", num_classes=5, scales=(1, 0.75, 0.5), merge=merge, width=1 / 16, base_lr=0.01)
    recipe = recipe.changed(skip_net=skip_net)
    generator = torch.Generator().manual_seed(0)
    images = 64 * torch.randn(6, 2, 3, 33, 33, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 5, (6, 2, 33, 33), generator=generator)

    def train_on(net, solver, iterations):
        for iteration in iterations:
            torch.manual_seed(iteration)
            solver.zero_grad()
            sum(training_loss(net(images[iteration]), labels[iteration], False).values()).backward()
            solver.set_lr(0.01)
            solver.step()

    one = recipe.net().double()
    weights = from_caffe(random_init(Widths().scaled(1 / 16), seed=0), "init").weights
    one.load_state_dict(weights.state_dict, strict=False)
    one_solver = recipe.optimizer(one)
    train_on(one, one_solver, range(3))
    for parameter in one.parameters():
        for tensor in (parameter.data, *one_solver.state[parameter].values()):
            tensor.copy_(tensor.float())

    net = to_caffe(Weights(one.state_dict(), {"model": one.config(), "classifier": "fc8"}))
    histories = caffe_histories(net, one, one_solver)
    blobs = [
        (layer.name, kind) for layer in net.layers for kind, _ in zip(("weight", "bias"), layer.blobs, strict=False)
    ]
    rules = one.parameter_rules()
    for (layer, kind), history in zip(blobs, histories, strict=True):
        module, scale = stream_of(layer)
        assert history.any() == (scale == 1 and rules[f"{module}.{kind}"].lr_mult > 0), layer
    write_caffemodel(tmp_path / "iter_3.caffemodel", net)
    write_solverstate(tmp_path / "iter_3.solverstate", SolverState(3, 0, "iter_3.caffemodel", histories))

    many = recipe.net().double()
    many.copy_per_stream()
    many_solver = recipe.optimizer(many)
    assert load_caffe_state(tmp_path / "iter_3.solverstate", many, many_solver, "fc8").iter == 3
    train_on(one, one_solver, range(3, 6))
    train_on(many, many_solver, range(3, 6))
    for (name, ours), theirs in zip(many.named_parameters(), one.parameters(), strict=True):
        assert (ours - theirs).norm() <= 1e-12 * theirs.norm(), name
    layer = "pool4_conv" if skip_net else "conv3_1"
    slots = [net.get_submodule(layer).weight for net in (many, *many.copies)]
    histories = [many_solver.state[slot]["history"] for slot in slots]
    assert len(histories) == 3 and all(history.abs().max() > 0 for history in histories)
    total = one_solver.state[one.get_submodule(layer).weight]["history"]
    assert (sum(histories) - total).norm() <= 1e-12 * total.norm()


# Runs


def options(files: dict[str, Path], out: Path, **more) -> Run:
    return Run(out=out, workers=0, **{**files, **more})


@pytest.mark.parametrize("caffe_streams", [None, "ziggurat"])
def test_data_and_random_streams_restart_as_in_caffe(files, caffe_streams):
    fresh, resumed = (trainer_of(files, caffe_streams=caffe_streams) for _ in range(2))
    resumed.take_over(THEIRS)
    streams = fresh.batches(0), resumed.batches(0)
    assert len(list(fresh.batches(0))) == 2 * 24 and len(list(resumed.batches(0))) == 2 * 4
    for _ in range(4):
        ours, theirs = (next(stream) for stream in streams)
        assert torch.equal(ours.index, theirs.index) and torch.equal(ours.image, theirs.image)
    if caffe_streams:
        assert fresh.caffe.words.word() == resumed.caffe.words.word()


def test_a_run_from_caffes_files_can_itself_be_resumed_bit_for_bit(files, tmp_path):
    whole = train(RECIPE, options(files, tmp_path / "whole", resume=str(THEIRS)))
    train(RECIPE.changed(max_iter=22), options(files, tmp_path / "part", resume=str(THEIRS)))
    rest = train(RECIPE, options(files, tmp_path / "part", resume="auto"))
    assert whole.iterations == rest.iterations == 24
    ours, theirs = (load_weights(outcome.file).state_dict for outcome in (rest, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert load_snapshot(snapshot_path(tmp_path / "part", 24)).start == 20


def test_our_run_is_exported_to_caffe_and_taken_over_again(files, tmp_path, monkeypatch):
    recipe = RECIPE.changed(max_iter=3, stepsize=3)
    train(recipe, options(files, tmp_path / "first"))
    monkeypatch.chdir(tmp_path)
    export_caffemodel(newest_snapshot("first"), "caffe/train_iter_3.caffemodel")
    state = read_solverstate("caffe/train_iter_3.solverstate")
    assert (state.iter, state.learned_net) == (3, "caffe/train_iter_3.caffemodel")
    assert state.current_step == 0, "the step of the last update; the next one is the first at the lower rate"
    os.rename("caffe", "elsewhere")
    run = options(files, Path("second"), resume="elsewhere/train_iter_3.solverstate")
    outcome = train(recipe.changed(max_iter=5), run)
    assert outcome.iterations == 5 and newest_snapshot("second") == snapshot_path("second", 5)


def test_the_tools_convert_in_both_directions(files, tmp_path):
    def run(tool: str, *arguments: object) -> str:
        done = run_tool(tool, *arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    settings = {"stepsize": 8, "width": 1 / 16, "crop": 65, "batch-size": 2, "iter-size": 1, "max-iter": 21}
    settings |= {"num-classes": 5, "classifier": "fc8_voc12", "workers": 0, "device": "cpu"}
    settings |= {"data-root": files["data_root"], "train-list": files["train_list"], "out": "run", "resume": THEIRS}
    options = [f"--{name}={value}" for name, value in settings.items()]
    printed = run("train_voc", "--recipe=voc12/attention2_esupv", *options)
    assert "trained 21 iterations" in printed
    printed = run("convert_caffe", "run/snapshot_iter_21.pth", "back.caffemodel", "--to-caffe")
    assert printed == "wrote back.caffemodel\nwrote back.solverstate\nwrote back_deploy.prototxt\n"
    state = read_solverstate(tmp_path / "back.solverstate")
    assert (state.iter, state.current_step, state.learned_net) == (21, 2, "back.caffemodel")
    assert len(state.history) == len(read_solverstate(THEIRS).history)


# What is refused


@pytest.fixture
def copied(tmp_path) -> Path:
    """A copy of Caffe's files in a separate folder."""
    (tmp_path / "run").mkdir()
    for suffix in (".caffemodel", ".solverstate"):
        (tmp_path / "run" / f"{THEIRS.stem}{suffix}").write_bytes(THEIRS.with_suffix(suffix).read_bytes())
    return tmp_path / "run" / THEIRS.name


def test_missing_weights_are_named(files, copied):
    copied.with_suffix(".caffemodel").unlink()
    with pytest.raises(InputError, match=rf"the weights of {copied} are missing: put {THEIRS.stem}\.caffemodel next"):
        trainer_of(files).take_over(copied)


@pytest.mark.parametrize("folder", ["C:\\models\\", "/home/other/", ""])
def test_weights_beside_the_state_are_found_whatever_folder_it_names(files, copied, folder):
    state = read_solverstate(copied)
    write_solverstate(copied, dataclasses.replace(state, learned_net=f"{folder}{THEIRS.stem}.caffemodel"))
    trainer = trainer_of(files)
    trainer.take_over(copied)
    assert trainer.iteration == 20


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scales": (1, 0.75)}, r"scales \[1(\.0)?, 0\.5\], the recipe's has \[1, 0\.75\]"),
        ({"merge": "max"}, "merge attention, the recipe's has max"),
        ({"num_classes": 21}, "num_classes 5, the recipe's has 21"),
        ({"pool5a": True}, "pool5a False, the recipe's has True"),
        ({"classifier": "fc8_coco"}, "fc8 from fillers; fc8_voc12 of the file not used"),
        ({"width": 1 / 32}, "conv1_1 is 4x3x3x3 .* give the --width"),
        ({"stepsize": 2000}, "dropped 2 times in 20 iterations, but by these settings 0 times: give the --lr-policy"),
    ],
)
def test_another_net_or_schedule_is_refused(files, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        trainer_of(files, RECIPE.changed(**changes)).take_over(THEIRS)


def test_histories_of_another_run_are_refused(files, copied):
    state = read_solverstate(copied)
    write_solverstate(copied, SolverState(20, 2, state.learned_net, state.history[:-2]))
    with pytest.raises(InputError, match=r"the histories of .* do not fit the parameters of .*: give two files"):
        trainer_of(files).take_over(copied)


def test_a_folder_with_a_run_is_not_taken_over(files, tmp_path):
    train(RECIPE.changed(max_iter=1), options(files, tmp_path))
    with pytest.raises(InputError, match="already holds a run"):
        train(RECIPE, options(files, tmp_path, resume=str(THEIRS)))


def test_a_run_with_shared_decay_once_is_not_exported(files, tmp_path):
    save_snapshot(tmp_path / "snapshot.pth", trainer_of(files, RECIPE.changed(shared_decay="once")).snapshot())
    with pytest.raises(InputError, match=r"snapshot\.pth is of a run with shared_decay once"):
        export_caffemodel(tmp_path / "snapshot.pth", tmp_path / "run.caffemodel")
    assert os.listdir(tmp_path) == ["snapshot.pth"]


def test_a_single_scale_run_has_one_history_per_parameter(files, tmp_path):
    recipe = RECIPE.changed(scales=(1,), merge=None, extra_supervision=False)
    trainer = trainer_of(files, recipe)
    trainer.backward(trainer.batches(0))
    trainer.update()
    state = exported(trainer, tmp_path)
    again = trainer_of(files, recipe)
    again.take_over(state)
    for ours, theirs in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(again.solver.state[ours]["history"], trainer.solver.state[theirs]["history"])
    assert len(read_solverstate(state).history) == 2 * 16
    assert np.any(read_solverstate(state).history[-2])
