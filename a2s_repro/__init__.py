"""Attention to Scale and Attention to Refine in PyTorch, faithful to the authors' Caffe."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from a2s_repro.inference import Segmenter
    from a2s_repro.models import BackboneNet

__version__ = "0.1.0"


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Segmenter:
    """A Segmenter with the net of a weights file: `load("model.pth")("street.jpg").labels`.

    Raises InputError if the file is damaged or does not hold a complete net, or if the device cannot be used.
    """
    from a2s_repro import inference  # imports torch

    return inference.load(path, device)


def multi_scale(
    backbone: nn.Module,
    num_classes: int,
    scales: tuple[float, ...] = (1, 0.5),
    merge: str | None = "attention",
    **settings: Any,
) -> BackboneNet:
    """A net that runs a backbone of one's own on the image at several scales and merges its scores.

    The settings are those of `models.BackboneNet`. Raises InputError for impossible ones, and for a backbone whose maps
    do not fit a grid.
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
