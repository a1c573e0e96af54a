"""Recorded training runs: folders with the values that one program computed, to check another program against.

docs/fidelity/recorded_runs.md describes the two layouts. Names in a record are Caffe's: `conv1_1_res05/0` is the
weight (`/1` the bias) of the copy of conv1_1 in the stream of scale 0.5.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from a2s_repro.caffe.conversion import from_caffe
from a2s_repro.caffe.layers import FUSION
from a2s_repro.data.image_seg import Draw, SegmentationDataset
from a2s_repro.data.lists import read_list
from a2s_repro.data.normalization import Normalization, subtract_mean
from a2s_repro.errors import InputError, first_line
from a2s_repro.models import AttentionHead, DeepLab, build_model
from a2s_repro.solver import LearningRate
from caffe_weights import (
    SUFFIX_OF_SCALE,
    CaffeNet,
    Layer,
    layers_of_phase,
    read_caffemodel,
    read_prototxt,
    read_solverstate,
    stream_of,
)

MERGE = {"avg": "average", "max": "max", "att": "attention"}
SOLVER = {"gamma": 0.1, "stepsize": 8, "momentum": 0.9, "weight_decay": 5e-4, "shared_decay": "per_stream"}
"""Default settings of a recorded run; its info overrides them."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """A training run that starts from the record's initial weights and uses its batches."""

    rate: LearningRate
    momentum: float
    weight_decay: float
    shared_decay: str
    """Decay of shared parameters, as in `parameter_groups`."""
    lr_mult: dict[str, float]
    """Learning-rate multipliers by layer; a bias has twice its layer's."""
    tops: Arrays
    """Losses and accuracies, (iterations, passes) each, by their names in the record."""
    weights: Arrays
    """Final weights by parameter. Here and in a history an array may hold only the first values."""
    history: Arrays
    """Final momentum by parameter, summed over sharing copies; empty if not recorded."""
    copy_history: Arrays
    """Final momentum of each copy, by `copy_name`; empty if not recorded."""


@dataclasses.dataclass(frozen=True)
class RecordedStreams:
    """The draws of a run from its random_seed."""

    seed: int
    dataset: SegmentationDataset
    draws: list[list[Draw]]
    """Draws by forward pass, with offsets in pixels."""
    transformer_seeds: np.ndarray
    """(passes + 1,), the seeds of the batches and of the batch after the last."""
    fillers: Arrays
    """Initial values of new layers, by parameter."""
    next_word: int
    """First word of the global generator after the run."""

    def batch(self, draws: list[Draw]) -> tuple[Tensor, Tensor]:
        samples = [self.dataset[draw] for draw in draws]
        return torch.stack([sample.image for sample in samples]), torch.stack([sample.label for sample in samples])


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recorded net: the inputs and settings of its runs, and their recorded results."""

    name: str
    config: dict
    """Config for `build_model`."""
    classifier: str
    extra_supervision: bool
    initial: dict[str, Tensor]
    """Initial state dict."""
    iterations: int
    passes: int
    """Forward and backward passes per update (iter_size)."""
    batch: Callable[[int, int], tuple[Tensor, Tensor]]
    """Function from (iteration, pass) to image (N, 3, H, W) float32 and labels (N, H, W)."""
    runs: dict[str, RecordedRun]
    blobs: Arrays
    """Blobs of the first forward pass, by Caffe's names."""
    gradients: Arrays
    """Gradients of the first iteration by parameter, summed over its passes and over sharing copies."""
    copy_gradients: Arrays
    """Gradients of the first iteration for each copy, by `copy_name`."""
    test_image: np.ndarray | None
    """(H, W, 3) uint8 BGR, the image of the TEST phase with the initial weights."""
    test: Arrays
    """Blobs of the TEST phase, by Caffe's names."""
    mean: np.ndarray
    """(3,) mean pixel, BGR."""
    streams: RecordedStreams | None = None
    """Recorded random draws; only for a run from a seed, with dropout."""

    @property
    def per_copy(self) -> bool:
        """Whether gradients or histories were recorded per copy."""
        return bool(self.copy_gradients) or any(run.copy_history for run in self.runs.values())

    def net(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> DeepLab:
        """The net with the initial weights."""
        net = build_model(self.config)
        net.load_state_dict(self.initial)
        return net.to(device, dtype)


def copy_name(layer: str, scale: float, kind: str) -> str:
    """`conv1_1`, 0.5, `weight` -> `conv1_1_res05.weight`."""
    return f"{layer}{SUFFIX_OF_SCALE[scale]}.{kind}"


def read_recording(folder: str | os.PathLike, case: str | None = None) -> Recording:
    """Reads a recorded run: case `case` of a folder of nets, or the end-to-end run of a folder with a run.npz.

    Raises:
        InputError: no such case, or a part of the record is missing; names it.
    """
    folder = Path(folder)
    with reading(folder):
        if case is None and (folder / "run.npz").exists():
            return _read_end_to_end(folder)
        return _read_net(folder, case)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Raises InputError, naming the missing part, where the block meets a damaged or incomplete record."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder of a recorded run.")
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        raise InputError(
            f"the record in {folder} lacks {error}: docs/fidelity/recorded_runs.md lists the required parts."
        ) from error
    except ValueError as error:  # from numpy on a damaged file, from json, and for mismatched lengths
        raise InputError(f"the record in {folder} cannot be read ({first_line(error)}).") from error


