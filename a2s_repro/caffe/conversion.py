"""Converts Caffe nets to state dicts and back.

A share-net's file holds one copy of the shared layers per stream; the copies are compared and folded into one.
"""

import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from a2s_repro.caffe.layers import (
    ATTENTION,
    FUSION,
    FUSION_TYPE,
    LAYERS_OF_WIDTH,
    MODULES,
    SHARED,
    SKIP_NET,
    TRUNK,
    module_of,
)
from a2s_repro.caffe.vgg16 import is_fully_connected, net_from_torchvision, subsampled
from a2s_repro.checkpoint.weights import Weights
from a2s_repro.errors import InputError
from a2s_repro.files import sha256_of
from a2s_repro.models import DeepLab, DeepLabLargeFOV, Widths, build_model
from a2s_repro.models.skip_branches import SKIP_LAYERS
from caffe_weights import SUFFIX_OF_SCALE, CaffeNet, Layer, read_caffemodel, same_blobs, stream_of

GREY_LEVEL_DEVIATION = 64
"""Approximate standard deviation of a photograph's grey levels around the mean pixel."""


@dataclass(frozen=True)
class Conversion:
    """The weights converted from a Caffe file, and a record of its layers by their Caffe names.

    `copies` are the folded copies of shared layers, `skipped` the layers skipped on request, `missing` the layers of
    the net that the file lacks, and `unmatched` the layers of the file that the net lacks.
    """

    weights: Weights
    copies: list[str]
    skipped: list[str]
    missing: list[str]
    unmatched: list[str]

    def summary(self) -> str:
        """A report of the conversion in a few lines."""
        meta = self.weights.meta
        matched = list(dict.fromkeys(key.split(".")[0] for key in self.weights.state_dict))
        lines = [
            *(
                [f"sha256 of {meta['source']['file']}: {meta['source']['sha256']}"]
                if "sha256" in meta["source"]
                else []
            ),
            f"matched {len(matched)} layers: {', '.join(matched)}",
            f"folded {len(self.copies)} shared copies; scales {' '.join(f'{scale:g}' for scale in meta['scales'])}",
            f"pool5a: {'yes' if meta['pool5a'] else 'no'}",
            f"classifier: {meta['classifier'] or 'none'}",
        ]
        if meta["source"].get("subsampled"):
            lines.append("sub-sampled fc6 and fc7, dropped fc8")
        for what in ("skipped", "missing", "unmatched"):
            if names := getattr(self, what):
                lines.append(f"{what}: {', '.join(names)}")
        return "\n".join(lines)


def convert_file(path: str | os.PathLike, *, subsample: bool = False, **options: Any) -> Conversion:
    """Converts a `.caffemodel`, or torchvision's VGG-16 state dict (`.pth`), with the options of `from_caffe`.

    `subsample` first reduces fc6 and fc7 of the plain VGG-16 (`vgg16.subsampled`). The meta's `source` also holds the
    file's `sha256` and `subsampled`. Raises InputError, CaffeFileError or OSError.
    """
    path = Path(path)
    net = net_from_torchvision(path) if path.suffix == ".pth" else read_caffemodel(path)
    if subsample:
        net = subsampled(net, path.name)
    conversion = from_caffe(net, path.name, **options)
    conversion.weights.meta["source"].update(sha256=sha256_of(path), subsampled=subsample)
    return conversion


