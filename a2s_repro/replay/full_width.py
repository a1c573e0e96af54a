"""A record at full width: the first iterations of the papers' net, from one seed, on photographs.

The main net (voc12/attention3_esupv, other classes and settings as `info_json` has them) is trained as by
tools/train_voc.py with Caffe's streams. Its tensors are too large to be kept whole: a record holds the L2 norm of each
and about 200 of its values. docs/fidelity describes the folder.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from a2s_repro.caffe.conversion import from_caffe, random_init
from a2s_repro.checkpoint.initialisation import load_layers
from a2s_repro.data.images import read_image
from a2s_repro.data.lists import read_lines, read_list
from a2s_repro.errors import InputError
from a2s_repro.inference.segmenter import Segmenter
from a2s_repro.models import Widths
from a2s_repro.recipes import Recipe, find_recipe
from a2s_repro.replay.gates import Comparison, Report, compare
from a2s_repro.replay.recording import Arrays, load_arrays, reading, slot
from a2s_repro.training.trainer import Trainer
from caffe_weights import write_caffemodel

RECORD = "record.npz"
RECIPE = "voc12/attention3_esupv"
INIT_SEED = 0

GATES = {"loss": 2e-4, "weight": 1e-4, "bias": 5e-3, "history": 8e-3, "test label": 1e-3}
"""Largest deviation by kind, about five times what two correct float32 programs are apart, and each from float64, after
ten iterations. Losses: absolute. Weights, biases, histories: relative L2. Test labels: share of the pixels."""

FIRST_LOSS_GATE = 3e-5
"""For the losses of iteration 0, which no update has changed yet."""


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A tensor as far as it was recorded."""

    index: np.ndarray
    """Places of the values in the flat tensor, which is laid out as Caffe's blob."""
    values: np.ndarray
    norm: float
    """L2 norm of the whole tensor."""


@dataclasses.dataclass(frozen=True)
class FullWidth:
    """What was recorded, and how to repeat it."""

    folder: Path
    recipe: Recipe
    seed: int
    init_sha256: str
    """Of the `.caffemodel` of initial weights, which tools/make_init.py draws with seed 0."""
    losses: dict[str, np.ndarray]
    """By name, (iterations,) each: means over the passes of an iteration."""
    displayed: np.ndarray
    """(iterations,) the sum of the losses, smoothed as Caffe displays it."""
    states: dict[int, dict[tuple[str, str], Sampled]]
    """By the number of updates made: ("weight" or "history", parameter) -> the tensor. Sharing copies are summed."""
    labels: Arrays
    """(H, W) uint8 by the id of a test picture, as the net labels it after the last iteration."""


def is_full_width(folder: str | os.PathLike) -> bool:
    """Whether a folder holds such a record."""
    return (Path(folder) / RECORD).is_file()


def read_full_width(folder: str | os.PathLike) -> FullWidth:
    """Reads a record. Raises InputError if it lacks a part, naming it."""
    folder = Path(folder)
    with reading(folder):
        arrays = {key.replace("@", "/"): value for key, value in load_arrays(folder / RECORD).items()}
        info = json.loads(str(arrays["info_json"]))
        indices = {key.removeprefix("index|"): value for key, value in arrays.items() if key.startswith("index|")}
        (classifier,) = {key.split("/")[0] for key in indices if key.startswith("fc8_")}
        losses = arrays["train_losses"].mean(1)
        states: dict[int, dict[tuple[str, str], Sampled]] = {}
        for key in arrays:
            count, *rest = key.split("|")
            if rest[2:] != ["values"] or int(count) > len(losses):
                continue
            kind, blob, _ = rest
            layer, _, parameter = slot(blob)
            sampled = Sampled(indices[blob], arrays[key], float(arrays[f"{count}|{kind}|{blob}|stats"][0]))
            states.setdefault(int(count), {})[kind, f"{layer}.{parameter}"] = sampled
        return FullWidth(
            folder=folder,
            recipe=find_recipe(RECIPE).changed(
                num_classes=info["classes"],
                classifier=classifier,
                batch_size=info["batch"],
                max_iter=len(losses),
                **{name: info[name] for name in ("crop", "iter_size", "base_lr", "stepsize", "gamma", "momentum")},
                weight_decay=info["weight_decay"],
                width=info.get("width", 1),
            ),
            seed=info["seed"],
            init_sha256=info["init_sha256"],
            losses=dict(zip(info["names"], losses.T, strict=True)),
            displayed=arrays["train_displayed"],
            states=states,
            labels={key.removeprefix("labels|"): value for key, value in arrays.items() if key.startswith("labels|")},
        )