def cases(folder: Path) -> list[str]:
    """The names of the nets in a folder."""
    return sorted(path.stem.removeprefix("net_") for path in folder.glob("net_*.npz"))


def _read_net(folder: Path, case: str | None) -> Recording:
    known = cases(folder)
    if case is None and len(known) == 1:
        (case,) = known
    if case not in known:
        if not known:
            raise InputError(f"{folder} holds no recorded run: neither net_NAME.npz nor run.npz.")
        what = f"no case '{case}'" if case else "several cases"
        raise InputError(f"{folder} holds {what}: give --case, one of {', '.join(known)}.")
    arrays = load_arrays(folder / f"net_{case}.npz")
    info = json.loads(str(arrays["info_json"]))
    if case.endswith("_test") and "cfg" not in info:
        net = _read_net(folder, case.removesuffix("_test"))
        nothing = {"runs": {}, "blobs": {}, "gradients": {}, "copy_gradients": {}}
        return dataclasses.replace(net, name=case, **nothing, **_test_phase(arrays))
    cfg = info["cfg"]
    if cfg.get("dropout"):
        raise InputError(f"{case} was recorded with dropout, but only an end-to-end record holds the dropout masks.")
    classifier = f"fc8_{cfg['exp']}"
    config = _config(info, arrays)
    data = load_arrays(folder / "data.npz")
    order = arrays["order"]

    def batch(iteration: int, pass_: int) -> tuple[Tensor, Tensor]:
        indices = order[iteration, pass_]
        pixels = np.stack([subtract_mean(data["images_bgr"][i], data["mean_bgr"]) for i in indices])
        return torch.from_numpy(pixels), torch.from_numpy(data["labels"][indices])

    initial = _blobs_of_file(folder / "init_single.caffemodel") | _under(arrays, "head")
    shared = load_arrays(folder / "blobs_shared.npz") if info["shared_blobs"] else {}
    return Recording(
        name=case,
        config=config,
        classifier=classifier,
        extra_supervision=bool(cfg.get("esupv", "loss_res1" in info["tops"])),
        initial=_state_dict(config, _by_parameter(initial)),
        iterations=order.shape[0],
        passes=order.shape[1],
        batch=batch,
        runs={run: _read_run(folder, arrays, info, run) for run in info["base_lr"]},
        blobs={name: shared[f"blob|{name}"] for name in info["shared_blobs"]} | _under(arrays, "blob"),
        gradients=_summed(_under(arrays, "grad")),
        copy_gradients=_by_copy(_under(arrays, "grad_copy")),
        **_test_phase(arrays),
        mean=data["mean_bgr"],
    )


def _config(info: Mapping, arrays: Arrays) -> dict:
    """The config for `build_model`; fields missing from the record's cfg follow from its blobs or take defaults."""
    cfg, skip_net, scales = info["cfg"], info["kind"].startswith("msc"), info["cfg"].get("scales", [1])
    config = {
        "net": "DeepLabMSc" if skip_net else "DeepLabLargeFOV",
        "num_classes": cfg["classes"],
        "pool5a": cfg.get("pool5a", "blob|pool5a" in arrays),
        "dropout": 0,
        "widths": {**cfg["w"], "att_conv1": cfg["att"]} | ({"ms": cfg["branch"]} if "branch" in cfg else {}),
    }
    if len(scales) > 1:
        head = dataclasses.asdict(AttentionHead(**cfg.get("head", {})))
        merge = MERGE[cfg.get("merge", "att")]
        config |= {"net": "ShareNet", "scales": scales, "merge": merge, "skip_net": skip_net, "head": head}
    return config


