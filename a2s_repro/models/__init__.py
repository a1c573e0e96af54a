"""The nets of the papers. State dict keys are the names of the authors' Caffe layers."""

from a2s_repro.errors import InputError
from a2s_repro.models.deeplab import DeepLabLargeFOV, ParameterRule, Prediction, Widths
from a2s_repro.models.share_net import ShareNet

__all__ = ["DeepLabLargeFOV", "ParameterRule", "Prediction", "ShareNet", "Widths", "build_model"]

_NETS = {net.__name__: net for net in (DeepLabLargeFOV, ShareNet)}


def build_model(config: dict) -> DeepLabLargeFOV:
    """The net that `config`, as `net.config()` gives it, describes; its weights are the fillers'.

    Raises:
        InputError: the description names no known net, or has an argument that the net does not take.
    """
    arguments = dict(config)
    name = arguments.pop("net", None)
    if name not in _NETS:
        raise InputError(f"the model description names the net {name!r}; known are {', '.join(_NETS)}.")
    try:
        return _NETS[name](**arguments | {"widths": Widths(**arguments.get("widths", {}))})
    except TypeError as error:
        raise InputError(f"the model description does not fit {name}: {error}.") from error
