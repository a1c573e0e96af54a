"""Which way a net's ReLUs and maxima went: where two nets that compute the same in other precisions part company."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.models import DeepLab, Prediction
from a2s_repro.models.side_branches import SIDE_LAYERS

LINEAR = ("fc8", "att_fc", *(layer for layer in SIDE_LAYERS if layer.endswith("_ms")))
"""The convolutions that no ReLU follows."""


class Decision(NamedTuple):
    """The choices that one layer made in one branch, unit by unit."""

    layer: str
    choice: Tensor
    """(N, C, h, w): for a ReLU whether the unit is positive, for a maximum the place of the winner in `values`."""
    values: Tensor
    """For a ReLU its input, for a maximum (N, C, candidates)."""

    def margin(self, unit: tuple[int, ...], other: "Decision") -> float:
        """How near the unit was to the other's choice."""
        if self.choice.dtype == torch.bool:
            return abs(self.values[unit].item())
        candidates = self.values[unit[:2]]
        return abs(candidates[self.choice[unit]] - candidates[other.choice[unit]]).item()


class Flip(NamedTuple):
    """A unit that went another way."""

    unit: str
    """As `conv5_1[1, 11, 2, 5] of the 9x9 map`; the size tells the branch."""
    margin: float
    """The value of a ReLU, or the distance of a maximum's two candidates, in the net that is taken for right."""

    def __str__(self) -> str:
        return f"{self.unit}, {self.margin:.1e} from a tie,"


@contextmanager
def recorded_decisions(net: DeepLab) -> Iterator[list[Decision]]:
    """Collects the decisions of forward passes within the block, in the order in which they are made.

    Only those that a gradient passes: in a frozen trunk, a unit near a tie counts for the same whichever way it goes.
    """
    decisions: list[Decision] = []

    def relu(name: str, output: Tensor) -> None:
        if not output.requires_grad:
            return
        values = output.detach().clone()  # the ReLU acts in place
        decisions.append(Decision(name, values > 0, values))

    def pool(name: str, layer: nn.MaxPool2d, x: Tensor) -> None:
        if not x.requires_grad:
            return
        x = x.detach()
        _, winners = F.max_pool2d(
            x, layer.kernel_size, layer.stride, layer.padding, ceil_mode=layer.ceil_mode, return_indices=True
        )
        decisions.append(Decision(name, winners, x.flatten(2)))

    def merge(prediction: Prediction) -> None:
        size = prediction.scores.shape[2:]
        maps = torch.stack([ops.interp(scores.detach(), size) for scores in prediction.scale_scores], 2)
        pixel = torch.arange(size.numel(), device=maps.device).view(size)
        decisions.append(Decision("fc8_fusion", maps.argmax(2) * size.numel() + pixel, maps.flatten(2)))

    hooks = []
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d) and name not in LINEAR:
            hook = layer.register_forward_hook(lambda _, __, output, name=name: relu(name, output))
        elif isinstance(layer, nn.MaxPool2d):
            hook = layer.register_forward_hook(lambda layer, inputs, _, name=name: pool(name, layer, inputs[0]))
        elif layer is net and net.merge == "max":
            hook = layer.register_forward_hook(lambda _, __, prediction: merge(prediction))
        else:
            continue
        hooks.append(hook)
    try:
        yield decisions
    finally:
        for hook in hooks:
            hook.remove()


def first_flip(ours: list[Decision], right: list[Decision]) -> Flip | None:
    """The first unit that went another way in `ours`; None if all went the same."""
    for one, other in zip(ours, right, strict=True):
        flipped = (one.choice != other.choice).nonzero()
        if len(flipped):
            unit = tuple(flipped[0].tolist())
            indices, (height, width) = ", ".join(map(str, unit)), one.choice.shape[2:]
            return Flip(f"{one.layer}[{indices}] of the {height}x{width} map", other.margin(unit, one))
    return None