def _test_phase(arrays: Arrays) -> dict[str, Any]:
    """The fields `test_image` and `test`."""
    test = _under(arrays, "test")
    if test and sum(key.endswith("_argmax") for key in test) != 1:
        raise KeyError("test|..._argmax")
    return {"test_image": test.pop("image_bgr") if test else None, "test": test}


def _read_run(folder: Path, arrays: Arrays, info: Mapping, run: str) -> RecordedRun:
    """Reads one run, with weights and history from Caffe's snapshot files if they exist, else from the npz."""
    solver = SOLVER | info.get("solver", {})
    losses = arrays[f"losses_{run}"]
    weights = _under(arrays, f"final_{run}") | _under(arrays, f"final_{run}_first400")
    history = _under(arrays, f"hist_{run}") | _under(arrays, f"hist_{run}_first400")
    copies: Arrays = {}
    prefix = f"{info['id']}_{run}_iter_{len(losses)}"
    if (folder / f"{prefix}.caffemodel").exists():
        weights = _blobs_of_file(folder / f"{prefix}.caffemodel")
    if (folder / f"{prefix}.solverstate").exists():
        state = read_solverstate(folder / f"{prefix}.solverstate")
        copies = history = dict(zip(info["params"], state.history, strict=True))
    return RecordedRun(
        rate=LearningRate(info["base_lr"][run], "step", gamma=solver["gamma"], stepsize=solver["stepsize"]),
        momentum=solver["momentum"],
        weight_decay=solver["weight_decay"],
        shared_decay=solver["shared_decay"],
        lr_mult=_lr_mult(info),
        tops={top: losses[:, :, column] for column, top in enumerate(info["tops"])},
        weights=_by_parameter(weights),
        history=_summed(history),
        copy_history=_by_copy(copies),
    )


def _read_end_to_end(folder: Path) -> Recording:
    arrays = load_arrays(folder / "run.npz")
    info = json.loads(str(arrays["info_json"]))
    trained = layers_of_phase(read_prototxt(folder / "train.prototxt"), "TRAIN")
    final = _under(arrays, "final")
    layers: dict[str, list[np.ndarray]] = {}
    for key, owner in zip(info["params"], info["owners"], strict=True):
        layers.setdefault(key.split("/")[0], []).append(final[key if owner < 0 else info["params"][owner]])
    described = [Layer(name, "Convolution", blobs) for name, blobs in layers.items()]
    names = [name for layer in trained for name in layer.get("name", [])]
    described += [Layer(name, "", []) for name in names if re.fullmatch("pool5a|fc[678]_concat", name)]
    by_max = any("MAX" in merge.get("operation", []) for layer in trained for merge in layer.get("eltwise_param", []))
    described.append(Layer(FUSION, "Eltwise" if by_max else "Power", []))
    meta = from_caffe(CaffeNet(info.get("name", "e2e"), described), "run.npz").weights.meta
    config = meta["model"] | {"dropout": info["dropout"]}

    files = _sibling(folder, "files", "data")
    transform = next((layer["transform_param"][-1] for layer in trained if "transform_param" in layer), {})
    mean, crop = np.array(transform.get("mean_value", []), np.float32), transform.get("crop_size")
    if crop is None or mean.shape != (3,):
        raise InputError(f"{folder / 'train.prototxt'} does not give the data layer's crop_size and three mean_values.")

    losses = arrays["losses"]
    iterations, passes = losses.shape[:2]
    words = ("index", "mirror", "h_off", "w_off")
    items, normalization = read_list(files / "list.txt", files), Normalization(mean)
    drawn = np.stack([arrays[word] for word in words], axis=-1).reshape(iterations * passes, -1, 4).tolist()
    fillers = _by_parameter(_under(arrays, "filler"))
    streams = RecordedStreams(
        seed=info["seed"],
        dataset=SegmentationDataset(items, config["num_classes"], int(crop[-1]), normalization),
        draws=[[Draw(*draw) for draw in batch] for batch in drawn],
        transformer_seeds=arrays["transformer_seeds"][1:],
        fillers=fillers,
        next_word=int(arrays["next_global_word"]),
    )

    # Caffe loads weights by layer name after the fillers, so the file's layers override them.
    loaded = _blobs_of_file(_sibling(folder, "init_single.caffemodel", "nets"))
    initial = fillers | _by_parameter({key: value for key, value in loaded.items() if key.split("/")[0] in layers})
    run = RecordedRun(
        rate=LearningRate(info["base_lr"], "step", gamma=info["gamma"], stepsize=info["stepsize"]),
        momentum=info["momentum"],
        weight_decay=info["weight_decay"],
        shared_decay=SOLVER["shared_decay"],
        lr_mult=_lr_mult(info),
        tops={top: losses[:, :, column] for column, top in enumerate(info["tops"])},
        weights=_by_parameter(final),
        history={},
        copy_history={},
    )
    return Recording(
        name=folder.name,
        config=config,
        classifier=meta["classifier"],
        extra_supervision="loss_res1" in info["tops"],
        initial=_state_dict(config, initial),
        iterations=iterations,
        passes=passes,
        batch=lambda iteration, pass_: streams.batch(streams.draws[iteration * passes + pass_]),
        runs={"A": run},
        blobs={},
        gradients=_summed(_under(arrays, "grad")),
        copy_gradients={},
        test_image=None,
        test={},
        mean=mean,
        streams=streams,
    )