def from_caffe(
    net: CaffeNet,
    file: str,
    *,
    skip: Collection[str] = (),
    num_classes: int | None = None,
    allow_missing: bool = False,
    allow_unmatched: bool = False,
) -> Conversion:
    """Converts a Caffe DeepLab-LargeFOV, DeepLab-MSc or share-net to float32 weights.

    The trunk conv1_1 .. fc7 is required; the classifier, the skip branches and the attention head are optional (an init
    file has none). Widths are inferred from the shapes, so thin nets convert, too.

    Args:
        net: content of a `.caffemodel`; blobs may have V1 shapes.
        file: the file's name, for the meta and for errors.
        skip: layers to leave out, with their copies, by their name in the file; `fc8` also matches the classifier.
        num_classes: required number of the classifier's outputs.
        allow_missing: accept a file that lacks some layers of the trunk, the skip branches or the attention head.
        allow_unmatched: drop layers with weights that the net lacks.

    The meta holds `pool5a` (whether the file has that layer), `classifier` (its Caffe name, or None), `scales`,
    `widths`, `source` ({file, kind: "init" without a classifier, else "net"}) and, if the file determines the whole
    net, `model` (for `build_model`, with drop ratio 0.5, because Caffe's files do not hold the ratio).

    Raises InputError for a file without any layer of the net, and, naming the layer, for missing or unmatched layers,
    copies that differ, shapes that do not chain,
    values out of float32's range, a fully connected fc6 (the plain VGG-16), and, on a trunk of full width, any fc6
    other than LargeFOV's.
    """
    layers, skipped = _without_skipped(_layers_with_blobs(net, file), skip, file)
    bases, copies, scales = _folded(layers, file)
    modules = _by_module(bases, file)
    missing = [name for name in _wanted(modules) if name not in modules and name not in skipped]
    if missing and not allow_missing:
        raise InputError(f"{file} lacks layers of the net: {', '.join(missing)}; accept that with --allow-missing.")
    unmatched = [name for name in modules if name not in MODULES]
    if unmatched and not allow_unmatched:
        raise InputError(
            f"{file} has layers that the net lacks: {', '.join(unmatched)}; drop them with --skip or --allow-unmatched."
        )
    parameters = {name: _parameters(modules[name], file) for name in MODULES if name in modules}
    widths = _widths({name: weight.shape for name, (weight, _) in parameters.items()})
    _check_fc6(parameters, widths, file)
    classifier = modules["fc8"].name if "fc8" in modules else None
    outputs = parameters["fc8"][1].size if classifier else None
    if num_classes is not None and outputs != num_classes:
        head = f"a classifier of {outputs} outputs" if classifier else "no classifier"
        raise InputError(f"{file} has {head}, but the classifier must have {num_classes} outputs.")

    meta = {
        "pool5a": any(layer.name == "pool5a" for layer in net.layers),
        "classifier": classifier,
        "scales": scales,
        "widths": widths,
        "source": {"file": file, "kind": "net" if classifier else "init"},
    }
    skip_net = not modules.keys().isdisjoint(SKIP_LAYERS)
    config = {"num_classes": outputs or 1, "pool5a": meta["pool5a"], "widths": widths}
    config["net"] = "DeepLabMSc" if skip_net else "DeepLabLargeFOV"
    merge = _merge(net)
    if merge and len(scales) > 1:
        head = _head(net, parameters)
        config |= {"net": "ShareNet", "scales": scales, "merge": merge, "skip_net": skip_net, "head": head}
    elif not modules.keys().isdisjoint(ATTENTION):
        raise InputError(f"{file} has an attention head but only one scale: --skip att_conv1 and att_fc.")
    model = _without_values(config, file)
    state_dict = _fitted(parameters, model, file)
    if not state_dict:
        raise InputError(f"{file} has none of the net's layers (conv1_1 .. fc7): it is of another net.")
    if state_dict.keys() == model.state_dict().keys() and model.scales == tuple(scales):
        meta["model"] = model.config()
    return Conversion(Weights(state_dict, meta), copies, skipped, missing, unmatched)


def to_caffe(weights: Weights, file: str = "the weights") -> CaffeNet:
    """Converts weights to a Caffe net with the authors' order of layers and one copy of the shared layers per stream.

    The trunks of the net's scales come first, in the order 1, 0.5, 0.75, 0.25; then the classifiers in the same order,
    under the meta's `classifier` name (`fc8` if it has none); then the attention head. In a skip-net the scales are in
    descending order, and every stream ends with its classifier. Layers without blobs are written only if they
    distinguish nets: pool5a, the Concat that feeds the attention head, and fc8_fusion. `file` names the weights in
    errors.

    Raises InputError if `from_caffe` would not read the same weights back: for layers unknown to these nets, shapes
    that do not fit each other or the meta, and values that are not finite.
    """
    state_dict, meta = weights.state_dict, weights.meta
    known = {f"{module}.{kind}" for module in MODULES for kind in ("weight", "bias")}
    if foreign := sorted(state_dict.keys() - known):
        named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise InputError(
            f"{file} has parameters that the authors' Caffe nets do not have: {named}; only nets of Attention to Scale "
            "can be exported to Caffe."
        )
    model = _described_model(weights, file)
    scales = model.scales if model else meta.get("scales", [1])
    stream_order = model.stream_order if model else [scale for scale in SUFFIX_OF_SCALE if scale in scales]
    merge = model.merge if model else None
    pool5a = model.pool5a is not None if model else meta.get("pool5a")
    classifier = str(meta.get("classifier") or "fc8")

    def written(module: str, suffix: str = "") -> Iterator[Layer]:
        if module == "fc6" and pool5a:
            yield Layer(f"pool5a{suffix}", "Pooling", [])
        tensors = [state_dict[key] for key in (f"{module}.weight", f"{module}.bias") if key in state_dict]
        if tensors:
            name = classifier if module == "fc8" else module
            yield Layer(name + suffix, "Convolution", [tensor.detach().float().cpu().numpy() for tensor in tensors])

    skip_net = any(key.startswith(SKIP_LAYERS) for key in state_dict)
    layers: list[Layer] = []
    for modules in [SKIP_NET] if skip_net else [TRUNK, ("fc8",)]:
        for scale in stream_order:
            for module in modules:
                layers += written(module, SUFFIX_OF_SCALE[scale])
    if merge == "attention":
        layers.append(Layer(f"{model.head_config.features}_concat", "Concat", []))
    for module in ATTENTION:
        layers += written(module)
    if merge:
        layers.append(Layer(FUSION, FUSION_TYPE[merge], []))
    net = CaffeNet("a2s_repro", layers)
    if from_caffe(net, file, allow_missing=True).weights.state_dict.keys() != state_dict.keys():
        raise InputError(f"{file} does not record the scales of its layers: the file is damaged.")
    return net


