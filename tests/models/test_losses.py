"""Losses and accuracies against recorded figures of the authors' Caffe layers, and the losses of each training net."""

import json
import re

import numpy as np
import pytest
import torch

from a2s_repro.errors import InputError
from a2s_repro.models import Prediction
from a2s_repro.models.losses import loss_inputs, seg_accuracy, shrink_labels, softmax_with_loss, training_loss
from tests.paths import GOLDEN

CASES = dict(np.load(GOLDEN / "layers.npz"))
LAYERS = {name: case["layer"] for name, case in json.loads(str(CASES["meta_json"])).items()}


def cases(prefix: str) -> list[str]:
    return [name for name in LAYERS if name.startswith(prefix)]


@pytest.mark.parametrize("name", cases("softmaxloss"))
def test_softmax_with_loss(name):
    """Tolerance: float32 sums in another order, 1e-6 of the largest value. loss_weight acts on the gradient only."""
    layer = LAYERS[name]
    x = torch.from_numpy(CASES[f"{name}.x"]).requires_grad_()
    loss = softmax_with_loss(
        x,
        torch.from_numpy(CASES[f"{name}.label"]).squeeze(1),
        ignore_labels=[int(label) for label in re.findall(r"ignore_label: (\d+)", layer)],
        normalize="normalize: false" not in layer,
        class_weights=torch.from_numpy(CASES[f"{name}.weights"]) if f"{name}.weights" in CASES else None,
    )
    weight = re.search(r"loss_weight: ([\d.]+)", layer)
    (loss * (float(weight[1]) if weight else 1)).backward()
    assert loss.item() == pytest.approx(CASES[f"{name}.loss"].item(), rel=1e-6)
    theirs = CASES[f"{name}.grad_x"]
    assert np.abs(x.grad.numpy() - theirs).max() <= 1e-6 * np.abs(theirs).max()


def test_ignored_pixels_get_exactly_no_gradient():
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.randint(0, 3, (1, 4, 4))
    labels[0, 1] = 255
    softmax_with_loss(x, labels).backward()
    assert not x.grad[:, :, 1].any()
    assert x.grad[:, :, 0].all()


def test_half_precision_scores_have_their_loss_in_float32():
    scores = torch.randn(1, 3, 8, 8).to(torch.bfloat16)
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    assert torch.equal(softmax_with_loss(scores, labels), softmax_with_loss(scores.float(), labels))


@pytest.mark.parametrize("name", cases("segacc"))
def test_seg_accuracy(name):
    """Recorded for successive calls; without `reset` the layer counts on, as if the calls were one batch."""
    scores, labels = torch.from_numpy(CASES[f"{name}.x"]), torch.from_numpy(CASES[f"{name}.label"]).squeeze(2)
    for call, theirs in enumerate(CASES[f"{name}.acc"]):
        first = 0 if "reset: false" in LAYERS[name] else call
        ours = seg_accuracy(scores[first : call + 1].flatten(0, 1), labels[first : call + 1].flatten(0, 1))
        assert ours == pytest.approx(tuple(theirs), abs=1e-7)


def test_a_label_outside_the_classes_is_named():
    labels = torch.tensor([[[0, 7], [255, -1]]])
    with pytest.raises(InputError, match="labels hold -1, 7, but the net has classes 0 to 2"):
        softmax_with_loss(torch.zeros(1, 3, 2, 2), labels)


def test_labels_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"\(1, 4, 4\) do not fit scores of shape \(1, 3, 2, 2\)"):
        softmax_with_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4))


def prediction(*scales: float) -> Prediction:
    """Zero score maps of an image of 65 pixels."""
    sides = {1: 9, 0.75: 7, 0.5: 5, 0.25: 3}
    maps = tuple(torch.zeros(1, 4, sides[scale], sides[scale]) for scale in scales)
    return Prediction(maps[0], maps, None, scales, scales)


