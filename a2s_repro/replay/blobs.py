"""The blobs of the authors' training and test nets, by Caffe's names, from a forward pass in PyTorch.

The fused operators do not store some of these maps; the operators' references recompute them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.caffe.layers import FUSION
from a2s_repro.models import DeepLab, Prediction, ShareNet
from a2s_repro.models.losses import loss_inputs, seg_accuracy, shrink_labels, training_loss
from a2s_repro.models.share_net import GRID_STEP, rescaled
from a2s_repro.models.skip_branches import TRAINING_STRIDE
from a2s_repro.replay.recording import Recording
from caffe_weights import SUFFIX_OF_SCALE

Blobs = dict[str, Tensor]


@torch.no_grad()
def first_blobs(recording: Recording, dtype: torch.dtype, device: str | torch.device) -> tuple[Blobs, Blobs]:
    """The blobs of the training net in the first pass, in two groups: stored by the forward pass, and recomputed."""
    net = recording.net(dtype, device)
    image, labels = recording.batch(0, 0)
    image, labels = image.to(device, dtype), labels.to(device)
    prediction, stored, recomputed = _forward(net, image, recording.classifier)

    size = torch.tensor(image.shape[2:]).expand(len(image), 2)
    stored |= {"data": image, "label": labels, "automatic0": size}
    for scale in net.scales[1:]:
        stored[f"shrink_data{SUFFIX_OF_SCALE[scale].removeprefix('_res')}"] = rescaled(image, scale)
    stored["label_shrink"] = shrink_labels(labels, 8)
    for factor in (8, 16, 32):
        if all((side - 1) % factor == 0 for side in labels.shape[1:]):
            stored[f"label_shrink{factor}"] = shrink_labels(labels, factor)
    losses = training_loss(prediction, labels, recording.extra_supervision)
    stored |= {f"automatic{index}": loss for index, loss in enumerate(losses.values(), 1)}
    stored |= {
        name: torch.tensor(values)
        for name, values in accuracies(prediction, labels, recording.extra_supervision).items()
    }
    return stored, recomputed


@torch.no_grad()
def blobs_of_test_net(recording: Recording, image: Tensor) -> tuple[Prediction, Blobs]:
    """The prediction for `image`, (1, 3, H, W) minus the mean, in the TEST phase, and the blobs of the test net."""
    net = recording.net(image.dtype, image.device).eval()
    prediction, stored, recomputed = _forward(net, image, recording.classifier)
    return prediction, stored | recomputed


def accuracies(
    prediction: Prediction, labels: Tensor, extra_supervision: bool
) -> dict[str, tuple[float, float, float]]:
    """The values of SegAccuracy for each loss, by the layer's name."""
    inputs = loss_inputs(prediction, labels, extra_supervision)
    return {name.replace("loss", "accuracy"): tuple(seg_accuracy(*pair)) for name, pair in inputs.items()}


def _forward(net: DeepLab, image: Tensor, classifier: str) -> tuple[Prediction, Blobs, Blobs]:
    """A forward pass: the prediction, the stored blobs, and the recomputed ones between them and the prediction."""
    with recorded_outputs(net) as outputs:
        prediction = net(image)
    stored = {}
    for name, maps in outputs.items():
        blob = classifier if name == "fc8" else name
        stored |= {blob + SUFFIX_OF_SCALE[scale]: output for scale, output in zip(net.scales, maps, strict=False)}
    if isinstance(net, ShareNet):
        stored[FUSION] = prediction.scores
    score = classifier
    if net.skip_net:
        score = "fc_ms_fusion" if isinstance(net, ShareNet) else "fc_fusion"
        for scale, scores in zip(net.scales, prediction.scale_scores, strict=True):
            stored[score + SUFFIX_OF_SCALE[scale]] = scores
    with ops.use_backend("reference"):
        recomputed = {} if net.training else _enlarged(net, stored, prediction, image, classifier)
        if isinstance(net, ShareNet):
            recomputed |= _merging(net, stored, prediction, image, classifier, score)
    return prediction, stored, recomputed


def _enlarged(net: DeepLab, stored: Blobs, prediction: Prediction, image: Tensor, classifier: str) -> Blobs:
    """The test net's maps at the size of the image: the merged scores, or all summands of a skip-net."""
    if not net.skip_net:
        return {"fc8_interp": ops.interp(prediction.scores, image.shape[2:])}
    summed = {f"{source}_ms": source for source in TRAINING_STRIDE} | {classifier: "fc8"}
    return {
        f"{source}_interp{SUFFIX_OF_SCALE[scale]}": ops.interp(stored[blob + SUFFIX_OF_SCALE[scale]], scores.shape[2:])
        for scale, scores in zip(net.scales, prediction.scale_scores, strict=True)
        for blob, source in summed.items()
    }


def _merging(net: ShareNet, stored: Blobs, prediction: Prediction, image: Tensor, classifier: str, score: str) -> Blobs:
    """The blobs between the score maps, blob `score` of every scale, and their merge."""
    suffixes = [SUFFIX_OF_SCALE[scale] for scale in net.scales]
    blobs: Blobs = {}

    def aligned(name: str, size: tuple[int, int]) -> list[Tensor]:
        maps = {f"{name}{suffix}": stored[name + suffix] for suffix in suffixes}
        resized = {f"{blob}_interp": ops.interp(values, size) for blob, values in maps.items() if blob != name}
        blobs.update(resized)
        return [resized.get(f"{blob}_interp", values) for blob, values in maps.items()]

    scores = aligned(score, prediction.scores.shape[2:])
    if net.merge == "average":
        blobs["fc_fusion"] = sum(scores)
    if net.merge == "attention":
        features = classifier if net.head_config.features == "fc8" else net.head_config.features
        grid = tuple(ops.interp_size(side, shrink=GRID_STEP[1]) for side in image.shape[2:])
        blobs[f"{net.head_config.features}_concat"] = torch.cat(aligned(features, grid), 1)
        on_grid = prediction.weights.shape == stored["att_fc"].shape
        blobs["attention"] = prediction.weights if on_grid else ops.scale_softmax(stored["att_fc"])
        for index, (suffix, scores_at) in enumerate(zip(suffixes, scores, strict=True)):
            weights = prediction.weights[:, index : index + 1]
            blobs[f"attention{index + 1}"] = blobs["attention"][:, index : index + 1]
            blobs[f"attention{index + 1}_interp"] = weights
            blobs[f"fc8{suffix}_product"] = weights * scores_at
    return blobs


@contextmanager
def recorded_outputs(net: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collects the outputs of every layer by name: one map per stream, in the order of the scales.

    ReLUs act in place, so a layer's map holds the values after the ReLU, like a Caffe blob.
    """
    outputs: dict[str, list[Tensor]] = {}

    def collect(name: str, output: Tensor) -> None:
        outputs.setdefault(name, []).append(output)
        outputs[name].sort(key=lambda output: -output.shape[-1])  # streams do not run in the order of the scales

    layers = {name.removeprefix("head."): layer for name, layer in net.named_modules() if not any(layer.children())}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: collect(name, output))
        for name, layer in layers.items()
        if not isinstance(layer, nn.Dropout)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