def _described_model(weights: Weights, file: str) -> DeepLab | None:
    """The model of the meta, on the meta device, or None. Raises InputError if the weights do not fit it."""
    if "model" not in weights.meta:
        return None
    model = _without_values(weights.meta["model"], file)
    theirs, ours = weights.state_dict, model.state_dict()
    differing = sorted(theirs.keys() ^ ours.keys()) or [key for key in ours if theirs[key].shape != ours[key].shape]
    if differing:
        raise InputError(f"{file} holds another net than it describes ({differing[0]} differs): the file is damaged.")
    return model


def _without_values(config: dict, file: str) -> DeepLab:
    """The model of a config, on the meta device."""
    try:
        with torch.device("meta"):
            return build_model(config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def random_init(widths: Widths, seed: int) -> CaffeNet:
    """A trunk conv1_1 .. fc7 with random weights, which replaces a trained init file for thin nets and trials.

    Weights are Caffe's msra filler (He et al. 2015: normal, variance 2 / fan-in), biases 0. The filler preserves the
    standard deviation of the pixels, so every layer's weights are also divided by the same factor to make fc7 of order
    1. Scaling conv1_1 alone would give the same features, but conv1_1 would then diverge at learning rates that suit
    the other layers.
    """
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in DeepLabLargeFOV(1, widths=widths).state_dict().items()}
    generator = np.random.default_rng(seed)
    damping = GREY_LEVEL_DEVIATION ** (-1 / len(TRUNK))
    layers = []
    for name in TRUNK:
        shape = shapes[f"{name}.weight"]
        deviation = np.float32(damping * math.sqrt(2 / math.prod(shape[1:])))
        weight = deviation * generator.standard_normal(shape, np.float32)
        layers.append(Layer(name, "Convolution", [weight, np.zeros(shape[0], np.float32)]))
    return CaffeNet("random_init", layers)


def _layers_with_blobs(net: CaffeNet, file: str) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    for layer in net.layers:
        if layer.blobs and layers.setdefault(layer.name, layer) is not layer:
            raise InputError(f"{file} has two layers of the name {layer.name} with weights: the file is damaged.")
    return layers


def _without_skipped(
    layers: Mapping[str, Layer], skip: Collection[str], file: str
) -> tuple[dict[str, Layer], list[str]]:
    def names(name: str) -> set[str]:
        base, _ = stream_of(name)
        return {name, base, module_of(base)}

    if unknown := sorted(set(skip).difference(*map(names, layers))):
        raise InputError(f"{file} has no layer {unknown[0]} to skip.")
    skipped = [name for name in layers if not names(name).isdisjoint(skip)]
    return {name: layer for name, layer in layers.items() if name not in skipped}, skipped


def _folded(layers: Mapping[str, Layer], file: str) -> tuple[list[Layer], list[str], list[float]]:
    """The distinct layers under their names without suffix, the copies' names, and the scales in descending order."""
    owners: dict[str, Layer] = {}
    copies, scales = [], set()
    for name, layer in layers.items():
        base, scale = stream_of(name)
        if module_of(base) in SKIP_NET:
            scales.add(scale)
        owner = owners.setdefault(base, layer)
        if owner is not layer:
            if not same_blobs(layer, owner):
                raise InputError(
                    f"layer {name} of {file} differs from {owner.name}, but streams share weights: --skip one."
                )
            copies.append(name)
    bases = [replace(owner, name=base) for base, owner in owners.items()]
    return bases, copies, sorted(scales or {1}, reverse=True)


def _by_module(layers: list[Layer], file: str) -> dict[str, Layer]:
    modules: dict[str, Layer] = {}
    for layer in layers:
        first = modules.setdefault(module_of(layer.name), layer)
        if first is not layer:
            raise InputError(f"{file} has two classifiers, {first.name} and {layer.name}: --skip one.")
    return modules


