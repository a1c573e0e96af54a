"""Writes a net as Caffe's `deploy.prototxt`, so that other programs can run a converted `.caffemodel`."""

from typing import Any

import torch
from torch import nn

from a2s_repro.caffe.layers import FUSION, RESNET
from a2s_repro.models import DeepLab, DeepLabResNet101, ShareNet
from a2s_repro.models.base import check_image
from a2s_repro.models.resnet101 import EPS, block_names, norm_of, scale_of
from a2s_repro.models.share_net import AVERAGE_FACTOR, GRID_STEP, RESAMPLING
from a2s_repro.models.skip_branches import SKIP_LAYERS, SkipConvolution
from a2s_repro.ops import interp_size
from caffe_weights import SUFFIX_OF_SCALE, Word, prototxt

INPUT = "data"


def output_blob(model: DeepLab | DeepLabResNet101) -> str:
    """Name of the blob of the merged score map, (N, C, H, W) at the size of the image, in the authors' test nets."""
    if not model.skip_net:
        return f"{model.classifier_layer}_interp"
    return FUSION if isinstance(model, ShareNet) else "fc_fusion"


def deploy_prototxt(model: DeepLab | DeepLabResNet101, classifier: str, size: tuple[int, int]) -> str:
    """The prototxt of the TEST net for the weights of `conversion.to_caffe`, from blob `data` to `output_blob`.

    `data` is (1, 3, H, W), BGR grey levels minus the mean pixel. Layers and blobs have the names of the authors' test
    nets. Three layers are written differently, so that Interp is the only layer beyond upstream Caffe and OpenCV runs
    the net: Interp has explicit sizes, the parameter `hole` is `dilation`, and SpatialProduct is an Eltwise PROD with
    the weights concatenated once per class. Dropout is omitted, because it does nothing in the TEST phase.

    Args:
        model: the net; only its shapes are used, not its weights.
        classifier: Caffe's name of the classifier.
        size: (H, W) of the image.

    Raises:
        InputError: the size does not fit the net's grids.
    """
    with torch.device("meta"):
        check_image(torch.empty(1, 3, *size), model.grid_step)
    net = _Prototxt()
    streams = {}
    resnet = isinstance(model, DeepLabResNet101)
    for scale in model.stream_order:
        suffix, scaled = SUFFIX_OF_SCALE[scale], tuple(interp_size(side, **RESAMPLING[scale]) for side in size)
        image = INPUT
        if scale != 1:
            name = f"data{suffix}" if resnet else f"shrink_data{suffix.removeprefix('_res')}"
            image = net.interp(INPUT, name, scaled)
        if isinstance(model, DeepLabResNet101):
            streams[scale] = net.resnet_stream(model, image, classifier, suffix)
        else:
            streams[scale] = net.stream(model, image, classifier, suffix, scaled)
    fusion = RESNET.fusion if resnet else FUSION
    merged = net.merged(model, streams, size, fusion) if len(model.scales) > 1 else streams[1]["scores"]
    if not model.skip_net:
        net.interp(merged, output_blob(model), size)
    shape = {"dim": [1, 3, *size]}
    return prototxt({"name": "a2s_repro", "input": INPUT, "input_shape": shape, "layer": net.layers})


