"""Attention to Scale and Attention to Refine in PyTorch, faithful to the authors' Caffe."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from a2s_repro.inference import Segmenter

__version__ = "0.1.0"


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Segmenter:
    """The net of a weights file, ready to segment: `load("model.pth")("street.jpg").labels`.

    Raises InputError if the file describes no complete net, is damaged, or there is no such device.
    """
    from a2s_repro import inference  # imports torch

    return inference.load(path, device)


class _Moved(ModuleType):
    """A module under its name of version 0.1; the module itself is imported when it is used."""

    now: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module(self.now), name)


for _name, _now in {"crf": "a2s_repro.inference.crf", "devices": "a2s_repro.runtime.devices"}.items():
    _module = _Moved(f"{__name__}.{_name}")
    _module.now = _now
    globals()[_name] = sys.modules[_module.__name__] = _module
