"""The layers of a Caffe file as the modules of a system: streams folded, names and shapes checked."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import torch

from a2s_repro.caffe.layers import LAYERS_OF_WIDTH, SHARED, System, kinds_of
from a2s_repro.caffe.vgg16 import is_fully_connected
from a2s_repro.errors import InputError
from a2s_repro.models import Widths
from caffe_weights import CaffeNet, Layer, same_blobs, stream_of

Parameters = Mapping[str, Mapping[str, np.ndarray]]
"""Module -> kind of tensor (`weight`, `mean`, ...) -> its values, float32."""

_KINDS = {
    ("weight", "bias"): "a weight and a bias",
    ("weight",): "a weight alone",
    ("mean", "variance", "scale_factor"): "a mean, a variance and a scale factor",
}
_SHOWN = 6
"""Number of layers that a sentence names; of a ResNet hundreds may be missing."""


def layers_with_blobs(net: CaffeNet, file: str) -> dict[str, Layer]:
    """The layers with blobs by name. Raises InputError if two have one name."""
    layers: dict[str, Layer] = {}
    for layer in net.layers:
        if layer.blobs and layers.setdefault(layer.name, layer) is not layer:
            raise InputError(f"{file} has two layers of the name {layer.name} with weights: the file is damaged.")
    return layers


def without_skipped(
    layers: Mapping[str, Layer], skip: Collection[str], file: str
) -> tuple[dict[str, Layer], list[str]]:
    """The layers without those that `skip` names, and the names of those, copies included.

    Raises InputError if the file has no layer of a name in `skip`.
    """

    def names(name: str) -> set[str]:
        base, _ = stream_of(name)
        return {name, base} | ({base.partition("_")[0]} if base.startswith(("fc8_", "fc1_")) else set())

    if unknown := sorted(set(skip).difference(*map(names, layers))):
        raise InputError(f"{file} has no layer {unknown[0]} to skip.")
    skipped = [name for name in layers if not names(name).isdisjoint(skip)]
    return {name: layer for name, layer in layers.items() if name not in skipped}, skipped


def folded(layers: Mapping[str, Layer], system: System, file: str) -> tuple[list[Layer], list[str], list[float]]:
    """The distinct layers under their names without suffix, the copies' names, and the scales in descending order."""
    owners: dict[str, Layer] = {}
    copies, scales = [], set()
    for name, layer in layers.items():
        base, scale = stream_of(name)
        if system.module_of(base) in system.shared:
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


def by_module(layers: list[Layer], system: System, file: str) -> dict[str, Layer]:
    """The layers by their modules. Raises InputError for two classifiers."""
    modules: dict[str, Layer] = {}
    for layer in layers:
        first = modules.setdefault(system.module_of(layer.name), layer)
        if first is not layer:
            raise InputError(f"{file} has two classifiers, {first.name} and {layer.name}: --skip one.")
    return modules


def parameters_of(layer: Layer, module: str, file: str) -> dict[str, np.ndarray]:
    """The tensors of a layer by kind, float32: a convolution's weight is (O, C, kh, kw), all others have one axis."""
    where, kinds = f"layer {layer.name} of {file}", kinds_of(module)
    if len(layer.blobs) != len(kinds):
        raise InputError(f"{where} has {len(layer.blobs)} blobs, not {_KINDS[kinds]}.")
    with np.errstate(over="ignore"):
        blobs = {kind: blob.astype(np.float32, copy=False) for kind, blob in zip(kinds, layer.blobs, strict=True)}
    if not all(np.isfinite(blob).all() for blob in blobs.values()):
        raise InputError(f"{where} holds NaN, infinite or too large values: its training diverged.")
    if layer.name == "fc6" and is_fully_connected(blobs["weight"]):
        raise InputError(
            f"{where} is the plain VGG-16's ({spelled(blobs['weight'])}), and LargeFOV's is a 3x3 convolution "
            "(1024x512x3x3): convert with --subsample."
        )
    is_convolution = not module.startswith(("bn", "scale"))
    vectors = {kind: blob for kind, blob in blobs.items() if not (is_convolution and kind == "weight")}
    if any(blob.size != max(blob.shape, default=0) for blob in vectors.values()) or (
        is_convolution and blobs["weight"].ndim != 4
    ):
        shapes = " and ".join(map(spelled, blobs.values()))
        kind = "convolution" if is_convolution else "normalisation"
        raise InputError(f"{where} has shapes {shapes}: it is no {kind}.")
    return blobs | {kind: blob.ravel() for kind, blob in vectors.items()}


def vgg16_widths(parameters: Parameters) -> dict[str, int]:
    """The width of each group of layers: the outputs of its first layer, or else the inputs of the next group.

    Of the branches of atrous spatial pyramid pooling, whose widths are equal, it takes the first.
    """
    shapes = {name: tensors["weight"].shape for name, tensors in parameters.items()}
    shapes |= {name.removesuffix("_1"): shape for name, shape in shapes.items() if name in ("fc6_1", "fc7_1", "fc8_1")}
    outside = {"att_conv1": "att_conv1", "ms": "data_conv"}
    widths = {width: shapes[layer][0] for width, layer in outside.items() if layer in shapes}
    for group, layers in LAYERS_OF_WIDTH.items():
        after = SHARED[SHARED.index(layers[-1]) + 1]
        if inside := [shapes[name][0] for name in layers if name in shapes]:
            widths[group] = inside[0]
        elif after in shapes:
            widths[group] = shapes[after][1]
    return widths


def check_fc6(parameters: Parameters, widths: Mapping[str, int], file: str) -> None:
    """Raises InputError for the fc6 of another DeepLab variant (other kernel size or outputs) on the full VGG-16."""
    full = Widths()
    expected = (full.fc6, full.conv5, 3, 3)
    is_full = all(widths.get(group) == getattr(full, group) for group in ("conv1", "conv2", "conv3", "conv4", "conv5"))
    if is_full and "fc6" in parameters and parameters["fc6"]["weight"].shape != expected:
        raise InputError(
            f"layer fc6 of {file} is {spelled(parameters['fc6']['weight'])}, but LargeFOV's is 1024x512x3x3: "
            "the file holds another net; leave out fc6 and the layers after it with --skip."
        )


def fitted(parameters: Parameters, model: torch.nn.Module, file: str) -> dict[str, torch.Tensor]:
    """The parameters under the model's names, checked against its shapes."""
    state_dict = {}
    for key, expected in model.state_dict().items():
        module, kind = key.split(".")
        if module in parameters:
            array = parameters[module][kind]
            if array.shape != expected.shape:
                raise InputError(
                    f"the {kind} of layer {module} of {file} is {spelled(array)}, but {spelled(expected)} fits the "
                    "layers around it."
                )
            state_dict[key] = torch.tensor(array)
    return state_dict


def named(layers: list[str], limit: int = _SHOWN) -> str:
    """The names of layers, of many the first ones and the number of the others."""
    more = f" and {len(layers) - limit} more" if len(layers) > limit else ""
    return ", ".join(layers[:limit]) + more


def spelled(array: np.ndarray | torch.Tensor) -> str:
    return "x".join(map(str, array.shape)) or "a scalar"