class _Prototxt:
    """A net under construction. Each method appends layers and returns the name of their output blob."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []

    def add(self, kind: str, bottoms: list[str], top: str, **parameters: dict[str, Any]) -> str:
        self.layers.append({"name": top, "type": kind, "bottom": bottoms, "top": top, **parameters})
        return top

    def interp(self, bottom: str, top: str, size: tuple[int, int]) -> str:
        if any(layer["name"] == top for layer in self.layers):  # a resized fc8 may already exist for the attention head
            return top
        return self.add("Interp", [bottom], top, interp_param={"height": size[0], "width": size[1]})

    def convolution(self, module: nn.Conv2d, bottom: str, top: str) -> str:
        sizes = {"num_output": module.out_channels, "kernel_size": module.kernel_size[0]}
        stride = 1 if isinstance(module, SkipConvolution) else module.stride[0]  # theirs is for training
        extra = {"pad": (module.padding[0], 0), "stride": (stride, 1), "dilation": (module.dilation[0], 1)}
        sizes |= {field: value for field, (value, default) in extra.items() if value != default}
        sizes |= {} if module.bias is not None else {"bias_term": False}
        return self.add("Convolution", [bottom], top, convolution_param=sizes)

    def in_place(self, kind: str, blob: str, name: str, **parameters: dict[str, Any]) -> str:
        self.layers.append({"name": name, "type": kind, "bottom": blob, "top": blob, **parameters})
        return blob

    def relu(self, blob: str, name: str) -> str:
        return self.in_place("ReLU", blob, name)

    def pooling(self, module: nn.MaxPool2d | nn.AvgPool2d, bottom: str, top: str) -> str:
        method = Word("MAX" if isinstance(module, nn.MaxPool2d) else "AVE")
        window = {"kernel_size": module.kernel_size, "stride": module.stride, "pad": module.padding}
        return self.add("Pooling", [bottom], top, pooling_param={"pool": method, **window})

    def eltwise(self, operation: str, bottoms: list[str], top: str) -> str:
        return self.add("Eltwise", bottoms, top, eltwise_param={"operation": Word(operation)})

    def concat(self, bottoms: list[str], top: str) -> str:
        return self.add("Concat", bottoms, top, concat_param={"axis": 1})

    def stream(self, model: DeepLab, image: str, classifier: str, suffix: str, size: tuple[int, int]) -> dict[str, str]:
        """Adds one stream on an image of `size`; returns the blobs of fc6, fc7, fc8 and `scores`."""
        blob, side, sides, scores, features = image, image, [], [], {}
        for name, module in model.named_children():
            if name in SKIP_LAYERS:
                side = self.convolution(module, side, name + suffix)
                if name.endswith("_ms"):
                    sides.append(side)
                else:
                    self.relu(side, f"relu_{name}{suffix}")
            elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
                blob = side = self.pooling(module, blob, name + suffix)
            elif name.startswith("fc8"):
                scores.append(self.convolution(module, blob, f"{classifier}{name.removeprefix('fc8')}{suffix}"))
                blob = side  # the next branch reads the last pool, too
            elif isinstance(module, nn.Conv2d) and name not in model.unshared_layers:
                blob = features[name] = self.convolution(module, blob, name + suffix)
                self.relu(blob, f"relu{name.removeprefix('conv').removeprefix('fc')}{suffix}")
        features["fc8"] = self.eltwise("SUM", scores, classifier) if model.aspp else scores[0]
        if not model.skip_net:
            return features | {"scores": features["fc8"]}
        at_image, *others = sides
        maps = [
            self.interp(blob, f"{blob.removesuffix(suffix).removesuffix('_ms')}_interp{suffix}", size)
            for blob in others
        ]
        maps.append(self.interp(features["fc8"], f"fc8_interp{suffix}", size))
        fusion = "fc_ms_fusion" if isinstance(model, ShareNet) else "fc_fusion"
        return features | {"scores": self.eltwise("SUM", [at_image, *maps], fusion + suffix)}

    def resnet_stream(self, model: DeepLabResNet101, image: str, classifier: str, suffix: str) -> dict[str, str]:
        """Adds one stream of ResNet-101; returns the blobs of res5c and `scores`."""

        def normalized(name: str, bottom: str) -> str:
            blob = self.convolution(model.get_submodule(name), bottom, name + suffix)
            statistics = {"use_global_stats": True, "eps": EPS}
            self.in_place("BatchNorm", blob, norm_of(name) + suffix, batch_norm_param=statistics)
            return self.in_place("Scale", blob, scale_of(name) + suffix, scale_param={"bias_term": True})

        blob = self.relu(normalized("conv1", image), f"conv1_relu{suffix}")
        blob = self.pooling(model.pool1, blob, f"pool1{suffix}")
        for name in block_names():
            residual = normalized(f"{name}_branch1", blob) if name.endswith("a") else blob
            for branch in ("branch2a", "branch2b"):
                blob = self.relu(normalized(f"{name}_{branch}", blob), f"{name}_{branch}_relu{suffix}")
            blob = self.eltwise("SUM", [residual, normalized(f"{name}_branch2c", blob)], name + suffix)
            self.relu(blob, f"{name}_relu{suffix}")
        scores = [
            self.convolution(model.get_submodule(module), blob, RESNET.layer_of(module, classifier, suffix))
            for module in (f"fc1_c{index}" for index, _ in enumerate(model.aspp))
        ]
        return {"res5c": blob, "scores": self.eltwise("SUM", scores, classifier + suffix)}

    def merged(
        self,
        model: ShareNet | DeepLabResNet101,
        streams: dict[float, dict[str, str]],
        size: tuple[int, int],
        fusion: str,
    ) -> str:
        """Adds the layer `fusion`: at the `size` of the image in a skip-net, else on the grid of scale 1."""
        grid = tuple(interp_size(side, shrink=GRID_STEP[1]) for side in size)

        def aligned(name: str, size: tuple[int, int]) -> list[str]:
            blobs = {scale: streams[scale][name] for scale in model.scales}
            return [blob if scale == 1 else self.interp(blob, f"{blob}_interp", size) for scale, blob in blobs.items()]

        scores = aligned("scores", size if model.skip_net else grid)
        if model.merge == "average":
            total = self.eltwise("SUM", scores, "fc_fusion" if fusion == FUSION else f"{fusion}_sum")
            return self.add("Power", [total], fusion, power_param={"scale": AVERAGE_FACTOR[len(scores)]})
        if model.merge == "max":
            return self.eltwise("MAX", scores, fusion)

        features = model.head_config.features
        blob = self.concat(aligned(features, grid), f"{features}_concat")
        for name in model.head_config.fillers():
            blob = self.convolution(model.layer(name), blob, name)
            if name != "att_fc":
                self.relu(blob, f"relu_{name}")
        weights = self.add("Softmax", [blob], "attention", softmax_param={"axis": 1})
        maps = [f"attention{index}" for index in range(1, len(scores) + 1)]
        points = {"axis": 1, "slice_point": list(range(1, len(scores)))}
        self.layers.append(
            {"name": "slice_attention", "type": "Slice", "bottom": weights, "top": maps, "slice_param": points}
        )
        products = []
        for scale, weight, score in zip(model.scales, maps, scores, strict=True):
            if model.skip_net:
                weight = self.interp(weight, f"{weight}_interp", size)
            wide = self.concat([weight] * model.num_classes, f"{weight}_wide")
            product = f"{model.classifier_layer}{SUFFIX_OF_SCALE[scale]}_product"
            products.append(self.eltwise("PROD", [score, wide], product))
        return self.eltwise("SUM", products, fusion)
