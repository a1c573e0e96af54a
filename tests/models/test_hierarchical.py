"""Hierarchical attention (Tao et al. 2020): the merge in pairs, and nets that run at more scales than they learned."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import a2s_repro
from a2s_repro.caffe.conversion import to_caffe
from a2s_repro.checkpoint.weights import Weights, save_weights
from a2s_repro.errors import InputError
from a2s_repro.export import export
from a2s_repro.models import RefineHead, ShareNet, Widths, at_scales, build_model
from a2s_repro.models.hierarchical import merge_in_pairs
from a2s_repro.models.losses import training_loss
from a2s_repro.recipes import find_recipe
from a2s_repro.solver import CaffeSGD, parameter_groups

THIN = Widths().scaled(1 / 64)


def share_net(scales=(1, 0.5), **settings) -> ShareNet:
    torch.manual_seed(0)
    net = ShareNet(5, scales, "hierarchical", widths=THIN, **settings)
    for tensor in net.state_dict().values():
        tensor.normal_(std=2 * tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.1)
    return net


def small_backbone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 4, 1), nn.Tanh())


def maps(sides, channels, generator, dtype=torch.float64):
    return [torch.randn(2, channels, side, side, generator=generator, dtype=dtype) for side in sides]


def resized(x: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=True)


def inputs(sides, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    scores = maps(sides, 3, generator, dtype)
    return scores, [logits.sigmoid() for logits in maps(sides[1:], 1, generator, dtype)]


def test_two_scales_merge_by_the_equation_of_the_paper():
    (high, low), (alpha,) = inputs((9, 5))
    merged, weights = merge_in_pairs((high, low), (alpha,), (9, 9))
    torch.testing.assert_close(merged, resized(alpha * low, 9) + (1 - resized(alpha, 9)) * high, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weights[:, 1:], resized(alpha, 9), atol=1e-6, rtol=1e-6)


def test_each_further_scale_is_merged_with_the_merge_of_the_finer_ones():
    (a, b, c), (beta, gamma) = inputs((17, 9, 5))
    merged, weights = merge_in_pairs((a, b, c), (beta, gamma), (17, 17))
    finer = resized(beta * b, 17) + (1 - resized(beta, 17)) * a
    expected = resized(gamma * c, 17) + (1 - resized(gamma, 17)) * finer
    torch.testing.assert_close(merged, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    finest = (1 - resized(beta, 17)) * (1 - resized(gamma, 17))
    torch.testing.assert_close(weights[:, :1], finest, atol=1e-6, rtol=0)


def test_gradients():
    scores, attention = inputs((3, 2, 2))
    leaves = [tensor.detach().requires_grad_() for tensor in (*scores, *attention)]
    assert torch.autograd.gradcheck(lambda *x: merge_in_pairs(x[:3], x[3:], (4, 3)), leaves)


@pytest.mark.parametrize("skip_net", [False, True], ids=["share-net", "skip-net"])
def test_a_net_of_two_scales_runs_at_three(skip_net):
    """At each scale it is the net of two: the same streams and the same head."""
    trained = share_net(skip_net=skip_net).eval()
    net = build_model(at_scales(trained.config(), (1, 0.75, 0.5))).eval()
    net.load_state_dict(trained.state_dict())
    image = torch.randn(2, 3, 65, 65, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        two, three = trained(image), net(image)
    assert three.weights.shape[1] == 3 and torch.equal(three.scale_scores[2], two.scale_scores[1])
    torch.testing.assert_close(three.weights.sum(1), torch.ones_like(three.weights[:, 0]))
    torch.testing.assert_close(three.weights[:, 2], two.weights[:, 1])
    assert (three.scores - two.scores).std() > 0.01


def test_training_changes_every_layer():
    net = share_net().train()
    labels = torch.randint(5, (2, 33, 33), generator=torch.Generator().manual_seed(1))
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    solver = CaffeSGD(parameter_groups(net), lr=1e-2)
    sum(training_loss(net(torch.randn(2, 3, 33, 33)), labels, extra_supervision=True).values()).backward()
    solver.step()
    assert not [key for key, tensor in net.state_dict().items() if torch.equal(tensor, before[key])]


def test_a_file_of_two_scales_is_loaded_with_more(tmp_path):
    backbone, scales, file = small_backbone(), (1.5, 1, 0.5), tmp_path / "net.pth"
    net = a2s_repro.multi_scale(backbone, 5, merge="hierarchical", width=1 / 64)
    save_weights(file, net.state_dict(), {"model": net.config(), "classes": list("abcde")})
    segmenter = a2s_repro.load(file, scales=scales, backbone=backbone)
    photograph = torch.randint(256, (50, 70, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    weights = segmenter(photograph, order="rgb").weights
    assert weights.shape == (3, 50, 70) and abs(weights.sum(0) - 1).max() < 1e-5
    export(file, tmp_path / "net.safetensors", scales=scales, backbone=backbone)
    again = a2s_repro.load(tmp_path / "net.safetensors", backbone=backbone)
    assert again.model.scales == scales
    assert abs(again(photograph, order="rgb").weights - weights).max() < 1e-6


def test_attention_over_all_scales_takes_no_others(tmp_path):
    net = ShareNet(5, (1, 0.5), widths=THIN)
    save_weights(tmp_path / "net.pth", net.state_dict(), {"model": net.config()})
    with pytest.raises(InputError, match="merges by attention over the scales that it was trained on"):
        a2s_repro.load(tmp_path / "net.pth", scales=(1, 0.75, 0.5))
    assert at_scales(net.config() | {"merge": "max"}, (1, 0.75))["scales"] == [1, 0.75]


def test_what_hierarchical_attention_is_not_for():
    with pytest.raises(InputError, match="hierarchical merging takes the head of Attention to Scale"):
        ShareNet(5, (1, 0.5), "hierarchical", head=RefineHead(), widths=THIN)
    net = share_net()
    with pytest.raises(InputError, match="merges its scales hierarchically, which no net of Caffe does"):
        to_caffe(Weights(net.state_dict(), {"model": net.config()}))


def test_the_recipe_differs_from_the_papers_by_its_merge():
    recipe, papers = find_recipe("ours_voc12/hierarchical2_esupv"), find_recipe("voc12/attention2_esupv")
    differing = {name for name, value in recipe.config().items() if value != papers.config()[name]}
    assert differing == {"name", "published", "ours", "merge"} and recipe.published == () and recipe.ours == ("merge",)
    assert not recipe.is_caffes
