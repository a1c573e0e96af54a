"""Softmax over scales."""

from typing import Any

import torch
from torch import Tensor

from a2s_repro.ops import _native
from a2s_repro.ops._check import check_map
from a2s_repro.ops.interp import to_compute_dtype


def scale_softmax(logits: Tensor) -> Tensor:
    """Each pixel's weight per scale, w_s = exp(h_s) / sum over t of exp(h_t), for (N, S, h, w) logits (A2S Eq. 2).

    `torch.softmax(logits, dim=1)` by another name: `scale_merge` computes it on the fly.
    """
    check_map("scale_softmax", "logits", logits)
    ops = _native.operators(logits)
    return scale_softmax_reference(logits) if ops is None else ops.scale_softmax(logits)


def scale_softmax_reference(logits: Tensor) -> Tensor:
    """`scale_softmax` in plain torch operations."""
    return torch.softmax(to_compute_dtype(logits), dim=1).to(logits.dtype)


def _fake(logits: Tensor) -> Tensor:
    return _native.empty_like_layout(logits, logits.shape)


def _fake_backward(grad: Tensor, weights: Tensor) -> Tensor:
    return _native.empty_like_layout(weights, weights.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(output)


def _backward(ops: Any, ctx: Any, grad: Tensor) -> Tensor:
    return ops.scale_softmax_backward(grad, *ctx.saved_tensors)


_native.register("scale_softmax", _fake, setup_context=_setup_context, backward=_backward)
_native.register("scale_softmax_backward", _fake_backward)
