"""The layers that the operators fuse - Softmax, Eltwise, Power, Concat, ArgMax - against the authors' Caffe.

All maps have one size here, so that Interp copies and what is left is the other layer. Eltwise SUM with coefficients,
Slice and ArgMax's top_k, which no net of the papers needs as operators, are recorded but have no counterpart.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from a2s_repro import ops
from tests.backends import Backend
from tests.paths import GOLDEN

RECORD = np.load(GOLDEN / "layers.npz")
NAMES = tuple(json.loads(str(RECORD["meta_json"])))


def cases(prefix: str, without: Sequence[str] = ()) -> list[str]:
    return [name for name in NAMES if name.startswith(prefix) and name not in without]


def check(name: str, device: str, operator: Callable[[list[Tensor]], Tensor], tolerance: float = 0) -> None:
    """Result and gradients of all bottoms, to `tolerance` relative to the largest value; 0 means every bit."""
    bottoms = [key for key in ("x", "x0", "x1", "x2", "x3") if f"{name}.{key}" in RECORD]
    inputs = [torch.from_numpy(RECORD[f"{name}.{key}"]).to(device).requires_grad_() for key in bottoms]
    top = operator(inputs)
    grads = torch.autograd.grad(top, inputs, torch.from_numpy(RECORD[f"{name}.dy"]).to(device))
    recorded = [RECORD[f"{name}.top_y"], *(RECORD[f"{name}.grad_{key}"] for key in bottoms)]
    for given, expected in zip((top, *grads), recorded, strict=True):
        expected = torch.from_numpy(expected)
        assert given.shape == expected.shape
        assert (given.detach().cpu() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", cases("softmax_c"))
def test_softmax(name: str, backend: Backend) -> None:
    """Another exponential function: 1.2e-7 forward and 3.6e-7 backward were seen."""
    check(name, backend.device, lambda x: ops.scale_softmax(x[0]), 1e-6)


@pytest.mark.parametrize("name", cases("eltwise_max"))
def test_eltwise_max(name: str, backend: Backend) -> None:
    """The map that wins a tie, and so gets the gradient, is compared exactly."""
    check(name, backend.device, lambda x: ops.scale_max(x, x[0].shape[2:]))


@pytest.mark.parametrize("name", cases("eltwise_sum", without=["eltwise_sum_coeff"]))
def test_eltwise_sum(name: str, backend: Backend) -> None:
    """Caffe's BLAS may add in another order: 3e-7 was seen between two correct programs."""
    check(name, backend.device, lambda x: ops.scale_average(x, x[0].shape[2:], factor=1), 1e-6)


@pytest.mark.parametrize("name", cases("power_scale"))
def test_power(name: str, backend: Backend) -> None:
    factor = float(name.removeprefix("power_scale_"))
    check(name, backend.device, lambda x: ops.scale_average(x, x[0].shape[2:], factor))


def test_concat(backend: Backend) -> None:
    check("concat", backend.device, lambda x: ops.interp_concat(x, x[0].shape[2:]))


@pytest.mark.parametrize("name", ["argmax", "argmax_ties"])
def test_argmax(name: str, backend: Backend) -> None:
    x = torch.from_numpy(RECORD[f"{name}.x"]).to(backend.device)
    labels = ops.segment(x, x.shape[2:])
    assert np.array_equal(labels.cpu().numpy(), RECORD[f"{name}.top_y"][:, 0])


@pytest.mark.parametrize("name", cases("spatialproduct"))
def test_spatial_product(name: str, backend: Backend) -> None:
    """x * a is the merge of x and a zero map by the weights a and 1 - a, where those are weights: a is taken through a
    sigmoid first. The expected product and its gradients are SpatialProduct's rule, which the record confirms."""
    x, a, dy = (torch.from_numpy(RECORD[f"{name}.{key}"]).to(backend.device) for key in ("x", "a", "dy"))
    assert torch.allclose((x * a).cpu(), torch.from_numpy(RECORD[f"{name}.top_y"]), rtol=1e-6)
    assert torch.allclose((dy * x).sum(1, keepdim=True).cpu(), torch.from_numpy(RECORD[f"{name}.grad_a"]), atol=1e-5)

    x.requires_grad_()
    logits = torch.cat([a, torch.zeros_like(a)], 1).requires_grad_()
    merged, _ = ops.scale_merge([x, torch.zeros_like(x)], logits)
    weight = torch.sigmoid(a)
    grad_x, grad_logits = torch.autograd.grad(merged, (x, logits), dy)
    grad_weight = (dy * x.detach()).sum(1, keepdim=True)
    torch.testing.assert_close(merged, x * weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad_x, dy * weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad_logits[:, :1], grad_weight * weight * (1 - weight), rtol=1e-5, atol=1e-5)
