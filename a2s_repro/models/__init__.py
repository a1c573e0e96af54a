"""The nets of the papers. State dict keys are the names of the authors' Caffe layers, and for ResNets torchvision's."""

from a2s_repro.errors import InputError, first_line
from a2s_repro.models.attention import AttentionHead
from a2s_repro.models.base import Net, ParameterRule, Prediction, Widths
from a2s_repro.models.deeplab import DeepLab, DeepLabLargeFOV, DeepLabMSc
from a2s_repro.models.refine import RefineHead
from a2s_repro.models.resnet import ResNetDilated8
from a2s_repro.models.share_net import ShareNet

__all__ = [
    "AttentionHead",
    "DeepLab",
    "DeepLabLargeFOV",
    "DeepLabMSc",
    "Net",
    "ParameterRule",
    "Prediction",
    "RefineHead",
    "ResNetDilated8",
    "ShareNet",
    "Widths",
    "build_head",
    "build_model",
]

_NETS = {net.__name__: net for net in (DeepLabLargeFOV, DeepLabMSc, ShareNet, ResNetDilated8)}


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