def _wanted(modules: Collection[str]) -> tuple[str, ...]:
    """The required modules: the trunk, and all skip branches or the whole attention head if the file has part of it."""
    sides = () if set(modules).isdisjoint(SKIP_LAYERS) else SKIP_LAYERS
    heads = {"att_conv2": ATTENTION, "att_conv1": ("att_conv1", "att_fc"), "att_fc": ("att_fc",)}
    return TRUNK + sides + next((head for layer, head in heads.items() if layer in modules), ())


def _parameters(layer: Layer, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a convolution, (O, C, kh, kw) and (O,), float32."""
    where = f"layer {layer.name} of {file}"
    if len(layer.blobs) != 2:
        raise InputError(f"{where} has {len(layer.blobs)} blobs, not a weight and a bias.")
    with np.errstate(over="ignore"):
        weight, bias = (blob.astype(np.float32, copy=False) for blob in layer.blobs)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise InputError(f"{where} holds NaN, infinite or too large values: its training diverged.")
    if layer.name == "fc6" and is_fully_connected(weight):
        raise InputError(
            f"{where} is the plain VGG-16's ({_spelled(weight)}), and LargeFOV's is a 3x3 convolution "
            "(1024x512x3x3): convert with --subsample."
        )
    if weight.ndim != 4 or bias.size != max(bias.shape, default=0):
        raise InputError(f"{where} has shapes {_spelled(weight)} and {_spelled(bias)}: it is no convolution.")
    return weight, bias.ravel()


def _widths(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The width of each group of layers: the outputs of its first layer, or else the inputs of the next group."""
    outside = {"att_conv1": "att_conv1", "ms": "data_conv"}
    widths = {width: shapes[layer][0] for width, layer in outside.items() if layer in shapes}
    for group, layers in LAYERS_OF_WIDTH.items():
        after = SHARED[SHARED.index(layers[-1]) + 1]
        if inside := [shapes[name][0] for name in layers if name in shapes]:
            widths[group] = inside[0]
        elif after in shapes:
            widths[group] = shapes[after][1]
    return widths


def _check_fc6(parameters: Mapping[str, tuple[np.ndarray, np.ndarray]], widths: Mapping[str, int], file: str) -> None:
    """Raises InputError for the fc6 of another DeepLab variant (other kernel size or outputs) on the full VGG-16."""
    full = Widths()
    expected = (full.fc6, full.conv5, 3, 3)
    is_full = all(widths.get(group) == getattr(full, group) for group in ("conv1", "conv2", "conv3", "conv4", "conv5"))
    if is_full and "fc6" in parameters and parameters["fc6"][0].shape != expected:
        raise InputError(
            f"layer fc6 of {file} is {_spelled(parameters['fc6'][0])}, but LargeFOV's is 1024x512x3x3: "
            "the file holds another net; leave out fc6 and the layers after it with --skip."
        )


def _merge(net: CaffeNet) -> str | None:
    """The merge of a share-net, inferred from its layers, or None."""
    types = {layer.name: layer.type for layer in net.layers}
    if not types.keys().isdisjoint(ATTENTION):
        return "attention"
    return {"Power": "average", "Eltwise": "max"}.get(types.get(FUSION, ""))


def _head(net: CaffeNet, parameters: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """The fields of `AttentionHead` that follow from the layers."""
    head: dict[str, Any] = {}
    for layer in net.layers:
        if layer.name in ("fc6_concat", "fc7_concat", "fc8_concat"):
            head["features"] = layer.name.removesuffix("_concat")
    for count, layer in enumerate(("att_fc", "att_conv1", "att_conv2"), 1):
        if layer in parameters:
            head["layers"] = count
    if "att_conv1" in parameters:
        head["kernel"] = parameters["att_conv1"][0].shape[2]
    return head


def _fitted(
    parameters: Mapping[str, tuple[np.ndarray, np.ndarray]], model: torch.nn.Module, file: str
) -> dict[str, torch.Tensor]:
    """The parameters under the model's names, checked against its shapes."""
    state_dict = {}
    for key, expected in model.state_dict().items():
        module, kind = key.split(".")
        if module in parameters:
            array = parameters[module][0 if kind == "weight" else 1]
            if array.shape != expected.shape:
                raise InputError(
                    f"the {kind} of layer {module} of {file} is {_spelled(array)}, but {_spelled(expected)} fits the "
                    "layers around it."
                )
            state_dict[key] = torch.tensor(array)
    return state_dict


def _spelled(array: np.ndarray | torch.Tensor) -> str:
    return "x".join(map(str, array.shape)) or "a scalar"
