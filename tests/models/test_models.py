"""Shapes, names, parameter counts and refusals of the nets."""

import copy
import dataclasses
import itertools
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from a2s_repro import ops
from a2s_repro.errors import InputError
from a2s_repro.models import AttentionHead, DeepLabLargeFOV, ShareNet, Widths, build_model

THIN = Widths().scaled(1 / 32)


def filled(net, seed: int = 0):
    """A net with random weights everywhere, because the trunk's filler is zero."""
    torch.manual_seed(seed)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def parameters(net, *layers: str) -> int:
    return sum(p.numel() for name, p in net.keyed_parameters().items() if name.split(".")[0].startswith(layers))


def test_the_main_net_has_the_authors_layers_and_parameter_counts():
    net = ShareNet(21)
    assert parameters(net, "conv") == 14_714_688
    assert parameters(net, "fc6") == 4_719_616
    assert parameters(net, "fc7") == 1_049_600
    assert parameters(net, "fc8") == 21_525
    assert parameters(net, "att_conv1") == 14_156_288
    assert parameters(net, "att_fc") == 1_539
    assert parameters(ShareNet(21, (1, 0.5)), "att_") == 9_437_696 + 1_026


def test_state_dict_keys_are_caffe_layer_names():
    convolutions = [f"conv{group}_{i}" for group, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    layers = [*convolutions, "fc6", "fc7", "fc8", "att_conv1", "att_fc"]
    assert list(ShareNet(5, widths=THIN).state_dict()) == [f"{la}.{p}" for la in layers for p in ("weight", "bias")]
    assert not any(key.startswith("att_") for key in ShareNet(5, merge="max", widths=THIN).state_dict())


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda net: pickle.loads(pickle.dumps(net))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_parts_of_other_modules_and_copies_have_the_same_keys(copied):
    """No key contains the head's name, and a part can be loaded without the rest."""
    net = torch.nn.Sequential(filled(ShareNet(5, (1, 0.5), widths=THIN)))
    again = copied(torch.nn.Sequential(ShareNet(5, (1, 0.5), widths=THIN)))
    state = net.state_dict()
    assert "0.att_fc.weight" in state and not any("head" in key for key in state)
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    del state["0.fc8.bias"]
    assert again.load_state_dict(state | {"0.x": torch.ones(1)}, strict=False) == (["0.fc8.bias"], ["0.x"])
    assert "0.att_fc.weight" in state


def test_a_head_works_without_a_net():
    """Features of three scales, each on its own grid, give a logit for every scale."""
    head = AttentionHead(layers=3).build({"fc7": 8}, (1, 0.75, 0.5), 5, THIN, dropout=0.5)
    features = [torch.randn(2, 8, side, side) for side in (9, 7, 5)]
    logits, recalibration = head(features, (9, 9))
    assert logits.shape == (2, 3, 9, 9) and recalibration is None
    assert list(dict(head.named_children())) == ["att_conv1", "drop_att_conv1", "att_conv2", "drop_att_conv2", "att_fc"]


def test_fillers_leave_the_trunk_at_zero_and_draw_the_heads():
    torch.manual_seed(0)
    net = ShareNet(21)
    std = {"fc8.weight": 0.01, "att_conv1.weight": 0.005, "att_fc.weight": 0.01}
    for name, parameter in net.keyed_parameters().items():
        if name in std:
            assert parameter.std().item() == pytest.approx(std[name], rel=0.05)
        else:
            assert not parameter.any(), name


SCALE_SETS = [s for count in (2, 3, 4) for s in itertools.combinations((1, 0.75, 0.5, 0.25), count)]


@pytest.mark.parametrize("scales", SCALE_SETS, ids=str)
@pytest.mark.parametrize("merge", ["attention", "average", "max"])
def test_a_share_net_merges_on_the_grid_of_scale_one(scales, merge):
    prediction = filled(ShareNet(5, scales, merge, widths=THIN))(torch.randn(2, 3, 65, 97))
    sides = {1: (9, 13), 0.75: (7, 10), 0.5: (5, 7), 0.25: (3, 4)}
    assert prediction.scales == scales
    assert prediction.scores.shape == (2, 5, 9, 13)
    assert [score.shape for score in prediction.scale_scores] == [(2, 5, *sides[scale]) for scale in scales]
    if merge == "attention":
        assert prediction.weights.shape == (2, len(scales), 9, 13)
        assert torch.allclose(prediction.weights.sum(1), torch.ones(2, 9, 13))
    else:
        assert prediction.weights is None


def test_the_average_of_three_scales_is_their_sum_times_five_digits_of_a_third():
    prediction = filled(ShareNet(5, merge="average", widths=THIN).eval())(torch.randn(1, 3, 65, 65))
    total = sum(ops.interp(scores, (9, 9)) for scores in prediction.scale_scores)
    assert torch.allclose(prediction.scores, total * 0.33333, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("side", [321, 513, 641])
def test_score_map_sizes_of_the_papers_crops(side):
    net = ShareNet(2, (1, 0.75, 0.5), "max", widths=Widths().scaled(1 / 64))
    cells = [score.shape[-1] for score in net(torch.zeros(1, 3, side, side)).scale_scores]
    assert cells == {321: [41, 31, 21], 513: [65, 49, 33], 641: [81, 61, 41]}[side]


def test_autocast_gives_the_weights_of_all_streams_one_gradient():
    """The gradient is float32, and within bfloat16's rounding of the float32 net's: 2^-8 a layer over 16 layers."""
    net = filled(ShareNet(3, dropout=0, widths=THIN)).to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 33, 33).contiguous(memory_format=torch.channels_last)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            scores = net(image).scores
        gradients.append(torch.autograd.grad(scores.float().sum(), net.fc6.weight)[0])
    exact, rounded = gradients
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.1 * exact.norm()


def test_pool5a_averages_before_fc6():
    plain = filled(DeepLabLargeFOV(3, widths=THIN)).eval()
    pooled = DeepLabLargeFOV(3, pool5a=True, widths=THIN).eval()
    pooled.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 33, 33)
    assert not torch.allclose(plain(image).scores, pooled(image).scores)


