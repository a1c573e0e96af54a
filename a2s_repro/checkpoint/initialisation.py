"""Initialises a net from a file by Caffe's rule: layers are matched by name, and their shapes must agree."""

import os
from typing import NamedTuple

from torch import nn

from a2s_repro.checkpoint.trained import is_trained, load_trained
from a2s_repro.checkpoint.weights import Weights
from a2s_repro.errors import InputError
from a2s_repro.models import AttentionHead, BackboneNet, DeepLabResNet101, Net, ResNetDilated8, build_head
from a2s_repro.models.base import WEIGHING
from a2s_repro.models.named_backbone import PRETRAINED, load_backbone
from a2s_repro.models.resnet import load_resnet34


class Loaded(NamedTuple):
    """Names of the layers loaded, left to their fillers, and ignored."""

    loaded: list[str]
    fresh: list[str]
    """Layers of the net that keep their filler."""
    ignored: list[str]
    """Layers of the file without a layer of that name in the net."""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} layers loaded"]
        if self.fresh:
            parts.append(f"{', '.join(self.fresh)} from fillers")
        if self.ignored:
            parts.append(f"{', '.join(self.ignored)} of the file not used")
        return "; ".join(parts)


def load_init(model: Net, path: str | os.PathLike, classifier: str) -> Loaded | str:
    """Loads initial weights into `model` and reports the layers: uses `load_resnet34` for a ResNet-34's state dict,
    `load_backbone` for that of another package's net or its published weights, `load_layers` for a weights file."""
    if isinstance(model, ResNetDilated8):
        return load_resnet34(model, path)
    if isinstance(model, BackboneNet) and (os.fspath(path) == PRETRAINED or not is_trained(path)):
        return load_backbone(model.backbone, model.backbone_name, model.output_stride, path)
    file, weights = load_trained(path)
    return load_layers(model, weights, file, classifier)


def load_layers(model: Net, weights: Weights, path: str | os.PathLike, classifier: str) -> Loaded:
    """Copies the layers of `weights`, read from `path`, into `model`.

    The file must hold the whole trunk with the net's shapes, because the trunk has no filler, and all frozen layers,
    such as a skip-net's fc8. The branches of atrous spatial pyramid pooling on VGG-16 can all start from one fc6 and
    fc7. The classifier is loaded if its name in the file is also `classifier`. Other layers that the file
    lacks keep their fillers; layers that only the file has are ignored. The layers of the attention are loaded if the
    file's net has the same head over the same scales: those of other heads have the same names.

    Raises:
        InputError: a missing trunk or frozen layer, or another shape; names the layers and the remedy.
    """
    ours, theirs = _by_layer(model.state_dict()), _by_layer(_under_names_of(weights, classifier, model))
    starts = {layer: layer.partition("_")[0] for layer in ours if layer.startswith(("fc6_", "fc7_"))}
    theirs |= {layer: theirs[start] for layer, start in starts.items() if layer not in theirs and start in theirs}
    if not _has_head_of(weights, model):
        theirs = {f"{la} of another head" if la in model.unshared_layers else la: of for la, of in theirs.items()}
    missing = [layer for layer in ours if layer not in theirs and layer not in model.new_layers]
    if missing:
        whole = "convert a whole ResNet-101" if isinstance(model, DeepLabResNet101) else "convert a whole VGG-16"
        remedy = f"give a file of {model.backbone_name}" if isinstance(model, BackboneNet) else whole
        raise InputError(f"{path} lacks layers that have no filler: {_listed(missing)}; {remedy}.")
    frozen = [layer for layer in ours if layer not in theirs and not _learns(model.layer(layer))]
    if frozen:
        names = ", ".join(classifier if layer == "fc8" else layer for layer in frozen)
        raise InputError(
            f"{path} lacks layers that are frozen in this net: {names}; start a skip-net from a LargeFOV trained on "
            "the same data set."
        )
    taken = [layer for layer in ours if layer in theirs]
    for layer in taken:
        shapes = [[tuple(tensor.shape) for tensor in layers[layer].values()] for layers in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{path}: {layer} is {_spelled(shapes[1])}, but the net's is {_spelled(shapes[0])}: "
                + _remedy(layer, model, described="model" in weights.meta)
            )
    state = {f"{layer}.{kind}": tensor for layer in taken for kind, tensor in theirs[layer].items()}
    model.load_state_dict(state, strict=False)
    unused = [layer for layer in theirs if layer not in ours and layer not in starts.values()]
    return Loaded(taken, [layer for layer in ours if layer not in taken], unused)


def _under_names_of(weights: Weights, classifier: str, model: Net) -> dict:
    """The file's state dict, with the classifier renamed to its Caffe name unless that is `classifier`."""
    name, module = weights.meta.get("classifier"), model.classifier_layer
    if name in (None, classifier):
        return weights.state_dict
    theirs = f"{name} of another data set" if name == module else name
    return {
        theirs + key.removeprefix(module) if key.startswith((f"{module}.", f"{module}_")) else key: tensor
        for key, tensor in weights.state_dict.items()
    }


def _listed(layers: list[str]) -> str:
    """The names of layers, of very many the first ones."""
    return ", ".join(layers if len(layers) <= 20 else (*layers[:3], f"and {len(layers) - 3} more"))


def _by_layer(state_dict: dict) -> dict[str, dict]:
    layers: dict[str, dict] = {}
    for key, tensor in state_dict.items():
        layer, _, kind = key.rpartition(".")
        layers.setdefault(layer, {})[kind] = tensor
    return layers


def _learns(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _spelled(shapes: list[tuple[int, ...]]) -> str:
    return " + ".join("x".join(map(str, shape)) for shape in shapes)


def _has_head_of(weights: Weights, model: Net) -> bool:
    """Whether the head of the file's net is that of `model`; fields that an older file lacks have their defaults.

    Files of Caffe may not describe their net. A head of hierarchical attention is that of any scales.
    """
    if model.merge not in WEIGHING:
        return True
    theirs, ours = weights.meta.get("model"), model.config()
    kind = type(build_head(ours["head"]))
    if not isinstance(theirs, dict):
        return kind is AttentionHead
    head = theirs.get("head")
    same = isinstance(head, dict) and kind().config() | head == ours["head"]
    over = ("merge",) if model.merge == "hierarchical" else ("merge", "scales")
    return same and all(theirs.get(field) == ours[field] for field in over)


def _remedy(layer: str, model: Net, described: bool) -> str:
    if layer == model.classifier_layer or layer.startswith(f"{model.classifier_layer}_"):
        return "give the matching --num-classes, or another --classifier name to initialise it with its filler."
    if layer in model.new_layers and not described:
        return f"drop the layer when converting (`a2s convert --skip {layer}`)."
    return "give the --width, --att-conv1 and --refine that the file was made with."
