"""Attention to Scale and Attention to Refine in PyTorch, faithful to the authors' Caffe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from a2s_repro.inference import Segmenter
    from a2s_repro.models import BackboneNet

__version__ = "0.1.0"


def load(
    path: str | os.PathLike,
    device: str | torch.device = "cpu",
    scales: Sequence[float] | None = None,
    backbone: nn.Module | None = None,
) -> Segmenter:
    """A Segmenter with the net of a file: `load("model.pth")("street.jpg").labels`.

    Args:
        path: a weights file (.pth, .safetensors), a training snapshot, a run's folder, which stands for its best
            weights, else its newest, a .caffemodel, or an exported net (.onnx, .pt2).
        device: where the net runs.
        scales: those of the image, in descending order, in place of those of the training; a net that merges by
            attention over its scales takes no others. An exported net has the scales of its file.
        backbone: that of a `multi_scale` net that was built on a module of yours, which its file cannot hold.

    Raises InputError (of a Caffe file also CaffeFileError or OSError) if the file is damaged or does not hold a
    complete net, or if the device cannot be used.
    """
    from a2s_repro.caffe.conversion import load_net  # imports torch
    from a2s_repro.errors import InputError
    from a2s_repro.inference.exported import EXPORTED
    from a2s_repro.inference.segmenter import Segmenter, class_names, load_model

    load_exported = EXPORTED.get(Path(path).suffix)
    if load_exported is None:
        trained = load_net(path)
        model, meta = load_model(trained, device, scales, backbone)
        return Segmenter(model, class_names(model.num_classes, meta), meta, file=trained.file)
    if scales is not None or backbone is not None:
        raise InputError(f"{path} is an exported net with its backbone and scales: leave these out, or export another.")
    return load_exported(path, device)


def multi_scale(
    backbone: nn.Module | str,
    num_classes: int,
    scales: tuple[float, ...] = (1, 0.5),
    merge: str | None = "attention",
    **settings: Any,
) -> BackboneNet:
    """A net that runs a backbone on the image at several scales and merges its scores.

    The backbone is a module of yours, or the name of a net of timm or torchvision: "timm:convnext_tiny". The settings
    are those of `models.BackboneNet`. Raises InputError for impossible ones, and for a backbone whose maps do not fit a
    grid.
    """
    from a2s_repro.models import BackboneNet  # imports torch

    return BackboneNet(backbone, num_classes, scales, merge, **settings)


class _Moved(ModuleType):
    """Alias of a module under its name in version 0.1; imports the module on first use."""

    now: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module(self.now), name)


for _name, _now in {"crf": "a2s_repro.inference.crf", "devices": "a2s_repro.runtime.memory"}.items():
    _module = _Moved(f"{__name__}.{_name}")
    _module.now = _now
    globals()[_name] = sys.modules[_module.__name__] = _module
