"""Backbones by name: the nets of the packages timm (`timm:convnext_tiny`) and torchvision (`torchvision:resnet50`)."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from a2s_repro.errors import InputError, check_known, first_line, nearest
from a2s_repro.models.resnet import read_state

OUTPUT_STRIDES = (8, 16, 32)
PRETRAINED = "pretrained"
"""In place of a file: the weights that the package publishes for the net."""


def named_backbone(name: str, output_stride: int = 8, weights: str | os.PathLike | None = None) -> nn.Module:
    """A classifier of a package as a module that returns its maps, (N, 3, H, W) -> (N, channels, h, w), finest first.

    It is built on the CPU, whatever the default device.

    Args:
        name: "timm:NAME", any net that timm builds with `features_only`, or "torchvision:NAME", a ResNet, which gives
            the maps of layer1 to layer4, or a net whose layers are its `features`, which gives the last map.
        output_stride: pixels per cell of the last map. Below 32, convolutions are dilated in place of their strides, of
            torchvision's those of ResNets with bottlenecks.
        weights: PRETRAINED, from the package's hub; or a file, the state dict of the whole classifier; None: random.

    Raises:
        InputError: the package is missing or does not fit torch, it has no net of that name, the net cannot give the
            stride or maps, the hub cannot be reached, or the file does not fit the net.
    """
    package, _, net = name.partition(":")
    check_known("output_stride", output_stride, OUTPUT_STRIDES)
    with torch.device("cpu"):  # some nets compute with values, and keep tensors that are not in their state dict
        return _MAKERS[package](net, output_stride, weights)


def is_named(backbone: object) -> TypeGuard[str]:
    """Whether `backbone` is the name of a package's net."""
    return isinstance(backbone, str) and backbone.partition(":")[0] in _MAKERS and ":" in backbone


def load_backbone(backbone: nn.Module, name: str, output_stride: int, weights: str | os.PathLike) -> str:
    """Fills a module that `named_backbone` made, with `weights` as there; returns a sentence about it."""
    backbone.load_state_dict(named_backbone(name, output_stride, weights).state_dict())
    source = "as its package publishes them" if os.fspath(weights) == PRETRAINED else f"loaded from {weights}"
    return f"weights of {name} {source}; the decoder and the attention are new"


def _of_timm(name: str, output_stride: int, weights: str | os.PathLike | None) -> nn.Module:
    timm = _imported("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())

    def make(**settings: Any) -> nn.Module:
        return timm.create_model(name, **settings)

    maps: dict[str, Any] = {"features_only": True}
    if output_stride < 32:
        maps["output_stride"] = output_stride
    with _possible(f"timm:{name}", output_stride):
        backbone = make(**maps)
    if weights is None:
        return backbone
    source: dict[str, Any] = {"pretrained": True}
    if state := _state_of(weights):
        source["pretrained_cfg_overlay"] = {"state_dict": state}
    with _loading(f"timm:{name}", weights):
        if state:
            make(**source)  # every tensor of the whole net must fit, while timm's maps leave out what does not
        backbone.load_state_dict(make(**maps, **source).state_dict())
    return backbone


def _of_torchvision(name: str, output_stride: int, weights: str | os.PathLike | None) -> nn.Module:
    models = _imported("torchvision.models")
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    settings: dict[str, Any] = {"weights": None}
    with _possible(f"torchvision:{name}", output_stride):
        net = models.get_model(name, **settings)
        if isinstance(net, models.ResNet) and output_stride < 32:
            settings["replace_stride_with_dilation"] = [False, output_stride == 8, True]
            net = models.get_model(name, **settings)
    if weights is not None:
        state = _state_of(weights)
        with _loading(f"torchvision:{name}", weights):
            if state:
                net.load_state_dict(state)
            else:
                net = models.get_model(name, **settings | {"weights": "DEFAULT"})
    if isinstance(net, models.ResNet):
        return _Groups(net)
    if not isinstance(getattr(net, "features", None), nn.Module):
        raise InputError(f"torchvision:{name} gives no maps: choose a ResNet, or a net of timm.")
    return net.features


_MAKERS: dict[str, Callable[[str, int, str | os.PathLike | None], nn.Module]] = {
    "timm": _of_timm,
    "torchvision": _of_torchvision,
}
PACKAGES = tuple(_MAKERS)


class _Groups(nn.Sequential):
    """The layers of a ResNet of torchvision, without its classifier; returns the maps of the groups of blocks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        for name, layer in net.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, layer)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        maps = []
        for name, layer in self.named_children():
            x = layer(x)
            if name.startswith("layer"):
                maps.append(x)
        return maps


def _state_of(weights: str | os.PathLike) -> dict[str, Tensor] | None:
    """The state dict of a file; None for the published weights."""
    return None if os.fspath(weights) == PRETRAINED else read_state(weights, "the classifier")


def _imported(module: str) -> Any:
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name or package
        raise InputError(
            f"backbones of {package} need the package {missing}: pip install {missing} (a2s_repro[timm])."
        ) from None
    except RuntimeError as error:  # torchvision registers its operators with torch
        raise InputError(
            f"{package} cannot be imported ({first_line(error)}): install a torchvision that was built for this torch, "
            "from the index that torch came from."
        ) from error


def _unknown(package: str, name: str, known: Iterable[str]) -> InputError:
    return InputError(f"{package} has no net '{name}'; the nearest are {nearest(name, known)}.")


@contextmanager
def _possible(name: str, output_stride: int) -> Iterator[None]:
    """Turns what a package raises for a net that it cannot build so into an InputError."""
    try:
        yield
    except Exception as error:  # of many types
        raise InputError(
            f"{name} cannot give maps of stride {output_stride} ({first_line(error)}): give another output stride, "
            "or another net."
        ) from error


@contextmanager
def _loading(name: str, weights: str | os.PathLike) -> Iterator[None]:
    """Turns what a package raises where it cannot get or load weights into an InputError."""
    try:
        yield
    except Exception as error:  # of many types
        if os.fspath(weights) == PRETRAINED:
            raise InputError(
                f"the pretrained weights of {name} cannot be had from the hub ({first_line(error)}): give a file of "
                "them, or leave them out to start from random weights."
            ) from error
        raise InputError(
            f"{weights} is not the state dict of {name} ({first_line(error)}): give that of the whole classifier."
        ) from error
