"""Hierarchical attention: score maps of several scales merged in pairs of adjacent scales.

Source: Tao, Sapra, Catanzaro, Hierarchical Multi-Scale Attention for Semantic Segmentation (arXiv:2005.10821), Sec. 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from a2s_repro import ops


def merge_in_pairs(
    scores: Sequence[Tensor], attention: Sequence[Tensor], size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Merges score maps of S scales, each with the merge of the finer ones, by the attention of the coarser scale.

    With f_1 ... f_S the score maps from the finest scale to the coarsest, a_s the attention of scale s in (0, 1), which
    is computed from that scale alone, and U the interpolation to `size`:

        m_1 = U(f_1)
        m_s = U(a_s * f_s) + (1 - U(a_s)) * m_(s-1)

    m_S is the result; for two scales this is the paper's equation. The attention of a scale does not depend on the
    others, so a net trained on two scales merges any number of them. Its weight in the result is

        w_s = U(a_s) * product over the coarser scales t of (1 - U(a_t)),   a_1 = 1,

    and the weights of all scales sum to 1 at every pixel.

    Args:
        scores: S tensors (N, C, h_s, w_s), from the finest scale to the coarsest, each on its own grid.
        attention: S - 1 tensors (N, 1, h, w), those of the scales after the first.
        size: grid of the result, in pixels.

    Returns:
        m_S, (N, C, *size), and w, (N, S, *size).
    """
    merged = ops.interp(scores[0], size)
    weights = [torch.ones_like(merged[:, :1])]
    for coarser, attended in zip(scores[1:], attention, strict=True):
        attended = ops.interp(attended, coarser.shape[2:])
        resized = ops.interp(torch.cat([attended * coarser, attended], 1), size)
        weighted, weight = resized[:, :-1], resized[:, -1:]
        merged = weighted + (1 - weight) * merged
        weights = [*(other * (1 - weight) for other in weights), weight]
    return merged, torch.cat(weights, 1)
