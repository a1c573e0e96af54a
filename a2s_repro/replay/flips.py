"""Finds flips: units whose ReLU or maximum decides differently in two precisions, so that the two nets diverge."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.models import DeepLab, Prediction
from a2s_repro.models.skip_branches import SKIP_LAYERS

LINEAR = ("fc8", "att_fc", *(layer for layer in SKIP_LAYERS if layer.endswith("_ms")))
"""Convolutions without a ReLU."""


class Decision(NamedTuple):
    """The choices of one layer in one stream, unit by unit."""

    layer: str
    choice: Tensor
    """(N, C, h, w): for a ReLU whether the unit is positive, for a maximum the winner's index in `values`."""
    values: Tensor
    """Inputs: (N, C, h, w) for a ReLU, (N, C, candidates) for a maximum."""

    def margin(self, unit: tuple[int, ...], other: "Decision") -> float:
        """Distance of the unit from the other's choice."""
        if self.choice.dtype == torch.bool:
            return abs(self.values[unit].item())
        candidates = self.values[unit[:2]]
        return abs(candidates[self.choice[unit]] - candidates[other.choice[unit]]).item()


class Flip(NamedTuple):
    """A unit with a different choice in the two nets."""

    unit: str
    """Location, such as `conv5_1[1, 11, 2, 5] of the 9x9 map`; the size identifies the stream."""
    margin: float
    """Magnitude of a ReLU's input, or distance of a maximum's two candidates, in the reference net."""

    def __str__(self) -> str:
        return f"{self.unit}, {self.margin:.1e} from a tie,"


@contextmanager
def recorded_decisions(net: DeepLab) -> Iterator[list[Decision]]:
    """Collects the decisions of forward passes within the block, in the order of computation.

    Only layers with a gradient are recorded: in a frozen trunk, a flip of a unit near a tie changes its output by
    rounding only.
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
        name = name.removeprefix("head.")
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


def first_flip(ours: list[Decision], reference: list[Decision]) -> Flip | None:
    """The first unit whose choice in `ours` differs from `reference`, or None."""
    for decision, expected in zip(ours, reference, strict=True):
        flipped = (decision.choice != expected.choice).nonzero()
        if len(flipped):
            unit = tuple(flipped[0].tolist())
            indices, (height, width) = ", ".join(map(str, unit)), decision.choice.shape[2:]
            return Flip(f"{decision.layer}[{indices}] of the {height}x{width} map", expected.margin(unit, decision))
    return None
