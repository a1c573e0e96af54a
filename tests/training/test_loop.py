"""Training runs on a few drawn pictures: resuming bit for bit, interrupts, logs, refusals that overwrite nothing."""

import dataclasses
import json
import signal
import time
from pathlib import Path

import pytest
import torch

from a2s_repro.caffe.conversion import from_caffe, random_init
from a2s_repro.checkpoint.snapshots import load_snapshot, newest_snapshot, save_snapshot, snapshot_path
from a2s_repro.checkpoint.weights import load_weights, save_weights
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.inference.segmenter import load_model
from a2s_repro.models import Widths
from a2s_repro.training import Run, Trainer, train
from a2s_repro.training.config import git_commit
from a2s_repro.training.run_log import RunLog, cost, read_log
from tests import processes
from tests.processes import WIDTH, Tool

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = processes.RECIPE.changed(max_iter=3)
ON_GPU = (pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A small data set and thin initial weights, as the options of a run."""
    root = make_demo_data(tmp_path_factory.mktemp("shapes"), num_train=5, num_val=2)
    init = root / "init.pth"
    weights = from_caffe(random_init(Widths().scaled(WIDTH), seed=0), "init").weights
    save_weights(init, weights.state_dict, weights.meta)
    lists = root / "ImageSets" / "Segmentation"
    return {
        "data_root": root,
        "init": init,
        "train_list": lists / "train.txt",
        "val_list": lists / "val.txt",
        "classes": root / "classes.txt",
    }


@pytest.fixture
def run(files, tmp_path) -> Run:
    return Run(out=tmp_path / "run", workers=0, **files)


def log_of(folder: Path) -> list[dict]:
    """The lines of a run's log but for validations, without what may differ between two runs."""
    measured = {"images_per_second", "seconds", "peak_memory"}
    return [{key: value for key, value in line.items() if key not in measured} for line in read_log(folder)]


def tool(files: dict[str, Path], out: Path, *more: str) -> Tool:
    options = [f"--{name.replace('_', '-')}={path}" for name, path in files.items() if name != "val_list"]
    settings = {"width": WIDTH, "crop": 65, "batch-size": 2, "iter-size": 2, "display": 1, "stepsize": 5}
    options += [f"--{name}={value}" for name, value in settings.items()]
    return Tool(
        "train_voc", f"--out={out}", *options, "--scales", "1", "0.5", *more, environment={"OMP_NUM_THREADS": "1"}
    )


def test_an_interrupted_and_resumed_run_equals_the_undisturbed_one_bit_for_bit(files, tmp_path):
    """Losses, rates and weights over 60 iterations with dropout, shuffling and decoding workers; Ctrl-C exits 130."""
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    whole = tool(files, undisturbed, "--max-iter=60", "--workers=1")
    part = tool(files, disturbed, "--max-iter=60", "--workers=1")
    log = disturbed / "log.jsonl"
    while part.is_running() and not (log.exists() and log.read_text().count("\n") > 7):
        time.sleep(0.01)
    part.send_signal(signal.SIGINT)
    interrupted = part.finish()
    assert interrupted.returncode == 130, interrupted.stderr
    done = load_snapshot(newest_snapshot(disturbed)).iteration
    assert 8 <= done < 60 and f"interrupted after {done} iterations" in interrupted.stdout
    assert not (disturbed / "final.pth").exists()

    rest = tool(files, disturbed, "--max-iter=60", "--workers=0", "--resume=auto")
    for done in (whole.finish(), rest.finish()):
        assert done.returncode == 0, done.stderr
    assert len(log_of(undisturbed)) == 60
    assert log_of(disturbed) == log_of(undisturbed)
    ours, theirs = (load_weights(folder / "final.pth").state_dict for folder in (disturbed, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_leaves_its_net_log_and_settings(run):
    outcome = train(RECIPE, run)
    assert (outcome.iterations, outcome.interrupted) == (3, False)

    net, meta = load_model(outcome.file)
    assert net.config() == RECIPE.net().config()
    assert meta["classes"] == list(CLASSES) and meta["recipe"] == RECIPE.config()

    lines = log_of(run.out)
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    assert list(lines[0]["losses"]) == ["loss", "loss_res1", "loss_res05"]
    assert lines[0]["total"] == sum(lines[0]["losses"].values())
    assert list((run.out / "tensorboard").iterdir())

    config = json.loads((run.out / "config.json").read_text())
    assert config["recipe"] == RECIPE.config() and config["run"]["seed"] == 0
    assert config["versions"]["torch"] and config["argv"]
    assert config["git_commit"] == git_commit()

    assert newest_snapshot(run.out) == snapshot_path(run.out, 3)
    assert outcome.validation.images == 2


def test_a_snapshot_of_before_there_were_skip_nets_is_resumed(run, files):
    """A recipe's fields that an old snapshot lacks take their defaults."""
    train(RECIPE.changed(max_iter=1), run)
    snapshot = load_snapshot(newest_snapshot(run.out))
    for name in ("skip_net", "head", "att_conv1", "scale_augmentation"):
        del snapshot.config[name]
    save_snapshot(newest_snapshot(run.out), snapshot)
    assert train(RECIPE, Run(out=run.out, resume="auto", workers=0, **files)).iterations == 3


def test_scale_augmentation_changes_the_images(run, files, tmp_path):
    train(RECIPE, run)
    train(RECIPE.changed(scale_augmentation=(0.6, 1.4)), Run(out=tmp_path / "scaled", workers=0, **files))
    assert log_of(tmp_path / "scaled") != log_of(run.out)


def test_a_cache_changes_nothing(run, files, tmp_path):
    train(RECIPE, run)
    train(RECIPE, Run(out=tmp_path / "cached", workers=1, cache=True, **files))
    assert log_of(tmp_path / "cached") == log_of(run.out)


@pytest.mark.parametrize(
    "switches",
    [
        pytest.param({"compile": True}, marks=pytest.mark.slow),
        pytest.param({"compile": True, "device": "cuda", "together": 2}, marks=ON_GPU),
        pytest.param({"cuda_graph": True, "device": "cuda", "compile": True}, marks=ON_GPU),
    ],
)
def test_a_compiled_net_trains_to_the_same_weights(run, tmp_path, switches):
    """1e-5: only the order of sums differs, as there is no dropout."""
    recipe = RECIPE.changed(scales=(1,), merge=None, extra_supervision=False, dropout=0)
    compiled = dataclasses.replace(run, out=tmp_path / "compiled", **switches)
    plain = dataclasses.replace(run, device=compiled.device)
    ours, theirs = (load_weights(train(recipe, each).file).state_dict for each in (compiled, plain))
    for name, value in theirs.items():
        assert (ours[name] - value).norm() < 1e-5 * value.norm(), name


def test_the_seed_decides(run, files, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        train(RECIPE, Run(out=tmp_path / name, workers=0, seed=seed, **files))
    train(RECIPE, run)
    assert log_of(run.out) == log_of(tmp_path / "again") != log_of(tmp_path / "other")


def test_the_displayed_loss_is_the_mean_of_the_last_iterations(run, files, tmp_path):
    train(RECIPE.changed(average_loss=1), run)
    train(RECIPE, Run(out=tmp_path / "smooth", workers=0, **files))
    raw, smooth = log_of(run.out), log_of(tmp_path / "smooth")
    for line, until in zip(smooth, (1, 2, 3), strict=True):
        assert line["losses"]["loss"] == sum(other["losses"]["loss"] for other in raw[:until]) / until


@pytest.mark.filterwarnings("ignore:this processor has no units")
def test_bf16_trains_a_float32_net(run, files, tmp_path):
    outcome = train(RECIPE, Run(out=tmp_path / "bf16", workers=0, precision="bf16", **files))
    train(RECIPE, run)
    assert all(tensor.dtype == torch.float32 for tensor in load_weights(outcome.file).state_dict.values())
    ours, theirs = log_of(tmp_path / "bf16"), log_of(run.out)
    assert ours != theirs
    assert ours[0]["total"] == pytest.approx(theirs[0]["total"], rel=0.01)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize("together", [1, 2])
def test_an_update_waits_for_the_gpu_once(files, device, together):
    """For the losses, which come to the host at the end of the passes."""
    items = read_list(files["train_list"], files["data_root"])
    trainer = Trainer(RECIPE, items, torch.device(device), "fp32", seed=0, together=together)
    batches = trainer.batches(workers=0)
    trainer.backward(batches)
    trainer.update()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning) as caught:
            trainer.backward(batches)
            trainer.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_cuda_graphs_without_compilation_are_refused(run, device):
    with pytest.raises(InputError, match="CUDA graphs are made of compiled nets: add --compile to --cuda-graph"):
        train(RECIPE, dataclasses.replace(run, device=device, cuda_graph=True))


def test_a_loss_that_is_no_number_stops_the_run_and_overwrites_nothing(run):
    with pytest.raises(InputError, match=r"iteration 1: loss\S* is (nan|inf) on the images train_\d+, train_\d+;"):
        train(RECIPE.changed(base_lr=1e20, snapshot=1), dataclasses.replace(run, val_list=None))
    assert newest_snapshot(run.out) in (None, snapshot_path(run.out, 1))
    assert not (run.out / "final.pth").exists()


def test_weights_that_are_no_numbers_are_never_saved(files):
    trainer = Trainer(RECIPE, read_list(files["train_list"], files["data_root"]), torch.device("cpu"), "fp32", seed=0)
    trainer.snapshot()
    trainer.model.fc6.bias.data[3] = float("inf")
    with pytest.raises(InputError, match=r"the update left fc6.bias without finite values; lower --base-lr"):
        trainer.snapshot()


def test_a_folder_with_a_run_is_not_overwritten(run):
    train(RECIPE.changed(max_iter=1), run)
    before = (run.out / "final.pth").read_bytes()
    with pytest.raises(InputError, match="already holds a run: go on with it by --resume auto"):
        train(RECIPE, run)
    assert (run.out / "final.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 3}, "run with batch_size 2 instead of 3"),
        ({"merge": "max"}, "run with merge attention instead of max"),
        ({"lr_policy": "poly"}, "run with lr_policy step instead of poly"),
    ],
)
def test_a_snapshot_of_other_settings_is_refused_by_name(run, files, changes, sentence):
    train(RECIPE.changed(max_iter=1), run)
    with pytest.raises(InputError, match=sentence):
        train(RECIPE.changed(**changes), Run(out=run.out, resume="auto", workers=0, **files))


@pytest.mark.parametrize("part", ["model", "solver", "random", "config"])
def test_a_snapshot_without_a_part_is_refused(run, files, part):
    """Its checksums are right, so only the missing part can be the reason."""
    streams = {"caffe_streams": "ziggurat"}
    train(RECIPE.changed(max_iter=1), dataclasses.replace(run, **streams))
    newest = newest_snapshot(run.out)
    save_snapshot(newest, dataclasses.replace(load_snapshot(newest), **{part: {}}))
    with pytest.raises(InputError, match=r"does not hold what|belongs to a run with|has missing|does not fit"):
        train(RECIPE, Run(out=run.out, resume="auto", workers=0, **streams, **files))


FIRST = torch.ones(2, 3, 3, 3)
"""A history of the shape of the first layer's weight."""


@pytest.mark.parametrize("solver", ["caffe", "torch"])
@pytest.mark.parametrize(
    "history",
    [torch.ones(1), torch.ones(54), FIRST.flip(0)[:1], FIRST.to(torch.int64), FIRST * torch.inf, None],
    ids=["short", "flat", "fewer filters", "integers", "infinite", "missing"],
)
def test_a_history_that_does_not_fit_its_parameter_is_refused_before_anything_is_loaded(run, files, solver, history):
    recipe = RECIPE.changed(max_iter=1, solver=solver)
    train(recipe, run)
    newest = newest_snapshot(run.out)
    snapshot = load_snapshot(newest)
    key = "history" if solver == "caffe" else "momentum_buffer"
    assert snapshot.solver["state"][0][key].shape == FIRST.shape
    snapshot.solver["state"][0] = {} if history is None else {key: history}
    save_snapshot(newest, snapshot)
    trainer = Trainer(recipe, read_list(files["train_list"], run.data_root), torch.device("cpu"), "fp32", seed=0)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(InputError, match="the snapshot's history 0 does not fit its parameter"):
        trainer.restore(load_snapshot(newest))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    with pytest.raises(InputError, match=rf"{newest.name}: the snapshot's history 0 does not fit"):
        train(RECIPE.changed(solver=solver), Run(out=run.out, resume="auto", workers=0, **files))


@pytest.mark.parametrize(
    "words", [{"pos": 10**6}, {"pos": -1}, {"key": [1] * 623}, {"key": [2**32] * 624}, {"key": "words"}]
)
def test_a_position_outside_the_random_words_is_refused(run, files, words):
    """numpy's generator takes any position, and reads memory that is not its own."""
    streams = {"caffe_streams": "ziggurat"}
    train(RECIPE.changed(max_iter=1), dataclasses.replace(run, **streams))
    newest = newest_snapshot(run.out)
    snapshot = load_snapshot(newest)
    snapshot.random["caffe"]["words"] |= words
    save_snapshot(newest, snapshot)
    with pytest.raises(InputError, match="does not hold what its settings tell"):
        train(RECIPE, Run(out=run.out, resume="auto", workers=0, **streams, **files))


def test_a_finished_run_can_be_made_longer(run, files):
    train(RECIPE.changed(max_iter=1), run)
    outcome = train(RECIPE, Run(out=run.out, resume="auto", workers=0, **files))
    assert outcome.iterations == 3
    assert [line["iteration"] for line in log_of(run.out)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"init": None}, "cannot start without --init"),
        ({"device": "cuda:7"}, "device cuda:7 cannot be used"),
        ({"precision": "fp8"}, "precision 'fp8' is not known; it is one of fp32, tf32, bf16"),
        ({"cuda_graph": True}, "CUDA graphs need a GPU, but the device is cpu: leave out --cuda-graph"),
        ({"together": 0}, "running 0 passes together is not possible: give at least 1"),
        ({"compile": True, "caffe_streams": "ziggurat"}, "a compiled net cannot take its masks from Caffe's streams"),
    ],
)
def test_impossible_runs_are_refused(files, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        train(RECIPE, Run(out=tmp_path / "run", **{**files, **options}))
    assert not (tmp_path / "run").exists()


def test_a_crop_off_the_grid_is_refused(run):
    with pytest.raises(InputError, match=r"side of 72 pixels .* nearest being 65 and 81"):
        train(RECIPE.changed(crop=72), run)
    assert not run.out.exists()


def test_the_tool_changes_any_part_of_the_net(run, files, tmp_path):
    trunk = train(RECIPE.changed(scales=(1,), merge=None, extra_supervision=False, max_iter=1), run).file
    net = ("--skip-net", "--merge=attention", "--head-features=fc6", "--head-kernel=1", "--att-conv1=256")
    changes = (*net, "--max-iter=1", "--scale-augmentation", "0.6", "1.4")
    done = tool(files | {"init": trunk}, tmp_path / "skip_net", *changes).finish()
    assert done.returncode == 0, done.stderr
    model, meta = load_model(tmp_path / "skip_net" / "final.pth")
    assert model.skip_net and model.head.att_conv1.weight.shape == (256 * WIDTH, 2 * 1024 * WIDTH, 1, 1)
    assert meta["recipe"]["scale_augmentation"] == [0.6, 1.4]


def test_the_tool_answers_wrong_input_with_a_sentence_and_status_2(files, tmp_path, monkeypatch):
    """The sentence is also in the file from which torchrun, if it started the tool, makes its report."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    done = tool(files, tmp_path / "run", "--recipe=voc12/atention3").finish()
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no recipe 'voc12/atention3'; the nearest are voc12/attention3")
    assert done.stderr.count("\n") == 1
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == done.stderr.strip()


@pytest.mark.slow
def test_a_net_is_not_compiled_without_a_compiler(files, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    done = tool(files, tmp_path / "run", "--device=cpu", "--compile").finish()
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.startswith("error: torch.compile does not work here (") and done.stderr.count("\n") == 1


def test_damaged_snapshots_are_refused(run, tmp_path):
    train(RECIPE.changed(max_iter=1), run)
    content = newest_snapshot(run.out).read_bytes()
    for name, damage in {"cut": content[: len(content) // 2], "empty": b"", "text": b"no snapshot"}.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(damage)
        with pytest.raises(InputError, match=f"{name}.pth cannot be read: the file is damaged or no snapshot"):
            load_snapshot(path)
    with pytest.raises(InputError, match=r"final\.pth is not a training snapshot"):
        load_snapshot(run.out / "final.pth")


def test_a_snapshot_holds_what_it_was_given(run, tmp_path):
    train(RECIPE.changed(max_iter=2), run)
    snapshot = load_snapshot(newest_snapshot(run.out))
    assert snapshot.iteration == 2 and len(snapshot.losses) == 2
    save_snapshot(tmp_path / "copy.pth", snapshot)
    copy = load_snapshot(tmp_path / "copy.pth")
    assert copy.losses == snapshot.losses and copy.config == snapshot.config
    assert all(torch.equal(copy.model[name], tensor) for name, tensor in snapshot.model.items())


def test_the_newest_snapshot_is_the_one_of_most_iterations(tmp_path):
    assert newest_snapshot(tmp_path) is None
    for name in ("snapshot_iter_900.pth", "snapshot_iter_1000.pth", "snapshot_iter_x.pth", ".snapshot_iter_9999.pth"):
        (tmp_path / name).touch()
    assert newest_snapshot(tmp_path) == snapshot_path(tmp_path, 1000)


def test_a_reopened_log_drops_what_will_be_written_again(tmp_path):
    with RunLog(tmp_path, 0) as log:
        for iteration in range(4):
            log.write(iteration, 0.5, {"loss": 1.0}, 0.1, 5.0, seconds=2, peak_memory=1000 + iteration)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"iteration": 4, "los')  # the power went
    with RunLog(tmp_path, 2) as log:
        log.write(2, 1.5, {"loss": 2.0}, 0.1, 5.0, seconds=1.5, peak_memory=7)
    lines = log_of(tmp_path)
    assert [(line["iteration"], line["total"]) for line in lines] == [(0, 1), (1, 1), (2, 2)]
    assert cost(tmp_path) == (5.5, 1001)
