"""The nets as Caffe's `deploy.prototxt`: what other programs run a converted `.caffemodel` with."""

from typing import Any

import torch
from torch import nn

from a2s_repro.caffe.layers import FUSION
from a2s_repro.models import DeepLabLargeFOV, ShareNet
from a2s_repro.models.deeplab import check_image
from a2s_repro.models.share_net import AVERAGE_FACTOR, GRID_STEP, RESAMPLING
from a2s_repro.ops import interp_size
from caffe_weights import SUFFIX_OF_SCALE, Word, prototxt

INPUT = "data"
OUTPUT = "fc8_interp"
"""(N, C, H, W): the merged score map at the size of the image."""


def deploy_prototxt(model: DeepLabLargeFOV, classifier: str, size: tuple[int, int]) -> str:
    """The net in its test phase for `conversion.to_caffe`'s weights, from blob `data` to blob `fc8_interp`.

    `data` is (1, 3, H, W), BGR grey levels less the mean pixel. Layers and blobs have the names of the authors' test
    nets. Three things are said in another way, so that Interp is the only layer beyond those of today's Caffe, and
    OpenCV runs the net: Interp has explicit sizes, holes are called `dilation`, and SpatialProduct is an element-wise
    product with the weights concatenated with themselves, once per class. Dropout, which does nothing in this phase, is
    left out.

    Args:
        model: of any weights; only its shapes count.
        classifier: Caffe's name of layer fc8.
        size: (H, W) of the image.

    Raises:
        InputError: a size off the net's grids.
    """
    with torch.device("meta"):
        check_image(torch.empty(1, 3, *size), model.grid_step)
    net = _Net()
    grid = tuple(interp_size(side, shrink=GRID_STEP[1]) for side in size)
    suffixes = {scale: suffix for scale, suffix in SUFFIX_OF_SCALE.items() if scale in model.scales}

    features = {}
    for scale, suffix in suffixes.items():
        image = INPUT
        if scale != 1:
            scaled = tuple(interp_size(side, **RESAMPLING[scale]) for side in size)
            image = net.interp(INPUT, f"shrink_data{suffix.removeprefix('_res')}", scaled)
        features[scale] = net.trunk(model, image, suffix)
    scores = {
        scale: net.convolution(model.fc8, features[scale], classifier + suffix) for scale, suffix in suffixes.items()
    }
    merged = scores[1] if len(scores) == 1 else net.merged(model, features, scores, grid)
    net.interp(merged, OUTPUT, size)
    shape = {"dim": [1, 3, *size]}
    return prototxt({"name": "a2s_repro", "input": INPUT, "input_shape": shape, "layer": net.layers})


class _Net:
    """The layers so far. Each method adds one or more and returns the blob that they end in."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []

    def add(self, kind: str, bottoms: list[str], top: str, **parameters: dict[str, Any]) -> str:
        self.layers.append({"name": top, "type": kind, "bottom": bottoms, "top": top, **parameters})
        return top

    def interp(self, bottom: str, top: str, size: tuple[int, int]) -> str:
        return self.add("Interp", [bottom], top, interp_param={"height": size[0], "width": size[1]})

    def convolution(self, module: nn.Conv2d, bottom: str, top: str) -> str:
        sizes = {"num_output": module.out_channels, "kernel_size": module.kernel_size[0]}
        extra = {"pad": (module.padding[0], 0), "dilation": (module.dilation[0], 1)}
        sizes |= {field: value for field, (value, default) in extra.items() if value != default}
        return self.add("Convolution", [bottom], top, convolution_param=sizes)

    def relu(self, blob: str, name: str) -> str:
        self.layers.append({"name": name, "type": "ReLU", "bottom": blob, "top": blob})
        return blob

    def pooling(self, module: nn.MaxPool2d | nn.AvgPool2d, bottom: str, top: str) -> str:
        method = Word("MAX" if isinstance(module, nn.MaxPool2d) else "AVE")
        window = {"kernel_size": module.kernel_size, "stride": module.stride, "pad": module.padding}
        return self.add("Pooling", [bottom], top, pooling_param={"pool": method, **window})

    def eltwise(self, operation: str, bottoms: list[str], top: str) -> str:
        return self.add("Eltwise", bottoms, top, eltwise_param={"operation": Word(operation)})

    def concat(self, bottoms: list[str], top: str) -> str:
        return self.add("Concat", bottoms, top, concat_param={"axis": 1})

    def trunk(self, model: DeepLabLargeFOV, blob: str, suffix: str) -> str:
        """One branch from the image to fc7."""
        for name, module in model.named_children():
            if name == "fc8":
                break
            if isinstance(module, nn.Conv2d):
                blob = self.convolution(module, blob, name + suffix)
                self.relu(blob, f"relu{name.removeprefix('conv').removeprefix('fc')}{suffix}")
            elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
                blob = self.pooling(module, blob, name + suffix)
        return blob

    def merged(
        self, model: ShareNet, features: dict[float, str], scores: dict[float, str], grid: tuple[int, int]
    ) -> str:
        """fc8_fusion, on the grid of scale 1, from fc7 and fc8 of every scale."""

        def on_grid(maps: dict[float, str]) -> list[str]:
            return [
                maps[scale] if scale == 1 else self.interp(maps[scale], f"{maps[scale]}_interp", grid)
                for scale in model.scales
            ]

        aligned = on_grid(scores)
        if model.merge == "average":
            total = self.eltwise("SUM", aligned, "fc_fusion")
            return self.add("Power", [total], FUSION, power_param={"scale": AVERAGE_FACTOR[len(aligned)]})
        if model.merge == "max":
            return self.eltwise("MAX", aligned, FUSION)

        head = self.convolution(model.att_conv1, self.concat(on_grid(features), "fc7_concat"), "att_conv1")
        logits = self.convolution(model.att_fc, self.relu(head, "relu_att_conv1"), "att_fc")
        weights = self.add("Softmax", [logits], "attention", softmax_param={"axis": 1})
        maps = [f"attention{index}" for index in range(1, len(aligned) + 1)]
        points = {"axis": 1, "slice_point": list(range(1, len(aligned)))}
        self.layers.append(
            {"name": "slice_attention", "type": "Slice", "bottom": weights, "top": maps, "slice_param": points}
        )
        products = []
        for scale, weight, score in zip(model.scales, maps, aligned, strict=True):
            wide = self.concat([weight] * model.num_classes, f"{weight}_wide")
            products.append(self.eltwise("PROD", [score, wide], f"fc8{SUFFIX_OF_SCALE[scale]}_product"))
        return self.eltwise("SUM", products, FUSION)
