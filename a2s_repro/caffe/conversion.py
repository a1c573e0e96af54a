"""Converts Caffe nets to state dicts and back.

A share-net's file holds one copy of the shared layers per stream; the copies are compared and folded into one.
"""

import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from a2s_repro.caffe.layers import (
    ATTENTION,
    FUSION_TYPE,
    RESNET,
    SHARED,
    SKIP_NET,
    TRUNK,
    VGG16,
    VGG16_ASPP,
    System,
    kinds_of,
    system_of,
    type_of,
)
from a2s_repro.caffe.matching import (
    Parameters,
    by_module,
    check_fc6,
    fitted,
    folded,
    layers_with_blobs,
    named,
    parameters_of,
    vgg16_widths,
    without_skipped,
)
from a2s_repro.caffe.vgg16 import net_from_torchvision, subsampled
from a2s_repro.checkpoint.trained import Trained, load_trained
from a2s_repro.checkpoint.weights import Weights
from a2s_repro.errors import InputError
from a2s_repro.files import sha256_of
from a2s_repro.models import DeepLabLargeFOV, Net, Widths, build_model
from a2s_repro.models.resnet101 import INNER_CHANNELS, STEM_CHANNELS
from a2s_repro.models.skip_branches import SKIP_LAYERS
from caffe_weights import SUFFIX_OF_SCALE, CaffeNet, Layer, read_caffemodel, stream_of

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
            *([f"pool5a: {'yes' if meta['pool5a'] else 'no'}"] if "pool5a" in meta else []),
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


def load_net(path: str | os.PathLike) -> Trained:
    """Reads a net to the CPU: a `.caffemodel` as `convert_file` does, anything else as `load_trained` does."""
    path = Path(path)
    return Trained(path, convert_file(path).weights) if path.suffix == ".caffemodel" else load_trained(path)


