"""Exported nets, torch.export programs and ONNX files, run by a Segmenter like nets of this package."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from a2s_repro.data.normalization import MEAN_BGR, TORCHVISION_MEAN_RGB, TORCHVISION_STD_RGB
from a2s_repro.errors import InputError, first_line
from a2s_repro.inference.segmenter import Segmenter
from a2s_repro.models import Prediction
from a2s_repro.runtime.devices import usable_device

Outputs = Mapping[str, Tensor]
"""Outputs of an exported net by name: labels, scores and, if the net merges by attention, weights."""

DESCRIPTION = "description.json"
"""Name of the extra file with the description in a .pt2 archive."""

IMAGE = {
    "caffe": {"channels": "BGR", "scale": 1.0, "mean": MEAN_BGR.tolist(), "std": [1.0, 1.0, 1.0]},
    "torchvision": {
        "channels": "RGB",
        "scale": 1 / 255,
        "mean": TORCHVISION_MEAN_RGB.tolist(),
        "std": TORCHVISION_STD_RGB.tolist(),
    },
}
"""Parameters of `NORMALIZATIONS`: (grey level * scale - mean) / std, with channels in this order."""


class ExportedNet(nn.Module):
    """An exported net with the face of a `Net` in evaluation mode. It has no parameters and cannot be trained.

    It computes in float32, and has neither the score maps of the scales nor a recalibration.

    Args:
        run: takes normalised images (N, 3, H, W) on `device`.
        about: the description that was exported with the net.

    Raises KeyError, ValueError or TypeError for another description.
    """

    def __init__(self, run: Callable[[Tensor], Outputs], about: Mapping[str, Any], device: torch.device) -> None:
        super().__init__()
        self._run, self.device, self._bytes_per_pixel = run, device, float(about["bytes_per_pixel"])
        (self.normalization,) = (name for name, given in IMAGE.items() if given == about["image"])
        self.num_classes, self.grid_step = len(about["classes"]), int(about["grid_step"])
        self.scales, self.merge = tuple(about["scales"]), about["net"].get("merge")

    def forward(self, image: Tensor) -> Prediction:
        """Prediction with the merged scores and the weights alone. Raises InputError under autocast."""
        if torch.is_autocast_enabled(image.device.type):
            raise InputError("an exported net computes in float32: give precision fp32, or the weights.")
        outputs = self._run(image)
        return Prediction(outputs["scores"], (), outputs.get("weights"), self.scales, ())

    def bytes_per_pixel(self) -> float:
        """Estimated memory of a forward pass per pixel, of the net that was exported."""
        return self._bytes_per_pixel


def load_program(path: str | os.PathLike, device: str | torch.device = "cpu") -> Segmenter:
    """The Segmenter of a torch.export program (.pt2).

    PyTorch reads parts of such a file by unpickling, which can run code: load no file that you do not trust.

    Raises InputError if the file is damaged, was not written by `export`, or was exported for another device.
    """
    from torch.export import load

    _check_exists(path)
    extra = {DESCRIPTION: ""}
    try:
        program = load(path, extra_files=extra)
        about = json.loads(extra[DESCRIPTION])
    except Exception as error:  # of many types
        raise _not_exported(path, error) from error
    device = usable_device(device)
    devices = {tensor.device.type for tensor in program.state_dict.values()}
    if devices - {device.type}:
        raise InputError(f"{path} was exported for {devices.pop()}, not for {device}: `a2s export --device {device}`.")
    module = program.module()
    return _segmenter(path, lambda image: module(image), about, device)  # a child that is a program refuses .eval()


def load_onnx(path: str | os.PathLike, device: str | torch.device = "cpu") -> Segmenter:
    """The Segmenter of an ONNX file, which onnxruntime runs on the CPU.

    Raises InputError if onnxruntime is missing, if the file is damaged or was not written by `export`, or for another
    device than the CPU.
    """
    if torch.device(device).type != "cpu":
        raise InputError(f"{path} runs on the CPU alone: give device cpu, or load the weights or a .pt2 on {device}.")
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{path} needs onnxruntime to run: pip install onnxruntime (a2s_repro[export]).") from None
    _check_exists(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    except Exception as error:  # of many types
        raise _not_exported(path, error) from error
    names = [output.name for output in session.get_outputs()]

    def run(image: Tensor) -> Outputs:
        arrays = session.run(names, {"image": image.numpy()})
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    return _segmenter(path, run, about, torch.device("cpu"))


EXPORTED = {".onnx": load_onnx, ".pt2": load_program}
"""Functions that load an exported net, by the suffix of its file."""


def _check_exists(path: str | os.PathLike) -> None:
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist: correct the path.")


def _segmenter(
    path: str | os.PathLike, run: Callable[[Tensor], Outputs], about: dict[str, Any], device: torch.device
) -> Segmenter:
    try:
        net = ExportedNet(run, about, device).eval()
        return Segmenter(net, about["classes"], about, about["pad_to"], file=Path(path))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _not_exported(path, error) from error


def _not_exported(path: str | os.PathLike, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged, or not an export of this version of a2s_repro ({first_line(error)}): export the net again."
    )