def test_streams_draw_their_own_dropout_masks():
    net = ShareNet(3, (1, 0.25), "max", widths=THIN)
    net.fc7.bias.data.fill_(1)  # with the trunk at zero, fc7 is 1 everywhere and its dropout shows the mask
    masks = []
    net.drop7.register_forward_hook(lambda _, __, output: masks.append(output != 0))
    net(torch.zeros(1, 3, 33, 33))
    large, small = masks
    assert 0.3 < large.float().mean() < 0.7
    assert not torch.equal(large[..., 0, 0], small[..., 0, 0])


@pytest.mark.parametrize("layer", ["drop6", "drop7", "drop_att_conv1"])
def test_dropout_drops_single_values_and_no_whole_channels(layer):
    torch.manual_seed(0)
    kept = ShareNet(3, widths=THIN).train().layer(layer)(torch.ones(1, 16, 9, 9)) != 0
    of_channels = kept.flatten(2).float().mean(2)
    assert of_channels.min() > 0.2 and of_channels.max() < 0.8


def test_channels_last_gives_the_same_prediction():
    net = filled(ShareNet(5, widths=THIN)).eval()
    image = torch.randn(2, 3, 65, 65)
    expected = net(image)
    found = net.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.weights, expected.weights)


@pytest.mark.parametrize("net", [DeepLabLargeFOV(4, pool5a=True, widths=THIN), ShareNet(4, (1, 0.5), widths=THIN)])
def test_a_net_is_rebuilt_from_its_config(net):
    again = build_model(net.config())
    again.load_state_dict(net.state_dict())
    assert again.config() == net.config()
    image = torch.randn(1, 3, 33, 33)
    assert torch.equal(again.eval()(image).scores, net.eval()(image).scores)


@pytest.mark.parametrize(
    ("head", "layers"),
    [
        (AttentionHead("fc7", 1), {"att_fc": (3, 3 * 32, 1, 1)}),
        (AttentionHead("fc6", 2, 3), {"att_conv1": (16, 3 * 64, 3, 3), "att_fc": (3, 16, 1, 1)}),
        (AttentionHead("fc8", 2, 1), {"att_conv1": (16, 3 * 5, 1, 1), "att_fc": (3, 16, 1, 1)}),
        (
            AttentionHead("fc7", 3),
            {"att_conv1": (16, 3 * 32, 3, 3), "att_conv2": (16, 16, 1, 1), "att_fc": (3, 16, 1, 1)},
        ),
    ],
    ids=str,
)
def test_attention_heads(head, layers):
    """Heads of one to three layers, on different features. The last gives a logit per scale; no ReLU follows it."""
    net = filled(ShareNet(5, head=head, widths=dataclasses.replace(THIN, fc6=64))).eval()
    found = {name: tuple(p.shape) for name, p in net.head.named_parameters() if p.dim() == 4}
    assert found == {f"{name}.weight": shape for name, shape in layers.items()}
    image = torch.randn(1, 3, 65, 65)
    features = [net.stream(ops.interp(image, (side, side))).features[head.features] for side in (65, 49, 33)]
    x = ops.interp_concat(features, (9, 9))
    for name in layers:
        layer = net.layer(name)
        x = F.conv2d(x, layer.weight, layer.bias, padding=layer.padding)
        x = x if name == "att_fc" else x.clamp(min=0)
    torch.testing.assert_close(net(image).weights, x.softmax(1))


