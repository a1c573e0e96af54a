"""Attention to Scale and Attention to Refine in PyTorch, faithful to the authors' Caffe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from a2s_repro.inference.segmenter import Segmenter

__version__ = "0.1.0"


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Segmenter:
    """The net of a weights file, ready to segment: `load("model.pth")("street.jpg").labels`.

    Raises InputError if the file describes no complete net, is damaged, or there is no such device.
    """
    from a2s_repro.inference import segmenter  # torch is loaded only where it is wanted

    return segmenter.load(path, device)
