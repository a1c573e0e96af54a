"""The head of Attention to Refine: hypercolumns, a dilated convolution per scale, attention and recalibration."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.errors import InputError, check_known
from a2s_repro.models.base import Widths, relu
from a2s_repro.models.layers import Conv2d, Dropout

RECALIBRATIONS = (None, "multiply", "add")
NORMALIZATIONS = (None, "l2", "batch")
MERGE_STRIDES = (4, 8)
SUPERVISIONS = ("raw", "recalibrated")
L2_SCALE = 10.0
"""Start of the scales that are learned after L2 normalisation; the stages' maps then have this norm at every pixel."""


@dataclasses.dataclass(frozen=True)
class RefineHead:
    """Description of the head of Attention to Refine, with its ablations (Tables 1 and 2). `build` makes its module.

    Raises:
        InputError: a value that is not possible.
    """

    dilations: tuple[int, ...] = (2, 12)
    """Of the scales' convolutions, in the order of the scales, the largest first; 1 is the standard convolution."""
    stages: tuple[str, ...] = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
    """Maps that make up a hypercolumn: of convolutions, after their ReLU, or of pools."""
    recalibration: str | None = "multiply"
    """"multiply": factors, by a sigmoid. "add": biases. None: no recalibration."""
    normalization: str | None = None
    """Of the stages in a hypercolumn. "l2": each stage by its L2 norm at every pixel, with learned scales (ParseNet).
    "batch": batch normalisation. None: as they are."""
    merge_stride: int = 4
    """Pixels per cell of the grid on which the scores are merged: 4, the hypercolumns', or 8, that of the scores at
    scale 1, to which weights and recalibration are interpolated."""
    supervision: str = "raw"
    """Score maps of the scales that extra supervision takes: "raw", or "recalibrated", on the merging grid."""

    stride: ClassVar[int] = 4
    """Pixels per cell of the grid of the hypercolumns, on which the attention is computed."""

    def __post_init__(self) -> None:
        for name in ("dilations", "stages"):  # lists in a description that was read from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not all(isinstance(dilation, int) and dilation >= 1 for dilation in self.dilations):
            raise InputError(f"the dilations {_listed(self.dilations)} are not possible: give integers from 1 on.")
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise InputError(f"the stages {_listed(self.stages)} are not possible: give one or more, each once.")
        if self.recalibration not in RECALIBRATIONS:
            raise InputError(
                f"the recalibration '{self.recalibration}' is not known; it is multiply, add or, to leave it out, None."
            )
        if self.normalization not in NORMALIZATIONS:
            raise InputError(
                f"the normalization '{self.normalization}' is not known; it is l2, batch or, to leave it out, None."
            )
        if self.merge_stride not in MERGE_STRIDES:
            raise InputError(f"scores are merged at every 4 or 8 pixels, not at every {self.merge_stride} pixels.")
        check_known("supervision", self.supervision, SUPERVISIONS)
        if self.supervision == "recalibrated" and self.recalibration is None:
            raise InputError("supervision 'recalibrated' is not possible without recalibration: give supervision raw.")

    @property
    def maps(self) -> tuple[str, ...]:
        """The maps of a stream that the head reads."""
        return self.stages

    def fillers(self) -> dict[str, float]:
        """The layers of the head, and the standard deviations of their fillers in a VGG-16 net; 0 for normalisations,
        which start at constants.

        The deviations are those of the authors' head of three layers in Attention to Scale.
        """
        scales = range(1, len(self.dilations) + 1)
        deviations = {} if self.normalization is None else {f"ref_norm{index}": 0.0 for index in scales}
        deviations |= {f"ref_conv{index}": 0.001 for index in scales}
        deviations |= {"att_conv1": 0.005, "att_fc": 0.01}
        return deviations if self.recalibration is None else deviations | {"rec_conv1": 0.005, "rec_fc": 0.01}

    def build(
        self, channels: Mapping[str, int], scales: Sequence[float], num_classes: int, widths: Widths, dropout: float
    ) -> "RefineAttention":
        """The head's module, for streams with maps of these channels.

        Raises:
            InputError: the net has another number of scales than there are dilations.
        """
        if len(self.dilations) != len(scales):
            raise InputError(
                f"there are {len(self.dilations)} dilations, {_listed(self.dilations)}, for the scales "
                f"{_listed(scales)}: give one for each scale."
            )
        return RefineAttention(self, [channels[stage] for stage in self.stages], num_classes, widths.refine, dropout)

    def config(self) -> dict:
        """The fields as plain values, for `build_head`."""
        return dataclasses.asdict(self) | {"dilations": list(self.dilations), "stages": list(self.stages)}


