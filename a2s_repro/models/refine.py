"""The attention of Attention to Refine: hypercolumns, a dilated convolution per scale, and two branches."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.errors import InputError
from a2s_repro.models.base import Net, relu
from a2s_repro.models.layers import Conv2d, Dropout

RECALIBRATIONS = (None, "multiply", "add")


@dataclasses.dataclass(frozen=True)
class RefineHead:
    """What the attention of Attention to Refine is computed from, and its ablations (Tables 1 and 2 of that paper).

    Of every scale the maps of several stages are resized to the 1/4 grid of scale 1 and concatenated (hypercolumns). A
    3x3 convolution with a dilation of its own, `ref_conv<i>` of the i-th scale, and a ReLU follow; what they give is
    concatenated over the scales. Two parallel branches of a 3x3 and a 1x1 convolution read that: location attention,
    `att_conv1` and `att_fc`, one logit per scale, and the recalibrating branch, `rec_conv1` and `rec_fc`, one value per
    class that all scales share (Eq. 2 and 3). The convolutions but the last of a branch have `Widths.refine` filters.

    Raises:
        InputError: a value that is not possible.
    """

    dilations: tuple[int, ...] = (2, 12)
    """Of the scales' convolutions, in the order of the scales, the largest first; 1 is the standard convolution."""
    stages: tuple[str, ...] = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
    """Maps that make up a hypercolumn, after their ReLU."""
    recalibration: str | None = "multiply"
    """"multiply": a sigmoid's factors. "add": biases. None: no recalibrating branch."""

    stride: ClassVar[int] = 4
    """Pixels per cell of the grid on which the attention is computed, and the scores are merged."""

    def __post_init__(self) -> None:
        for name in ("dilations", "stages"):  # a description read from a file has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not all(isinstance(dilation, int) and dilation >= 1 for dilation in self.dilations):
            raise InputError(f"the dilations {_listed(self.dilations)} are not possible: give integers from 1 on.")
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise InputError(f"the stages {_listed(self.stages)} are not possible: give one or more, each once.")
        if self.recalibration not in RECALIBRATIONS:
            raise InputError(
                f"the recalibration '{self.recalibration}' is not known; it is multiply, add or, for no branch, None."
            )

    @property
    def branches(self) -> tuple[str, ...]:
        """Location attention, and the recalibrating branch if there is one."""
        return ("att",) if self.recalibration is None else ("att", "rec")

    @property
    def maps(self) -> tuple[str, ...]:
        """The maps of a branch net that it reads."""
        return self.stages

    def build(self, net: Net) -> dict[str, nn.Module]:
        """Its layers by name, for a net of several scales.

        Raises:
            InputError: the net has another number of scales than there are dilations.
        """
        if len(self.dilations) != len(net.scales):
            raise InputError(
                f"there are {len(self.dilations)} dilations, {_listed(self.dilations)}, for the scales "
                f"{_listed(net.scales)}: give one for each scale."
            )
        channels, width = net.map_channels(), net.widths.refine
        hypercolumn = sum(channels[stage] for stage in self.stages)
        layers: dict[str, nn.Module] = {
            f"ref_conv{index}": Conv2d(hypercolumn, width, 3, padding=dilation, dilation=dilation)
            for index, dilation in enumerate(self.dilations, 1)
        }
        outputs = {"att": len(net.scales), "rec": net.num_classes}
        for branch in self.branches:
            layers[f"{branch}_conv1"] = Conv2d(len(net.scales) * width, width, 3, padding=1)
            layers[f"drop_{branch}_conv1"] = Dropout(net.dropout)
            layers[f"{branch}_fc"] = nn.Conv2d(width, outputs[branch], 1)
        return layers

    def fillers(self) -> dict[str, float]:
        """Its layers, and the standard deviations that they start with in a VGG-16 net: those of the authors' head of
        three layers in Attention to Scale."""
        deviations = {f"ref_conv{index}": 0.001 for index in range(1, len(self.dilations) + 1)}
        return deviations | {f"{b}_{la}": std for b in self.branches for la, std in (("conv1", 0.005), ("fc", 0.01))}

    def read(self, maps: Mapping[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """The hypercolumns of one branch, (N, sum of the stages' channels, *grid)."""
        return ops.interp_concat([maps[stage] for stage in self.stages], grid)

    def attention(
        self, net: Net, hypercolumns: Sequence[Tensor], grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (N, S, *grid), and what recalibrates the scores, (N, C, *grid), from each scale's hypercolumns."""
        streams = [relu(net.get_submodule(f"ref_conv{i}")(column)) for i, column in enumerate(hypercolumns, 1)]
        x = torch.cat(streams, 1)
        logits = net.att_fc(net.drop_att_conv1(relu(net.att_conv1(x))))
        if self.recalibration is None:
            return logits, None
        recalibration = net.rec_fc(net.drop_rec_conv1(relu(net.rec_conv1(x))))
        return logits, recalibration.sigmoid() if self.recalibration == "multiply" else recalibration

    def config(self) -> dict:
        """Its fields as plain values."""
        return {"dilations": list(self.dilations), "stages": list(self.stages), "recalibration": self.recalibration}


def _listed(values: tuple) -> str:
    return " ".join(map(str, values)) or "(none)"
