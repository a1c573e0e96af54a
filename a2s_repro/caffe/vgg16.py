"""Reduces the plain VGG-16 to the trunk of LargeFOV.

LargeFOV starts from VGG-16 with its fully connected fc6 (7x7 on 512 channels -> 4096) turned into a 3x3 convolution
with 1024 outputs. How the authors made that file is not published. This module uses strided sub-sampling, the method of
the public reduced VGG-16 of ParseNet and SSD.
"""

import os
import warnings

import numpy as np
import torch

from a2s_repro.checkpoint.weights import is_stored
from a2s_repro.data.normalization import MEAN_BGR, TORCHVISION_MEAN_RGB, TORCHVISION_STD_RGB
from a2s_repro.errors import InputError, first_line
from a2s_repro.files import check_published, refuse_foreign
from caffe_weights import CaffeNet, Layer

KERNEL = 7
"""Side of fc6's window on pool5."""

TAP_STEP = 3
"""Stride of the sub-sampling of the window's rows and columns: 0, 3, 6 are kept."""

OUTPUT_STEP = 4
"""Stride of the sub-sampling of the outputs of fc6 and fc7."""

TORCHVISION_LAYERS = {
    "features.0": "conv1_1",
    "features.2": "conv1_2",
    "features.5": "conv2_1",
    "features.7": "conv2_2",
    "features.10": "conv3_1",
    "features.12": "conv3_2",
    "features.14": "conv3_3",
    "features.17": "conv4_1",
    "features.19": "conv4_2",
    "features.21": "conv4_3",
    "features.24": "conv5_1",
    "features.26": "conv5_2",
    "features.28": "conv5_3",
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "classifier.6": "fc8",
}


def is_fully_connected(fc6: np.ndarray) -> bool:
    """Whether fc6's weight has the plain VGG-16's shape: (O, C, 7, 7), (O, 49 C) or, in V1, (1, 1, O, 49 C)."""
    matrix = fc6.ndim == 2 or (fc6.ndim == 4 and fc6.shape[:2] == (1, 1))
    return fc6.shape[-2:] == (KERNEL, KERNEL) or (matrix and fc6.shape[-1] % KERNEL**2 == 0)


def subsampled(net: CaffeNet, file: str) -> CaffeNet:
    """The plain VGG-16 with fc6 and fc7 reduced to convolutions, and without its classifier fc8.

    fc6 becomes W[0::4, :, 0::3, 0::3], b[0::4] (4096x512x7x7 -> 1024x512x3x3) and fc7 W[0::4, 0::4], b[0::4]
    (4096x4096 -> 1024x1024x1x1). `file` names the net in errors. Raises InputError if fc6 or fc7 is not the plain
    VGG-16's.
    """
    layers = {layer.name: layer for layer in net.layers if len(layer.blobs) == 2}
    if "fc6" not in layers or "fc7" not in layers:
        raise InputError(f"{file} has no layers fc6 and fc7 with weight and bias to sub-sample.")
    (weight6, bias6), (weight7, bias7) = layers["fc6"].blobs, layers["fc7"].blobs
    if not is_fully_connected(weight6):
        raise InputError(
            f"fc6 of {file} is {'x'.join(map(str, weight6.shape))}, not the 4096x512x7x7 of the plain VGG-16: "
            "leave out --subsample."
        )
    outputs6, outputs7 = bias6.size, bias7.size
    if weight6.size % (outputs6 * KERNEL**2) or weight7.size != outputs7 * outputs6:
        raise InputError(f"the weights and biases of fc6 and fc7 of {file} do not fit each other: the file is damaged.")
    kernel6 = weight6.reshape(outputs6, -1, KERNEL, KERNEL)[::OUTPUT_STEP, :, ::TAP_STEP, ::TAP_STEP]
    kernel7 = weight7.reshape(outputs7, outputs6, 1, 1)[::OUTPUT_STEP, ::OUTPUT_STEP]
    reduced = {
        "fc6": Layer("fc6", "Convolution", [kernel6, bias6.ravel()[::OUTPUT_STEP]]),
        "fc7": Layer("fc7", "Convolution", [kernel7, bias7.ravel()[::OUTPUT_STEP]]),
    }
    return CaffeNet(net.name, [reduced.get(layer.name, layer) for layer in net.layers if layer.name != "fc8"])


def net_from_torchvision(path: str | os.PathLike) -> CaffeNet:
    """Reads a torchvision VGG-16 state dict as the equivalent Caffe net, with Caffe's layer names and BGR input.

    torchvision's net takes RGB in [0, 1], standardised: (r / 255 - mean) / std. Caffe's takes BGR grey levels minus
    Caffe's mean. So conv1_1's input channels are reversed and divided by 255 std, and its bias absorbs the difference
    of the two means (104.008, 116.669, 122.675 against 255 * 0.406, 0.456, 0.485). The result is exact wherever the
    3x3 window lies inside the image. It is not exact at the border, where zero padding stands for the mean colour: the
    two mean colours differ by up to one grey level, which no bias can absorb.

    Raises InputError if the file is damaged or is not such a state dict.
    """
    refuse_foreign(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles
            check_published(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types for a damaged file
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): the file is damaged or no state dict."
        ) from error
    keys = {f"{module}.{kind}" for module in TORCHVISION_LAYERS for kind in ("weight", "bias")}
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(f"{path} is no state dict of torchvision's vgg16: it holds values that are not tensors.")
    if odd := sorted(keys.symmetric_difference(state)):
        raise InputError(f"{path} is no state dict of torchvision's vgg16: {odd[0]} is missing or unexpected.")
    if not all(is_stored(tensor) for tensor in state.values()):
        raise InputError(f"{path} holds tensors that are empty or not floating-point: the file is damaged.")
    layers = []
    for module, name in TORCHVISION_LAYERS.items():
        kind = "Convolution" if module.startswith("features") else "InnerProduct"
        layers.append(Layer(name, kind, [state[f"{module}.{blob}"].float().numpy() for blob in ("weight", "bias")]))
    weight, bias = layers[0].blobs
    if weight.ndim != 4 or weight.shape[1] != 3 or bias.shape != weight.shape[:1]:
        raise InputError(f"{path}: features.0 is no convolution of 3 input channels.")
    layers[0] = Layer("conv1_1", "Convolution", _for_caffe_pixels(weight, bias))
    return CaffeNet("torchvision_vgg16", layers)


def _for_caffe_pixels(weight: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
    """conv1_1, (O, 3, 3, 3) and (O,), from torchvision's normalised RGB to BGR grey levels minus Caffe's mean."""
    scale = 255 * TORCHVISION_STD_RGB.astype(np.float64)[::-1]
    shift = MEAN_BGR.astype(np.float64) - 255 * TORCHVISION_MEAN_RGB.astype(np.float64)[::-1]
    kernel = weight[:, ::-1].astype(np.float64) / scale[:, None, None]
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged file's values are checked afterwards
        return [kernel.astype(np.float32), (bias + np.einsum("ochw,c->o", kernel, shift)).astype(np.float32)]