def from_caffe(
    net: CaffeNet,
    file: str,
    *,
    skip: Collection[str] = (),
    num_classes: int | None = None,
    allow_missing: bool = False,
    allow_unmatched: bool = False,
) -> Conversion:
    """Converts a Caffe DeepLab-LargeFOV, DeepLab-MSc, share-net or DeepLab v2 (on VGG-16 or ResNet-101) to weights.

    The trunk is required: conv1_1 .. fc7, or conv1 .. res5c of ResNet-101. The classifier, the skip branches and the
    attention head are optional (an init file has none). Widths are inferred from the shapes, so thin nets convert, too.
    The dilations of atrous spatial pyramid pooling, which are no blobs, are taken to be DeepLab v2's (6, 12, 18, 24).
    Of a ResNet-101 of ImageNet, fc1000 is left out.

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
    layers, skipped = without_skipped(layers_with_blobs(net, file), skip, file)
    system = system_of({stream_of(name)[0] for name in layers})
    skipped += [name for name in layers if name in system.ignored]
    layers = {name: layer for name, layer in layers.items() if name not in skipped}
    bases, copies, scales = folded(layers, system, file)
    modules = by_module(bases, system, file)
    _check_system(modules, system, file)
    missing = [name for name in _wanted(modules, system) if name not in modules and name not in skipped]
    if missing and not allow_missing:
        raise InputError(f"{file} lacks layers of the net: {named(missing)}; accept that with --allow-missing.")
    unmatched = [name for name in modules if name not in system.modules]
    if unmatched and not allow_unmatched:
        raise InputError(
            f"{file} has layers that the net lacks: {named(unmatched)}; drop them with --skip or --allow-unmatched."
        )
    parameters = {name: parameters_of(modules[name], name, file) for name in system.modules if name in modules}
    scoring = [name for name in system.shared if name in modules and name not in (*system.trunk, *SKIP_LAYERS)]
    classifier = system.classifier_of(modules[scoring[0]].name) if scoring else None
    outputs = parameters[scoring[0]]["bias"].size if scoring else None
    meta = {
        "classifier": classifier,
        "scales": scales,
        "source": {"file": file, "kind": "net" if classifier else "init"},
    }
    if system is not RESNET:
        meta |= {"pool5a": any(layer.name == "pool5a" for layer in net.layers), "widths": vgg16_widths(parameters)}
        check_fc6(parameters, meta["widths"], file)
    if num_classes is not None and outputs != num_classes:
        head = f"a classifier of {outputs} outputs" if classifier else "no classifier"
        raise InputError(f"{file} has {head}, but the classifier must have {num_classes} outputs.")

    merge = _merge(net, system) if len(scales) > 1 else None
    if len(scales) == 1 and not modules.keys().isdisjoint(ATTENTION):
        raise InputError(f"{file} has an attention head but only one scale: --skip att_conv1 and att_fc.")
    config = {"num_classes": outputs or 1} | _description(system, parameters, meta)
    if merge and system is not VGG16_ASPP:
        config |= {"scales": scales, "merge": merge, "head": _head(net, system, parameters)}
        config |= {"net": "ShareNet", "skip_net": config["net"] == "DeepLabMSc"} if system is VGG16 else {}
    model = _without_values(config, file)
    state_dict = fitted(parameters, model, file)
    if state_dict.keys() == model.state_dict().keys() and model.scales == tuple(scales):
        meta["model"] = model.config()
    return Conversion(Weights(state_dict, meta), copies, skipped, missing, unmatched)


def _check_system(modules: Collection[str], system: System, file: str) -> None:
    """Raises InputError for a file of another kind of net, naming some of its layers."""
    if not any(name in system.modules for name in modules):
        shown = f"({named(list(modules), 3)}) are" if modules else "with weights are none, and those are"
        raise InputError(
            f"{file} is of another net: its layers {shown} not those of DeepLab on VGG-16 (conv1_1 .. fc7) or on "
            "ResNet-101 (res2a_branch1 .. res5c_branch2c), the nets that convert."
        )
    other = [name for name in modules if name.startswith("res") and name not in system.trunk]
    if system is RESNET and other:
        raise InputError(
            f"{file} is a ResNet of another depth, which has {named(other, 2)}: of the ResNets, ResNet-101 converts."
        )


def _description(system: System, parameters: Parameters, meta: dict[str, Any]) -> dict[str, Any]:
    """The net of one scale, for `build_model`."""
    if system is RESNET:
        return {"net": "DeepLabResNet101", "width": _resnet_width(parameters)}
    if system is VGG16_ASPP:
        return {"net": "DeepLabASPP", "widths": meta["widths"]}
    kind = "DeepLabLargeFOV" if parameters.keys().isdisjoint(SKIP_LAYERS) else "DeepLabMSc"
    return {"net": kind, "pool5a": meta["pool5a"], "widths": meta["widths"]}


def _resnet_width(parameters: Parameters) -> float:
    """The factor on the widths of ResNet-101; that of the widest layer that is present, because it is rounded least."""
    for group, channels in reversed(INNER_CHANNELS.items()):
        if (layer := f"{group}a_branch2a") in parameters:
            return len(parameters[layer]["weight"]) / channels
    return len(parameters["conv1"]["weight"]) / STEM_CHANNELS if "conv1" in parameters else 1.0


def to_caffe(weights: Weights, file: str = "the weights") -> CaffeNet:
    """Converts weights to a Caffe net with the authors' order of layers and one copy of the shared layers per stream.

    The trunks of the net's scales come first, in the order 1, 0.5, 0.75, 0.25; then the classifiers in the same order,
    under the meta's `classifier` name (`fc8` if it has none); then the attention head. In a skip-net the scales are in
    descending order, and every stream ends with its classifier, as does every branch of atrous spatial pyramid pooling
    on VGG-16. Layers without blobs are written only if they distinguish nets: pool5a, the Concat that feeds the
    attention head, and the layer that merges the scales. `file` names the weights in errors.

    Raises InputError if `from_caffe` would not read the same weights back: for layers unknown to these nets, shapes
    that do not fit each other or the meta, and values that are not finite.
    """
    state_dict, meta = weights.state_dict, weights.meta
    system = system_of({key.split(".")[0] for key in state_dict})
    known = {f"{module}.{kind}" for module in system.modules for kind in kinds_of(module)}
    if foreign := sorted(state_dict.keys() - known):
        names = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise InputError(
            f"{file} has parameters that the authors' Caffe nets do not have: {names}; only nets of Attention to Scale "
            "and of DeepLab v2 can be exported to Caffe."
        )
    model = _described_model(weights, file)
    if model and model.merge == "hierarchical":
        raise InputError(f"{file} merges its scales hierarchically, which no net of Caffe does: export it as ONNX.")
    scales = model.scales if model else meta.get("scales", [1])
    stream_order = model.stream_order if model else [scale for scale in SUFFIX_OF_SCALE if scale in scales]
    merge = model.merge if model else None
    pool5a = meta.get("pool5a") if model is None else getattr(model, "pool5a", None) is not None
    classifier = str(meta.get("classifier") or system.classifier)

    def written(module: str, suffix: str = "") -> Iterator[Layer]:
        if module == "fc6" and pool5a:
            yield Layer(f"pool5a{suffix}", "Pooling", [])
        tensors = [state_dict[key] for kind in kinds_of(module) if (key := f"{module}.{kind}") in state_dict]
        if tensors:
            name = system.layer_of(module, classifier, suffix)
            yield Layer(name, type_of(module), [tensor.detach().float().cpu().numpy() for tensor in tensors])

    skip_net = any(key.startswith(SKIP_LAYERS) for key in state_dict)
    layers: list[Layer] = []
    for modules in _parts_of_file(system, skip_net):
        for scale in stream_order:
            for module in modules:
                layers += written(module, SUFFIX_OF_SCALE[scale])
    if merge == "attention":
        layers.append(Layer(f"{model.head_config.features}_concat", "Concat", []))
    for module in ATTENTION:
        layers += written(module)
    if merge:
        layers.append(Layer(system.fusion, FUSION_TYPE[merge], []))
    net = CaffeNet("a2s_repro", layers)
    if from_caffe(net, file, allow_missing=True).weights.state_dict.keys() != state_dict.keys():
        raise InputError(f"{file} does not record the scales of its layers: the file is damaged.")
    return net


def _parts_of_file(system: System, skip_net: bool) -> list[tuple[str, ...]]:
    """The layers in the parts of a file, each of which has them for all streams: the trunk and the classifier, but for
    skip-nets and the branches of VGG-16."""
    if system is VGG16:
        return [SKIP_NET] if skip_net else [TRUNK, ("fc8",)]
    if system is VGG16_ASPP:
        return [system.shared]
    return [system.trunk, tuple(name for name in system.shared if name not in system.trunk)]


def _described_model(weights: Weights, file: str) -> Net | None:
    """The model of the meta, on the meta device, or None. Raises InputError if the weights do not fit it."""
    if "model" not in weights.meta:
        return None
    model = _without_values(weights.meta["model"], file)
    theirs, ours = weights.state_dict, model.state_dict()
    differing = sorted(theirs.keys() ^ ours.keys()) or [key for key in ours if theirs[key].shape != ours[key].shape]
    if differing:
        raise InputError(f"{file} holds another net than it describes ({differing[0]} differs): the file is damaged.")
    return model


def _without_values(config: dict, file: str) -> Net:
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


def _wanted(modules: Collection[str], system: System) -> tuple[str, ...]:
    """The required modules: the trunk, and all skip branches, the whole classifier of branches, or the whole attention
    head if the file has part of it."""
    sides = () if set(modules).isdisjoint(SKIP_LAYERS) else SKIP_LAYERS
    heads = {"att_conv2": ATTENTION, "att_conv1": ("att_conv1", "att_fc"), "att_fc": ("att_fc",)}
    scores = tuple(name for name in system.shared if name not in (*system.trunk, *SKIP_LAYERS, *SHARED))
    scores = () if set(modules).isdisjoint(scores) else scores
    return system.trunk + sides + scores + next((head for layer, head in heads.items() if layer in modules), ())


def _merge(net: CaffeNet, system: System) -> str | None:
    """The merge of a share-net, inferred from its layers, or None; DeepLab v2's is by the maximum."""
    types = {layer.name: layer.type for layer in net.layers}
    if not types.keys().isdisjoint(ATTENTION):
        return "attention"
    return {"Power": "average", "Eltwise": "max"}.get(types.get(system.fusion, "Eltwise" if system is RESNET else ""))


def _head(net: CaffeNet, system: System, parameters: Parameters) -> dict[str, Any]:
    """The fields of `AttentionHead` that follow from the layers."""
    head: dict[str, Any] = {"features": "res5c"} if system is RESNET else {}
    for layer in net.layers:
        if layer.name in ("fc6_concat", "fc7_concat", "fc8_concat"):
            head["features"] = layer.name.removesuffix("_concat")
    for count, layer in enumerate(("att_fc", "att_conv1", "att_conv2"), 1):
        if layer in parameters:
            head["layers"] = count
    if "att_conv1" in parameters:
        head["kernel"] = parameters["att_conv1"]["weight"].shape[2]
    return head