def replay_full_width(
    record: FullWidth,
    photographs: str | os.PathLike,
    train_list: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    rtol: float | None = None,
    workers: int = 2,
    progress: Callable[[], Any] = lambda: None,
) -> Report:
    """Trains the recorded iterations again, and compares losses, weights, histories and the labels of test pictures.

    Args:
        photographs: root of the data set.
        train_list: list file of the same pictures in the same order; default: the record's list.txt.
        device: on a GPU, deviations are shown only.
        rtol: one gate on the relative deviation in place of all others.
        workers: decoding processes.
        progress: called after every iteration.

    Raises:
        InputError: other pictures than the record's, or other initial weights.
    """
    recipe, names = record.recipe, list(record.losses)
    items = read_list(train_list or record.folder / "list.txt", photographs)
    recorded_ids = [Path(line.split()[0]).stem for line in read_lines(record.folder / "list.txt")]
    if [item.id for item in items] != recorded_ids:
        raise InputError(f"{train_list} does not name the pictures of {record.folder / 'list.txt'} in their order.")
    device = torch.device(device)
    gates = GATES if device.type == "cpu" else dict.fromkeys(GATES)

    trainer = Trainer(recipe, items, device, "fp32", record.seed, caffe_streams="ziggurat")
    _load_initial_weights(trainer, record)
    comparisons = []
    with closing(trainer.batches(workers)) as batches:
        for iteration in range(recipe.max_iter):
            trainer.backward(batches)
            ours, displayed = trainer.recent[-1], sum(trainer.smoothed().values())
            trainer.update()
            gate = FIRST_LOSS_GATE if iteration == 0 and gates["loss"] else gates["loss"]
            place = {"iteration": iteration}
            comparisons += [
                compare("loss", name, ours.get(name), record.losses[name][iteration], gate, **place) for name in names
            ]
            total = record.displayed[iteration]
            comparisons.append(compare("loss", "displayed", displayed, total, gates["loss"], **place))
            comparisons += _compared_state(trainer, record.states.get(trainer.iteration, {}), gates)
            progress()
    comparisons += _compared_labels(trainer, record, photographs, gates)
    if rtol is not None:
        comparisons = [comparison.held_to(rtol) for comparison in comparisons]
    return Report(record.folder.name, "float32", comparisons, flips={})


def _load_initial_weights(trainer: Trainer, record: FullWidth) -> None:
    initial = random_init(Widths().scaled(record.recipe.width), INIT_SEED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "init.caffemodel"
        write_caffemodel(path, initial)
        drawn = hashlib.sha256(path.read_bytes()).hexdigest()
    if drawn != record.init_sha256:
        raise InputError(
            f"{record.folder} starts from other weights (sha256 {record.init_sha256[:12]}) than tools/make_init.py "
            f"draws here ({drawn[:12]}): NumPy's generator may have changed since."
        )
    load_layers(trainer.model, from_caffe(initial, "init").weights, "init", record.recipe.classifier)


def _compared_state(
    trainer: Trainer, recorded: dict[tuple[str, str], Sampled], gates: dict[str, float | None]
) -> Iterator[Comparison]:
    for (kind, name), theirs in recorded.items():
        parameter = trainer.model.keyed_parameters()[name]
        whole = parameter if kind == "weight" else trainer.solver.state[parameter]["history"]
        ours: Tensor = whole.detach().contiguous().flatten().cpu().double()
        kind = "bias" if kind == "weight" and name.endswith("bias") else kind
        place = {"iteration": trainer.iteration}
        yield compare(kind, name, ours[torch.from_numpy(theirs.index).long()], theirs.values, gates[kind], **place)
        yield compare(kind, f"{name}, L2 norm", ours.norm(), np.array(theirs.norm), gates[kind], **place)


def _compared_labels(
    trainer: Trainer, record: FullWidth, photographs: str | os.PathLike, gates: dict[str, float | None]
) -> Iterator[Comparison]:
    segmenter = Segmenter(trainer.model, pad_to=record.recipe.test_crop)
    for item in read_list(record.folder / "test_ids.txt", photographs, labelled=False):
        differing = float((segmenter(read_image(item.image), order="bgr").labels != record.labels[item.id]).mean())
        yield Comparison("test label", item.id, differing, differing, gates["test label"], by="absolute")
