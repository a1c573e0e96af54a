"""Interp against the authors' Caffe: every recorded case, forward and adjoint."""

import json

import numpy as np
import pytest
import torch

from a2s_repro import ops
from tests.backends import Backend
from tests.paths import GOLDEN

RECORD = np.load(GOLDEN / "interp.npz")
META = json.loads(str(RECORD["meta_json"]))

# Relative to the largest value: two float32 programs that round the same products and sums in another order.
FORWARD, BACKWARD = 1e-6, 1e-5


def interp_as_layer(x: torch.Tensor, parameters: dict) -> torch.Tensor:
    """Applies Interp with a layer's parameters: an output size, or zoom and shrink factors."""
    pad = (parameters.get("pad_beg", 0), parameters.get("pad_end", 0))
    zoom, shrink = parameters.get("zoom_factor"), parameters.get("shrink_factor")
    if zoom is None and shrink is None:
        size = (parameters["height"], parameters["width"])
    else:
        size = tuple(ops.interp_size(n + sum(pad), zoom=zoom, shrink=shrink) for n in x.shape[2:])
    return ops.interp(x, size, pad)


@pytest.mark.parametrize("case", [c for c in META if f"{c}.x" in RECORD])
def test_matches_caffe(case: str, backend: Backend) -> None:
    x = torch.from_numpy(RECORD[f"{case}.x"]).to(backend.device).requires_grad_()
    y = interp_as_layer(x, META[case])
    expected = torch.from_numpy(RECORD[f"{case}.y"])
    assert y.shape == expected.shape
    assert (y.detach().cpu() - expected).abs().max() <= FORWARD * expected.abs().max()

    (dx,) = torch.autograd.grad(y, x, torch.from_numpy(RECORD[f"{case}.dy"]).to(backend.device))
    expected = torch.from_numpy(RECORD[f"{case}.dx"])
    assert (dx.cpu() - expected).abs().max() <= BACKWARD * expected.abs().max()


@pytest.mark.parametrize("case", [c for c in META if f"{c}.x_uint8" in RECORD])
def test_label_maps_match_caffe_exactly(case: str, backend: Backend) -> None:
    x = torch.from_numpy(RECORD[f"{case}.x_uint8"]).float()[None, None].to(backend.device)
    y = interp_as_layer(x, META[case])
    expected = torch.from_numpy(RECORD[f"{case}.y"]).reshape(y.shape)
    if "unaligned" in case:
        assert (y.cpu() - expected).abs().max() <= FORWARD * 255
    else:
        assert torch.equal(y.cpu(), expected)