class StageNorm(nn.Module):
    """L2 normalisation of the stages in a hypercolumn (Liu et al., ParseNet, Section 3.2).

    At every pixel the values of each stage are divided by their L2 norm, and those of each channel multiplied by a
    learned scale, `weight`.

    Args:
        channels: of each stage.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.weight = nn.Parameter(torch.full((sum(channels),), L2_SCALE))

    def forward(self, hypercolumn: Tensor) -> Tensor:
        """(N, sum of the channels, h, w) -> the same."""
        unit = torch.cat([F.normalize(stage, dim=1) for stage in hypercolumn.split(self.channels, 1)], 1)
        return unit * self.weight[:, None, None]


class RefineAttention(nn.Module):
    """The head of Attention to Refine (Eq. 2 and 3 of the paper).

    The maps of several stages of a stream are resized to the 1/4 grid of scale 1 and concatenated: its hypercolumns,
    which `ref_norm<i>` normalises for the i-th scale if the head has it. A 3x3 convolution with a dilation of its own,
    `ref_conv<i>`, and a ReLU follow, and the results are concatenated over the scales. From these a 3x3 and a 1x1
    convolution make the location attention, `att_conv1` and `att_fc`, one logit per scale, and two more the
    recalibration, `rec_conv1` and `rec_fc`, one value per class that all scales share.

    Args:
        head: its description.
        channels: of each stage in a hypercolumn.
        num_classes: C.
        width: filters of every convolution but `att_fc` and `rec_fc`.
        dropout: drop ratio after `att_conv1` and `rec_conv1`.
    """

    def __init__(self, head: RefineHead, channels: Sequence[int], num_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.stages, self.recalibration, self.normalization = head.stages, head.recalibration, head.normalization
        scales, inputs = len(head.dilations), sum(channels)
        for index, dilation in enumerate(head.dilations, 1):
            if head.normalization is not None:
                norm = StageNorm(channels) if head.normalization == "l2" else nn.BatchNorm2d(inputs)
                self.add_module(f"ref_norm{index}", norm)
            self.add_module(f"ref_conv{index}", Conv2d(inputs, width, 3, padding=dilation, dilation=dilation))
        self.att_conv1 = Conv2d(scales * width, width, 3, padding=1)
        self.drop_att_conv1 = Dropout(dropout)
        self.att_fc = nn.Conv2d(width, scales, 1)
        if head.recalibration is not None:
            self.rec_conv1 = Conv2d(scales * width, width, 3, padding=1)
            self.drop_rec_conv1 = Dropout(dropout)
            self.rec_fc = nn.Conv2d(width, num_classes, 1)

    def read(self, maps: Mapping[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """The hypercolumns of one stream, (N, sum of the stages' channels, *grid)."""
        return ops.interp_concat([maps[stage] for stage in self.stages], grid)

    def forward(self, hypercolumns: Sequence[Tensor], grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Logits (N, S, *grid) and the recalibration of the scores, (N, C, *grid), if any, from those of S streams."""
        if self.normalization is not None:
            hypercolumns = [self.get_submodule(f"ref_norm{i}")(column) for i, column in enumerate(hypercolumns, 1)]
        refined = [relu(self.get_submodule(f"ref_conv{i}")(column)) for i, column in enumerate(hypercolumns, 1)]
        x = torch.cat(refined, 1)
        logits = self.att_fc(self.drop_att_conv1(relu(self.att_conv1(x))))
        if self.recalibration is None:
            return logits, None
        recalibration = self.rec_fc(self.drop_rec_conv1(relu(self.rec_conv1(x))))
        return logits, recalibration.sigmoid() if self.recalibration == "multiply" else recalibration


def _listed(values: Sequence) -> str:
    return " ".join(map(str, values)) or "(none)"