def _lr_mult(info: Mapping) -> dict[str, float]:
    """The learning-rate multiplier of every layer's weight, if recorded."""
    slots = zip(map(slot, info["params"]), info.get("lr_mult", ()), strict=False)
    return {layer: mult for (layer, _, kind), mult in slots if kind == "weight"}


def load_arrays(path: Path) -> Arrays:
    if not path.exists():
        raise InputError(f"{path} is missing: a recorded run needs it.")
    with np.load(path) as archive:
        return dict(archive)


def _sibling(folder: Path, name: str, other: str) -> Path:
    """Path of `name` in the folder or in its sibling folder `other`."""
    for path in (folder / name, folder.parent / other / name):
        if path.exists():
            return path
    raise InputError(f"{name} is missing: it belongs in {folder}, or in {folder.parent / other}.")


def _blobs_of_file(path: Path) -> Arrays:
    return {f"{layer.name}/{i}": blob for layer in read_caffemodel(path).layers for i, blob in enumerate(layer.blobs)}


def _under(arrays: Arrays, prefix: str) -> Arrays:
    return {key.removeprefix(f"{prefix}|"): value for key, value in arrays.items() if key.startswith(f"{prefix}|")}


def slot(key: str) -> tuple[str, float, str]:
    """`fc8_voc12_res05/0` -> (`fc8`, 0.5, `weight`)."""
    name, index = key.split("/")
    layer, scale = stream_of(name)
    return "fc8" if layer.startswith("fc8_") else layer, scale, ("weight", "bias")[int(index)]


def _by_parameter(blobs: Arrays) -> Arrays:
    """Blobs by parameter name; copies of a parameter are identical."""
    slots = {key: slot(key) for key in blobs}
    return {f"{layer}.{kind}": blobs[key] for key, (layer, _, kind) in slots.items()}


def _by_copy(blobs: Arrays) -> Arrays:
    return {copy_name(*slot(key)): value for key, value in blobs.items()}


def _summed(blobs: Arrays) -> Arrays:
    """Blobs by parameter name, summed over copies."""
    total: Arrays = {}
    for key, value in blobs.items():
        layer, _, kind = slot(key)
        name = f"{layer}.{kind}"
        total[name] = total[name] + value if name in total else value
    return total


def _state_dict(config: dict, values: Arrays) -> dict[str, Tensor]:
    with torch.device("meta"):
        net = build_model(config)
    for name, parameter in net.state_dict().items():
        if values[name].shape != parameter.shape:
            raise InputError(f"the record's initial {name} is {values[name].shape}, not {tuple(parameter.shape)}.")
    return {name: torch.from_numpy(np.array(values[name], np.float32)) for name in net.state_dict()}
