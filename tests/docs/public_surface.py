"""A user's program for the type checker: `make lint` checks it, and it is never run."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from torch import Tensor, nn

import a2s_repro
from a2s_repro import ops
from a2s_repro.checkpoint import Weights, load_weights, save_weights
from a2s_repro.data.lists import Item, read_list
from a2s_repro.inference import CRF, Segmenter, evaluate
from a2s_repro.inference.evaluation import Result
from a2s_repro.inference.segmenter import Segmentation
from a2s_repro.models import BackboneNet, Net, Prediction, ShareNet, build_model
from a2s_repro.models.losses import training_loss
from a2s_repro.recipes import Recipe, find_recipe
from a2s_repro.solver import CaffeSGD, parameter_groups
from a2s_repro.training import Outcome, Run, train


def segmenting(picture: np.ndarray, tensor: Tensor) -> None:
    segmenter = a2s_repro.load("model.pth", device="cpu")
    assert_type(segmenter, Segmenter)
    result = segmenter("street.jpg", scores=True, crf=CRF())
    assert_type(result, Segmentation)
    assert_type(result.labels, np.ndarray)
    assert_type(result.weights, np.ndarray | None)
    assert_type(segmenter(Path("street.jpg")), Segmentation)
    assert_type(segmenter(picture, order="rgb"), Segmentation)
    assert_type(segmenter(tensor), Segmentation)
    assert_type(segmenter(["a.jpg", picture]), list[Segmentation])
    assert_type(segmenter(sorted(Path("photos").glob("*.jpg"))), list[Segmentation])


def any_backbone(backbone: nn.Module) -> None:
    assert_type(a2s_repro.multi_scale(backbone, 21, (1.5, 1, 0.5), "hierarchical"), BackboneNet)
    assert_type(a2s_repro.multi_scale("timm:resnet50", 21, output_stride=16), BackboneNet)
    assert_type(a2s_repro.load("model.pth", scales=(1, 0.75, 0.5), backbone=backbone), Segmenter)


def operators(scores: list[Tensor], logits: Tensor) -> None:
    merged, weights = ops.scale_merge(scores, logits, size=(65, 65))
    assert_type(merged, Tensor)
    assert_type(weights, Tensor)
    assert_type(ops.scale_average(scores, (65, 65)), Tensor)
    assert_type(ops.scale_max(scores, (65, 65)), Tensor)
    assert_type(ops.scale_softmax(logits), Tensor)
    assert_type(ops.interp(logits, (513, 513), pad=(-1, -1)), Tensor)
    assert_type(ops.interp_size(321, shrink=4, zoom=3), int)
    assert_type(ops.interp_concat(scores, (65, 65)), Tensor)
    assert_type(ops.segment(merged, (513, 513)), Tensor)
    with ops.use_backend("reference"):
        ops.interp(logits, (9, 9))


def fine_tuning(image: Tensor, labels: Tensor) -> None:
    net = ShareNet(21, (1, 0.5), merge="attention")
    assert_type(build_model(net.config()), Net)
    solver = CaffeSGD(parameter_groups(net), lr=1e-4)
    prediction: Prediction = net(image)
    assert_type(prediction.scores, Tensor)
    assert_type(prediction.weights, Tensor | None)
    losses = training_loss(prediction, labels, extra_supervision=True)
    assert_type(losses, dict[str, Tensor])
    solver.zero_grad()
    for loss in losses.values():
        loss.backward()
    solver.step()
    save_weights("tuned.pth", net.state_dict(), {"model": net.config()})
    weights = load_weights("tuned.pth")
    assert_type(weights, Weights)
    assert_type(weights.meta, dict[str, Any])


def training() -> None:
    recipe = find_recipe("voc12/attention2_esupv").changed(max_iter=4)
    assert_type(recipe, Recipe)
    outcome = train(recipe, Run(data_root=Path("data"), out=Path("runs/mine"), init=Path("init.pth")))
    assert_type(outcome, Outcome)
    assert_type(outcome.file, Path)


def evaluation(segmenter: Segmenter) -> None:
    items = read_list("data/list/val.txt", "data")
    assert_type(items, list[Item])
    assert_type(segmenter.model, Net)
    result = evaluate(segmenter.model, items, classes=segmenter.classes)
    assert_type(result, Result)
    assert_type(result.confusion.mean_iou, float)
