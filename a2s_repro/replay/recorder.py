"""Records a run of this package, in the layout that docs/fidelity/recorded_runs.md describes."""

import json
import os
from pathlib import Path

import numpy as np
import torch

from a2s_repro.caffe.conversion import to_caffe
from a2s_repro.checkpoint.weights import Weights
from a2s_repro.data.image_seg import RandomStream
from a2s_repro.data.images import read_pair
from a2s_repro.data.lists import Item
from a2s_repro.data.normalization import MEAN_BGR, subtract_mean
from a2s_repro.errors import InputError
from a2s_repro.files import replacing
from a2s_repro.models import DeepLab
from a2s_repro.recipes import Recipe
from a2s_repro.replay.blobs import first_blobs
from a2s_repro.replay.recording import MERGE, Arrays, RecordedRun, Recording
from a2s_repro.replay.replay import Training
from caffe_weights import write_caffemodel

RUN = "A"


def record(
    folder: str | os.PathLike,
    case: str,
    net: DeepLab,
    recipe: Recipe,
    items: list[Item],
    seed: int = 0,
    max_images: int = 16,
) -> Path:
    """Trains `net` in float64 with the recipe, without dropout, and records the run as case `case` of a new folder.

    The images are the top left crops, not mirrored, of the first `max_images` items that are large enough, in an order
    drawn from `seed`. Returns the case's file.

    Raises:
        InputError: the folder holds a record, the net has dropout, lr_policy is not step, or all images are too small.
    """
    folder = Path(folder)
    if any(folder.glob("*.npz")):
        raise InputError(f"{folder} already holds a record: give a new folder.")
    if net.dropout:
        raise InputError("a run with dropout cannot be replayed without its masks: give the net dropout 0.")
    if recipe.lr_policy != "step":
        raise InputError(f"lr_policy '{recipe.lr_policy}' cannot be recorded: a record's rate drops in steps.")
    images, labels = _crops(items, recipe, max_images)
    stream = RandomStream(len(images), recipe.batch_size, seed, mirror=False)
    passes = recipe.max_iter * recipe.iter_size
    order = np.array([[draw.index for draw in stream.batch(k)] for k in range(passes)])
    order = order.reshape(recipe.max_iter, recipe.iter_size, -1)

    def batch(iteration: int, pass_: int) -> tuple[torch.Tensor, torch.Tensor]:
        indices = order[iteration, pass_]
        pixels = np.stack([subtract_mean(images[i]) for i in indices])
        return torch.from_numpy(pixels), torch.from_numpy(labels[indices])

    settings = {
        name: getattr(recipe, name) for name in ("gamma", "stepsize", "momentum", "weight_decay", "shared_decay")
    }
    run = RecordedRun(
        rate=recipe.learning_rate(),
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        shared_decay=recipe.shared_decay,
        lr_mult=recipe.lr_mult,
        tops={},
        weights={},
        history={},
        copy_history={},
    )
    recording = Recording(
        name=case,
        config=net.config(),
        classifier=recipe.classifier,
        extra_supervision=recipe.extra_supervision,
        initial={name: tensor.detach().cpu().float().clone() for name, tensor in net.state_dict().items()},
        iterations=recipe.max_iter,
        passes=recipe.iter_size,
        batch=batch,
        runs={RUN: run},
        blobs={},
        gradients={},
        copy_gradients={},
        test_image=None,
        test={},
        mean=MEAN_BGR,
    )
    arrays, tops = _trained(recording)
    info = _info(recording, recipe, tops) | {"solver": settings}
    initial = to_caffe(Weights(recording.initial, {"model": recording.config, "classifier": recipe.classifier}))
    write_caffemodel(folder / "init_single.caffemodel", initial)
    _save(folder / "data.npz", {"images_bgr": images, "labels": labels, "mean_bgr": MEAN_BGR})
    _save(folder / f"net_{case}.npz", {"info_json": np.array(json.dumps(info)), "order": order} | arrays)
    return folder / f"net_{case}.npz"


def _crops(items: list[Item], recipe: Recipe, max_images: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for item in items:
        image, label = read_pair(item, recipe.num_classes)
        if min(label.shape) >= recipe.crop:
            images.append(image[: recipe.crop, : recipe.crop])
            labels.append(label[: recipe.crop, : recipe.crop])
        if len(images) == max_images:
            break
    if not images:
        raise InputError(f"no image of the list has {recipe.crop} rows and columns: give a smaller --crop.")
    return np.stack(images), np.stack(labels)


def _trained(recording: Recording) -> tuple[Arrays, list[str]]:
    """The arrays to record, by key, and the names of the run's tops."""
    stored, recomputed = first_blobs(recording, torch.float64, "cpu")
    arrays = {f"blob|{name}": blob for name, blob in (stored | recomputed).items()}
    training = Training(recording, RUN, torch.float64, "cpu")
    rows = []
    for iteration in range(recording.iterations):
        tops, _ = training.passes(iteration)
        rows.append(np.stack(list(tops.values()), axis=-1))
        if iteration == 0:
            gradients, _ = training.by_parameter_and_copy(lambda p: None if p.grad is None else p.grad.clone())
            arrays |= {f"grad|{_key(name, recording)}": value for name, value in gradients.items()}
        training.update(iteration)
    histories, _ = training.by_parameter_and_copy(lambda parameter: training.solver.state[parameter].get("history"))
    arrays |= {f"hist_{RUN}|{_key(name, recording)}": value for name, value in histories.items()}
    arrays |= {f"final_{RUN}|{_key(name, recording)}": value for name, value in training.net.keyed_parameters().items()}
    arrays[f"losses_{RUN}"] = np.stack(rows)
    return {key: np.asarray(torch.as_tensor(value).detach(), np.float32) for key, value in arrays.items()}, list(tops)


def _info(recording: Recording, recipe: Recipe, tops: list[str]) -> dict:
    config = recording.config
    cfg = {
        "classes": config["num_classes"],
        "pool5a": config["pool5a"],
        "w": {group: width for group, width in config["widths"].items() if group != "att_conv1"},
        "att": config["widths"]["att_conv1"],
        "exp": recipe.classifier.removeprefix("fc8_"),
        "esupv": recipe.extra_supervision,
    }
    kind = "single" if config["net"] == "DeepLabLargeFOV" else "msc"
    if "scales" in config:
        short = {merge: name for name, merge in MERGE.items()}
        cfg |= {"scales": config["scales"], "merge": short[config["merge"]], "head": config["head"]}
        kind = "msc_multi" if config["skip_net"] else "multi"
    rules = recording.net(torch.float32).parameter_rules(recipe.lr_mult)
    return {
        "id": recording.name,
        "kind": kind,
        "cfg": cfg,
        "shared_blobs": [],
        "base_lr": {RUN: recipe.base_lr},
        "tops": tops,
        "params": [_key(name, recording) for name in rules],
        "lr_mult": [rule.lr_mult for rule in rules.values()],
        "decay_mult": [rule.decay_mult for rule in rules.values()],
    }


def _key(name: str, recording: Recording) -> str:
    """`fc8.weight` -> `fc8_voc12/0`."""
    layer, kind = name.split(".")
    return f"{recording.classifier if layer == 'fc8' else layer}/{('weight', 'bias').index(kind)}"


def _save(path: Path, arrays: Arrays) -> None:
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)
