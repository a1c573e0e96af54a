"""The nets of the papers. State dict keys are the names of the authors' Caffe layers, and for ResNets torchvision's."""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from a2s_repro.errors import InputError, first_line
from a2s_repro.models.attention import AttentionHead
from a2s_repro.models.backbone import BackboneNet
from a2s_repro.models.base import Net, ParameterRule, Prediction, Widths
from a2s_repro.models.deeplab import DeepLab, DeepLabASPP, DeepLabLargeFOV, DeepLabMSc
from a2s_repro.models.named_backbone import is_named
from a2s_repro.models.refine import RefineHead
from a2s_repro.models.resnet import ResNetDilated8
from a2s_repro.models.resnet101 import DeepLabResNet101
from a2s_repro.models.share_net import MERGES, ShareNet

__all__ = [
    "AttentionHead",
    "BackboneNet",
    "DeepLab",
    "DeepLabASPP",
    "DeepLabLargeFOV",
    "DeepLabMSc",
    "DeepLabResNet101",
    "Net",
    "ParameterRule",
    "Prediction",
    "RefineHead",
    "ResNetDilated8",
    "ShareNet",
    "Widths",
    "at_scales",
    "build_head",
    "build_model",
    "check_state",
    "restored_model",
]

_KINDS: tuple[type[Net], ...] = (
    DeepLabLargeFOV,
    DeepLabMSc,
    DeepLabASPP,
    ShareNet,
    ResNetDilated8,
    DeepLabResNet101,
    BackboneNet,
)
_NETS = {net.__name__: net for net in _KINDS}


def build_head(config: dict) -> AttentionHead | RefineHead:
    """The head that `config`, as `head.config()` gives it, describes."""
    return (RefineHead if "stages" in config else AttentionHead)(**config)


_PARTS = {"widths": lambda config: Widths(**config), "head": build_head}


def build_model(config: dict, backbone: nn.Module | None = None) -> Net:
    """The net that `config`, as `net.config()` gives it, describes; its weights are the fillers'.

    `backbone` is that of a `multi_scale` net that was built on a module of another program, which has no name.

    Raises:
        InputError: the description names no known net, or has arguments that the net does not take.
    """
    name = config.get("net") if isinstance(config, dict) else None
    if not isinstance(name, str) or name not in _NETS:
        raise InputError(f"the model description names the net {name!r}; known are {', '.join(_NETS)}.")
    arguments = {field: value for field, value in config.items() if field != "net"}
    if backbone is not None:
        if _NETS[name] is not BackboneNet or is_named(arguments.get("backbone")):
            raise InputError(f"the net, {arguments.get('backbone', name)}, is built by its name: pass no backbone.")
        arguments["backbone"] = backbone
    try:
        parts = {field: make(arguments[field]) for field, make in _PARTS.items() if field in arguments}
        return _NETS[name](**arguments | parts)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # torch refuses sizes with a RuntimeError
        raise InputError(f"the model description does not fit {name}: {first_line(error)}.") from error


def at_scales(config: dict, scales: Sequence[float]) -> dict:
    """The description of a net at other scales than it was trained on: `config` with these scales.

    Raises InputError if its merge depends on the scales: the head of Attention to Scale reads all of them together.
    """
    merge = config.get("merge") if isinstance(config, dict) else None
    if merge not in MERGES or merge == "attention":
        kind = "merges by attention over the scales" if merge else "has one scale"
        raise InputError(
            f"the net {kind} that it was trained on, and takes no others: leave out the scales, or train a net with "
            f"merge {', '.join(name for name in MERGES if name != 'attention')}."
        )
    return config | {"scales": list(scales)}


def restored_model(
    config: dict,
    state_dict: Mapping[str, Tensor],
    file: str | os.PathLike,
    backbone: nn.Module | None = None,
) -> Net:
    """The net that `config` describes, on the CPU, with the weights of `state_dict`; `file` holds both.

    `backbone` is as for `build_model`, and is filled. Weights that do not fit take no memory, but for a package's
    backbone.

    Raises:
        InputError: as `build_model` and `check_state`, naming the file.
    """
    with torch.device("meta"):
        net = build_model(config, backbone)
    check_state(net, state_dict, file)
    for layer in net.modules():
        if any(tensor.is_meta for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))):
            layer.to_empty(device="cpu", recurse=False)
    net.load_state_dict(state_dict)
    return net


def check_state(net: nn.Module, state_dict: Mapping[str, Tensor], file: str | os.PathLike) -> None:
    """Raises InputError naming `file` unless `state_dict` has the tensors of `net`, each of its shape."""
    ours = net.state_dict()
    problems = [f"{key} is missing" for key in ours if key not in state_dict]
    problems += [f"{key} is not of the net" for key in state_dict if key not in ours]
    problems += [
        f"{key} is {_spelled(tensor)}, the net's {_spelled(ours[key])}"
        for key, tensor in state_dict.items()
        if key in ours and tensor.shape != ours[key].shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{file} does not fit the net that it describes: {'; '.join(problems[:3])}{more}.")


def _spelled(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
