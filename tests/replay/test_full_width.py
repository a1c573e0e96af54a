"""Replaying a record at full width: here of a thin net, recorded from a run of ours as another program would."""

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from a2s_repro.caffe.conversion import from_caffe, random_init
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.inference.segmenter import Segmenter
from a2s_repro.models import Widths
from a2s_repro.recipes import find_recipe
from a2s_repro.replay.full_width import is_full_width, read_full_width, replay_full_width
from a2s_repro.training import Trainer
from caffe_weights import write_caffemodel
from tests.processes import run_tool

WIDTH = 1 / 32
SETTINGS = {
    **{"crop": 65, "iter_size": 2, "base_lr": 1e-3, "stepsize": 2, "gamma": 0.1},
    **{"momentum": 0.9, "weight_decay": 5e-4, "width": WIDTH},
}
ITERATIONS, SEED, VALUES = 3, 7, 50


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    make_demo_data(root, num_train=6, num_val=2)
    return root


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory) -> Path:
    """The record of a run whose losses, weights, momentum and labels are taken down here."""
    folder = tmp_path_factory.mktemp("fullwidth")
    lists = photographs / "ImageSets" / "Segmentation"
    (folder / "list.txt").write_text((lists / "train.txt").read_text())
    (folder / "test_ids.txt").write_text((lists / "val.txt").read_text())
    items = read_list(folder / "list.txt", photographs)
    initial = random_init(Widths().scaled(WIDTH), seed=0)
    write_caffemodel(folder / "init.caffemodel", initial)

    recipe = find_recipe("voc12/attention3_esupv").changed(
        num_classes=len(CLASSES), classifier="fc8_voc12", batch_size=2, max_iter=ITERATIONS, **SETTINGS
    )
    trainer = Trainer(recipe, items, torch.device("cpu"), "fp32", SEED, caffe_streams="ziggurat")
    trainer.model.load_state_dict(from_caffe(initial, "init").weights.state_dict, strict=False)
    losses, displayed, arrays = [], [], {}
    with closing(trainer.batches(workers=0)) as batches:
        while trainer.iteration < ITERATIONS:
            trainer.backward(batches)
            losses.append(trainer.recent[-1])
            displayed.append(sum(trainer.smoothed().values()))
            trainer.update()
    rng = np.random.default_rng(0)
    for name, parameter in trainer.model.keyed_parameters().items():
        layer, kind = name.split(".")
        blob = f"{'fc8_voc12' if layer == 'fc8' else layer}@{int(kind == 'bias')}"
        index = arrays[f"index|{blob}"] = np.sort(rng.permutation(parameter.numel())[:VALUES])
        for of, tensor in (("weight", parameter.data), ("history", trainer.solver.state[parameter]["history"])):
            flat = tensor.reshape(-1).numpy()
            arrays[f"{ITERATIONS}|{of}|{blob}|values"] = flat[index]
            arrays[f"{ITERATIONS}|{of}|{blob}|stats"] = np.array([np.linalg.norm(flat), flat.sum(), abs(flat).max()])
    segmenter = Segmenter(trainer.model)
    for item in read_list(folder / "test_ids.txt", photographs, labelled=False):
        arrays[f"labels|{item.id}"] = segmenter(item.image).labels
    passes = np.array([[list(row.values())] * 2 for row in losses])  # each as far from the mean: not at all
    sha256 = hashlib.sha256((folder / "init.caffemodel").read_bytes()).hexdigest()
    info = {"names": list(losses[0]), "seed": SEED, "init_sha256": sha256, "classes": len(CLASSES), "batch": 2}
    arrays |= {"info_json": np.array(json.dumps(info | SETTINGS)), "train_displayed": np.array(displayed)}
    np.savez(folder / "record.npz", train_losses=passes, **arrays)
    return folder


def altered(folder: Path, to: Path, key: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    to.mkdir()
    for path in folder.glob("*.txt"):
        (to / path.name).write_text(path.read_text())
    arrays = dict(np.load(folder / "record.npz"))
    np.savez(to / "record.npz", **arrays | {key: change(arrays[key])})
    return to


def test_the_same_run_deviates_nowhere(folder, photographs):
    """Deviations are at most the rounding of the recorded figures. Everything in a record is compared."""
    assert is_full_width(folder) and not is_full_width(photographs)
    steps = []
    report = replay_full_width(
        read_full_width(folder), photographs, workers=0, progress=lambda: steps.append(len(steps))
    )
    assert report.passed and len(steps) == ITERATIONS
    assert max(comparison.deviation for comparison in report.comparisons) < 1e-6
    counts = {kind: sum(c.kind == kind for c in report.comparisons) for kind in ("loss", "weight", "bias", "history")}
    assert counts == {"loss": 5 * ITERATIONS, "weight": 2 * 18, "bias": 2 * 18, "history": 4 * 18}
    assert sum(comparison.kind == "test label" for comparison in report.comparisons) == 2


@pytest.mark.parametrize(
    "key, change, worst",
    [
        ("train_losses", lambda values: values + np.array([1e-4, 0, 0, 0]), ("loss", "loss")),
        ("train_displayed", lambda values: values + 1e-3, ("loss", "displayed")),
        (f"{ITERATIONS}|weight|conv3_1@0|values", lambda values: values * 1.001, ("weight", "conv3_1.weight")),
        (f"{ITERATIONS}|history|fc7@1|stats", lambda values: values * 1.1, ("history", "fc7.bias, L2 norm")),
    ],
)
def test_what_deviates_is_named(folder, photographs, tmp_path, key, change, worst):
    record = read_full_width(altered(folder, tmp_path / "altered", key, change))
    report = replay_full_width(record, photographs, workers=0)
    first = report.worst()[0]
    assert not report.passed and (first.kind, first.name) == worst


def test_other_pictures_or_initial_weights_are_refused(folder, photographs, tmp_path):
    others = photographs / "ImageSets" / "Segmentation" / "val.txt"
    with pytest.raises(InputError, match=r"val\.txt does not name the pictures of .*list\.txt in their order"):
        replay_full_width(read_full_width(folder), photographs, others)

    def start_elsewhere(info: np.ndarray) -> np.ndarray:
        return np.array(json.dumps(json.loads(str(info)) | {"init_sha256": "0" * 64}))

    record = read_full_width(altered(folder, tmp_path / "altered", "info_json", start_elsewhere))
    with pytest.raises(InputError, match=r"starts from other weights \(sha256 000000000000\)"):
        replay_full_width(record, photographs)


def test_the_tool_replays_it(folder, photographs):
    done = run_tool("replay_caffe", folder, "--data-root", photographs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("in float32: passed (161)")
    without = run_tool("replay_caffe", folder)
    assert without.returncode == 2 and "whose photographs are elsewhere: give --data-root" in without.stderr
