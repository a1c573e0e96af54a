"""Several maps resized to one grid and concatenated, each written straight into its place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from a2s_repro.ops import _native
from a2s_repro.ops._check import check_maps, check_size
from a2s_repro.ops.interp import interp_reference


def interp_concat(features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Interp of each (N, C_s, h_s, w_s) map to `size`, then Concat along channels: (N, sum of C_s, h, w).

    The input of the attention head: `fc7_concat` of the authors' nets. Channels_last if features[0] is.

    Raises:
        ValueError, TypeError: wrong shapes, size or dtype, or maps that differ in batch size, dtype or device.
    """
    check_maps("interp_concat", "features", features, same_channels=False)
    height, width = check_size("interp_concat", size)
    ops = _native.operators(features[0])
    if ops is None:
        return interp_concat_reference(features, (height, width))
    return ops.interp_concat(list(features), height, width)


def interp_concat_reference(features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """`interp_concat` in plain torch operations."""
    return torch.cat([interp_reference(feature, size) for feature in features], dim=1)


def _fake(features: list[Tensor], height: int, width: int) -> Tensor:
    channels = sum(feature.size(1) for feature in features)
    return _native.empty_like_layout(features[0], (features[0].size(0), channels, height, width))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.shapes = [feature.shape for feature in inputs[0]]


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple:
    shaped = [grad.new_empty(()).expand(shape) for shape in ctx.shapes]  # of the features only their shapes are needed
    return ops.interp_concat_backward(grad, shaped), None, None


def _fake_backward(grad: Tensor, features: list[Tensor]) -> list[Tensor]:
    return [_native.empty_like_layout(grad, feature.shape) for feature in features]


_native.register("interp_concat", _fake, setup_context=_setup_context, backward=_backward, linear=True, promote=True)
_native.register("interp_concat_backward", _fake_backward, linear=True)