def test_the_deviations_of_a_head_of_three_layers():
    """As in the authors' coco_attention16 to 18. Other heads start as the main net's does."""
    torch.manual_seed(0)
    net = ShareNet(21, head=AttentionHead(layers=3))
    assert net.head.att_conv1.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert net.head.att_conv2.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert net.head.att_fc.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_every_parameter_has_its_rule():
    rules = ShareNet(5, widths=THIN).parameter_rules()
    assert rules["conv1_1.weight"] == (1, 1, 3)
    assert rules["fc7.bias"] == (2, 0, 3)
    assert rules["fc8.weight"] == (10, 1, 3)
    assert rules["fc8.bias"] == (20, 0, 3)
    assert rules["att_conv1.weight"] == rules["att_fc.weight"] == (10, 1, 1)
    assert rules["att_fc.bias"] == (20, 0, 1)
    assert DeepLabLargeFOV(5, widths=THIN).parameter_rules()["fc6.weight"] == (1, 1, 1)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ShareNet(5, (0.5, 1)), "scales 0.5 1: a share-net takes two or more of 1 0.75 0.5 0.25"),
        (lambda: ShareNet(5, (1, 0.6)), "scales 1 0.6"),
        (lambda: ShareNet(5, (1,)), "two or more"),
        (lambda: ShareNet(5, merge="mean"), "merge 'mean' is not known; it is one of attention, hierarchical, aver"),
        (lambda: AttentionHead("pool5"), "attention head's features 'pool5' is not known; it is one of fc6, fc7, fc8"),
        (lambda: AttentionHead(layers=4), "attention head's layers '4' is not known; it is one of 1, 2, 3"),
        (lambda: AttentionHead(kernel=5), "attention head's kernel '5' is not known; it is one of 1, 3"),
        (lambda: DeepLabLargeFOV(0), "num_classes is 0"),
        (lambda: DeepLabLargeFOV(5, dropout=1.0), "dropout is 1.0"),
        (lambda: Widths().scaled(0), "width factor is 0"),
        (lambda: build_model({"net": "UNet"}), "names the net 'UNet'"),
        (lambda: build_model({"net": "ShareNet", "depth": 3}), "does not fit ShareNet"),
    ],
)
def test_impossible_nets_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("scales", "good", "bad", "nearest"),
    [
        ((1, 0.5), 49, 41, "16k . 1, the nearest being 33 and 49"),
        ((1, 0.75), 33, 49, "32k . 1, the nearest being 33 and 65"),
        ((1, 0.25), 65, 320, "the nearest being 289 and 321"),
    ],
)
def test_image_sizes_off_the_grid_are_refused_with_the_nearest_good_ones(scales, good, bad, nearest):
    net = ShareNet(2, scales, "max", widths=Widths().scaled(1 / 64))
    net(torch.zeros(1, 3, good, good))
    with pytest.raises(InputError, match=f"side of {bad} pixels.*{nearest}"):
        net(torch.zeros(1, 3, good, bad))


def test_a_batch_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"shape \(1, 4, 33, 33\); the net takes \(N, 3, H, W\)"):
        DeepLabLargeFOV(2, widths=THIN)(torch.zeros(1, 4, 33, 33))


@pytest.mark.long
def test_nets_on_the_meta_device_do_not_import_torchs_compiler():
    """Commands build nets there to compare shapes; the import takes longer than all others together."""
    program = """if True:
        import sys
        import torch
        import a2s_repro.caffe.conversion
        from a2s_repro.recipes import find_recipe
        with torch.device("meta"):
            nets = [find_recipe(name).net() for name in ("voc12/attention3_esupv", "a2r_ade20k/refine_psp")]
        sys.exit("torch._dynamo" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