def test_each_loss_meets_its_scores_and_labels():
    labels = torch.arange(65 * 65).view(1, 65, 65)
    inputs = loss_inputs(prediction(1, 0.75, 0.5, 0.25), labels, extra_supervision=True)
    assert list(inputs) == ["loss", "loss_res1", "loss_res075", "loss_res05", "loss_res025"]
    for name, factor in {"loss": 8, "loss_res1": 8, "loss_res075": 8, "loss_res05": 16, "loss_res025": 32}.items():
        scores, grid_labels = inputs[name]
        assert torch.equal(grid_labels, labels[:, ::factor, ::factor]), name
        assert scores.shape[2:] == grid_labels.shape[1:], name


def test_the_merged_map_meets_labels_of_its_own_stride():
    """With the head of Attention to Refine the merged map has stride 4; each scale's map keeps stride 8."""
    labels = torch.arange(65 * 65).view(1, 65, 65)
    refined = prediction(1, 0.75, 0.5)._replace(scores=torch.zeros(1, 4, 17, 17), stride=4)
    inputs = loss_inputs(refined, labels, extra_supervision=True)
    for name, factor in {"loss": 4, "loss_res1": 8, "loss_res075": 8, "loss_res05": 16}.items():
        scores, grid_labels = inputs[name]
        assert torch.equal(grid_labels, labels[:, ::factor, ::factor]), name
        assert scores.shape[2:] == grid_labels.shape[1:], name


@pytest.mark.parametrize("stride", [1, 4, 8])
def test_all_losses_meet_labels_of_one_density(stride):
    """`label_stride`: scores are interpolated to the grid of every `stride`-th pixel."""
    labels = torch.arange(65 * 65).view(1, 65, 65)
    corners = torch.zeros(1, 4, 9, 9)
    corners[..., -1, -1] = 1
    inputs = loss_inputs(prediction(1, 0.75, 0.5)._replace(scores=corners), labels, True, label_stride=stride)
    for name, (scores, grid_labels) in inputs.items():
        assert torch.equal(grid_labels, labels[:, ::stride, ::stride]), name
        assert scores.shape[2:] == grid_labels.shape[1:], name
    assert torch.equal(inputs["loss"][0][..., :: 8 // stride, :: 8 // stride], corners)


def test_recalibrated_scores_of_the_scales_meet_labels_of_the_merged_map():
    labels = torch.arange(65 * 65).view(1, 65, 65)
    maps = tuple(torch.full((1, 4, 17, 17), float(scale)) for scale in (1, 0.75, 0.5))
    refined = prediction(1, 0.75, 0.5)._replace(scores=maps[0], stride=4, supervised=maps)
    inputs = loss_inputs(refined, labels, extra_supervision=True)
    for name, supervised in zip(("loss_res1", "loss_res075", "loss_res05"), maps, strict=True):
        assert inputs[name][0] is supervised
    assert all(torch.equal(grid_labels, labels[:, ::4, ::4]) for _, grid_labels in inputs.values())


def test_losses_come_in_the_order_of_the_authors_file():
    """In skip-nets with attention scale 0.5 comes before 0.75."""
    in_order = prediction(1, 0.75, 0.5)._replace(loss_order=(1, 0.5, 0.75))
    inputs = loss_inputs(in_order, torch.zeros(1, 65, 65), extra_supervision=True)
    assert list(inputs) == ["loss", "loss_res1", "loss_res05", "loss_res075"]
    assert inputs["loss_res05"][0] is in_order.scale_scores[2]


def test_without_extra_supervision_only_the_merged_map_is_trained():
    labels = torch.zeros(1, 65, 65, dtype=torch.uint8)
    losses = training_loss(prediction(1, 0.5), labels, extra_supervision=False)
    assert list(losses) == ["loss"]
    assert losses["loss"].item() == pytest.approx(np.log(4))


def test_extra_supervision_of_one_scale_is_refused():
    with pytest.raises(InputError, match="two or more scales"):
        training_loss(prediction(1), torch.zeros(1, 65, 65), extra_supervision=True)


def test_labels_that_interp_would_blend_are_refused():
    with pytest.raises(InputError, match="321x320 pixels cannot be shrunk by 8"):
        shrink_labels(torch.zeros(1, 321, 320), 8)
