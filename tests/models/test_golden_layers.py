"""torch's layers, as the models use them, against recorded outputs and gradients of the authors' Caffe layers."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from a2s_repro.models.deeplab import DeepLabLargeFOV, Widths, max_pool, relu
from tests.paths import GOLDEN

CASES = dict(np.load(GOLDEN / "layers.npz"))
LAYERS = {name: case["layer"] for name, case in json.loads(str(CASES["meta_json"])).items()}

TOLERANCE = 1e-6
"""Relative to the largest value: float32 sums in another order."""


def cases(prefix: str) -> list[str]:
    return [name for name in LAYERS if name.startswith(prefix)]


def compare(layer, name: str, memory_format: torch.memory_format = torch.contiguous_format) -> None:
    """Output, input gradient and parameter gradients of `layer` on a recorded case."""
    x = torch.from_numpy(CASES[f"{name}.x"]).contiguous(memory_format=memory_format).requires_grad_()
    y = layer(x)
    y.backward(torch.from_numpy(CASES[f"{name}.dy"]))
    found = {"top_y": y, "grad_x": x.grad}
    if isinstance(layer, nn.Conv2d):
        found |= {"pgrad_y_0": layer.weight.grad, "pgrad_y_1": layer.bias.grad}
    for what, ours in found.items():
        theirs = CASES[f"{name}.{what}"]
        assert ours.shape == theirs.shape
        assert np.abs(ours.detach().numpy() - theirs).max() <= TOLERANCE * np.abs(theirs).max(), what


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def memory_format(request):
    return request.param


@pytest.mark.parametrize("name", cases("pool_max"))
def test_max_pools_round_up_and_the_first_of_equal_values_wins(name, memory_format):
    compare(max_pool(stride=int(re.search(r"k3s(\d)", name)[1])), name, memory_format)


@pytest.mark.parametrize("name", cases("pool_ave"))
def test_pool5a_counts_the_padding(name, memory_format):
    compare(DeepLabLargeFOV(2, pool5a=True, widths=Widths().scaled(1 / 64)).pool5a, name, memory_format)


@pytest.mark.parametrize("name", cases("conv_"))
def test_convolutions_with_holes_and_strides(name, memory_format):
    settings = {key: int(value) for key, value in re.findall(r"(kernel_size|pad|hole|stride): (\d+)", LAYERS[name])}
    weight, bias = (torch.from_numpy(CASES[f"{name}.param_y_{i}"]) for i in (0, 1))
    layer = nn.Conv2d(
        weight.shape[1],
        weight.shape[0],
        settings["kernel_size"],
        stride=settings.get("stride", 1),
        padding=settings.get("pad", 0),
        dilation=settings.get("hole", 1),
    )
    layer.load_state_dict({"weight": weight, "bias": bias})
    compare(layer.to(memory_format=memory_format), name, memory_format)


def test_relu_in_place():
    compare(lambda x: relu(x.clone()), "relu")


def test_dropout_does_nothing_in_the_test_phase():
    compare(nn.Dropout(0.5).eval(), "dropout_test_phase")
