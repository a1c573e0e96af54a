"""Packages of others that only some tests need."""

from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""Operators of torchvision's compiled library that torchvision describes to torch when it is imported."""

_libraries = []


def need_timm() -> None:
    """Makes timm and torchvision importable; skips the module that calls it where they are not installed.

    The torchvision of the package index is built for torch with CUDA. Beside a torch for the CPU alone its compiled
    library does not load, and the import fails. Backbones need none of its operators, so declaring them is enough.
    """
    for name in ("timm", "torchvision"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed", allow_module_level=True)
    try:
        import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in OPERATORS:
            library.define(schema)
        _libraries.append(library)  # it undoes its definitions when it is deleted
        import_module("torchvision")
