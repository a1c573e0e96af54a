"""The nets of the papers. State dict keys are the names of the authors' Caffe layers, and for ResNets torchvision's."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from a2s_repro.errors import InputError, first_line
from a2s_repro.models.attention import AttentionHead
from a2s_repro.models.backbone import BackboneNet
from a2s_repro.models.base import Net, ParameterRule, Prediction, Widths
from a2s_repro.models.deeplab import DeepLab, DeepLabASPP, DeepLabLargeFOV, DeepLabMSc
from a2s_repro.models.refine import RefineHead
from a2s_repro.models.resnet import ResNetDilated8
from a2s_repro.models.resnet101 import DeepLabResNet101
from a2s_repro.models.share_net import ShareNet

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


def build_model(config: dict) -> Net:
    """The net that `config`, as `net.config()` gives it, describes; its weights are the fillers'.

    Raises:
        InputError: the description names no known net, or has arguments that the net does not take.
    """
    name = config.get("net") if isinstance(config, dict) else None
    if not isinstance(name, str) or name not in _NETS:
        raise InputError(f"the model description names the net {name!r}; known are {', '.join(_NETS)}.")
    arguments = {field: value for field, value in config.items() if field != "net"}
    try:
        parts = {field: make(arguments[field]) for field, make in _PARTS.items() if field in arguments}
        return _NETS[name](**arguments | parts)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # torch refuses sizes with a RuntimeError
        raise InputError(f"the model description does not fit {name}: {first_line(error)}.") from error


def restored_model(config: dict, state_dict: Mapping[str, Tensor], file: str | os.PathLike) -> Net:
    """The net that `config` describes, on the CPU, with the weights of `state_dict`; `file` holds both.

    No memory is taken for a net that the weights do not fit.

    Raises:
        InputError: as `build_model` and `check_state`, naming the file.
    """
    with torch.device("meta"):
        net = build_model(config)
    check_state(net, state_dict, file)
    net.to_empty(device="cpu").load_state_dict(state_dict)
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
