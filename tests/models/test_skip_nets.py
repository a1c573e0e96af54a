"""Skip-nets: what learns and what is frozen, the grids of both phases, and the sums and merges at full resolution."""

import pytest
import torch
import torch.nn.functional as F

from a2s_repro import ops
from a2s_repro.models import DeepLabLargeFOV, DeepLabMSc, ShareNet, Widths, build_model
from a2s_repro.models.losses import training_loss
from a2s_repro.models.skip_branches import SKIP_LAYERS
from a2s_repro.solver import CaffeSGD, parameter_groups

THIN = Widths().scaled(1 / 32)
SOURCES = ("data", "pool1", "pool2", "pool3", "pool4")


def filled(net, seed: int = 0):
    """A net with random weights everywhere: ReLUs let about half through, and score maps are of order 1."""
    torch.manual_seed(seed)
    for name, parameter in net.named_parameters():
        deviation = (2 / parameter[0].numel()) ** 0.5 if name.endswith("weight") else 0.1
        torch.nn.init.normal_(parameter, std=deviation)
    return net


def test_the_authors_layers_and_parameter_counts():
    net = DeepLabMSc(21)
    counts = {name: sum(p.numel() for p in net.get_submodule(name).parameters()) for name in SKIP_LAYERS}
    for source, channels in zip(SOURCES, (3, 64, 128, 256, 512), strict=True):
        assert counts[f"{source}_conv"] == 128 * channels * 9 + 128
        assert counts[f"{source}_fc"] == 128 * 128 + 128
        assert counts[f"{source}_ms"] == 21 * 128 + 21
    total = sum(p.numel() for p in net.parameters())
    assert total == sum(counts.values()) + sum(p.numel() for p in DeepLabLargeFOV(21).parameters())


def test_fillers():
    torch.manual_seed(0)
    net = DeepLabMSc(21)
    for layer in SKIP_LAYERS:
        expected = 0.005 if layer == "pool4_fc" else 0.01 if layer.endswith("_ms") else 0.001
        assert net.get_submodule(layer).weight.std().item() == pytest.approx(expected, rel=0.05), layer
        assert not net.get_submodule(layer).bias.any()


def test_skip_branches_learn_at_the_rate_and_all_else_is_frozen():
    rules = ShareNet(5, skip_net=True, widths=THIN).parameter_rules()
    for name, rule in rules.items():
        layer, kind = name.split(".")
        if layer.startswith("att_"):
            assert rule == ((10, 1, 1) if kind == "weight" else (20, 0, 1)), name
        elif layer in SKIP_LAYERS:
            assert rule == ((1, 1, 3) if kind == "weight" else (2, 0, 3)), name
        else:
            assert rule == (0, 0, 3), name
    assert sum(rule.lr_mult > 0 for rule in rules.values()) == 2 * (15 + 2)


def test_layers_can_be_given_a_rate():
    """The authors' Person-Part net vgg128_ms_pool3_20M_largewin5 does so for fc7 and fc8."""
    rules = DeepLabMSc(5, widths=THIN).parameter_rules({"fc7": 1, "fc8": 1, "data_ms": 10})
    assert rules["fc6.weight"] == (0, 0, 1)
    assert rules["fc7.weight"] == rules["fc8.weight"] == (1, 1, 1)
    assert rules["fc7.bias"] == (2, 0, 1)
    assert rules["data_ms.weight"] == (10, 1, 1)


def test_an_update_leaves_the_trunk_as_it_is():
    """No gradient is computed in it, though its dropout stays active."""
    net = filled(ShareNet(5, (1, 0.5), skip_net=True, widths=THIN)).train()
    solver = CaffeSGD(parameter_groups(net), momentum=0.9, weight_decay=5e-3, iter_size=1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    image, labels = torch.randn(2, 3, 65, 65), torch.randint(0, 5, (2, 65, 65))
    stream = net.stream(image)
    assert not stream.features["fc8"].requires_grad and stream.scores.requires_grad
    assert (stream.features["fc7"] == 0).float().mean() > 0.6
    sum(training_loss(net(image), labels, extra_supervision=True).values()).backward()
    solver.set_lr(0.01)
    solver.step()
    for name, rule in net.parameter_rules().items():
        assert (net.keyed_parameters()[name].grad is not None) == (rule.lr_mult > 0), name
        assert torch.equal(net.state_dict()[name], before[name]) == (rule.lr_mult == 0), name


def test_the_frozen_trunk_is_largefov():
    net = filled(DeepLabMSc(5, widths=THIN)).eval()
    plain = DeepLabLargeFOV(5, widths=THIN).eval()
    plain.load_state_dict(net.state_dict(), strict=False)
    image = torch.randn(1, 3, 65, 65)
    assert torch.equal(net.stream(image).features["fc8"], plain(image).scores)


def skip_scores(net, source: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    """A skip branch without dropout, layer by layer."""
    conv, fc, ms = (net.get_submodule(f"{source}_{kind}") for kind in ("conv", "fc", "ms"))
    x = F.relu(F.conv2d(x, conv.weight, conv.bias, stride=stride, padding=1))
    return F.conv2d(F.relu(F.conv2d(x, fc.weight, fc.bias)), ms.weight, ms.bias)


@pytest.mark.parametrize("training", [True, False], ids=["train", "test"])
def test_the_sum_of_six_maps(training):
    """On the 1/8 grid in training; in the test phase with stride 1, each enlarged to the image."""
    net = filled(DeepLabMSc(5, pool5a=True, dropout=0, widths=THIN)).train(training)
    image = torch.randn(2, 3, 65, 97)
    pools = net.trunk_maps(image)
    strides = (8, 4, 2, 1, 1) if training else (1,) * 5
    maps = [skip_scores(net, source, pools[source], stride) for source, stride in zip(SOURCES, strides, strict=True)]
    maps.append(net.stream(image).features["fc8"])
    size = (9, 13) if training else (65, 97)
    sides = [tuple(each.shape[2:]) for each in maps]
    assert sides == ([size] * 6 if training else [size, (33, 49), (17, 25), (9, 13), (9, 13), (9, 13)])
    expected = sum(ops.interp(each, size) for each in maps)
    prediction = net(image)
    torch.testing.assert_close(prediction.scores, expected)
    assert prediction.scale_scores[0] is prediction.scores and prediction.weights is None


@pytest.mark.parametrize("merge", ["attention", "average", "max"])
def test_a_share_net_merges_at_full_resolution_in_the_test_phase(merge):
    net = filled(ShareNet(5, merge=merge, skip_net=True, widths=THIN)).eval()
    image = torch.randn(1, 3, 65, 97)
    single = DeepLabMSc(5, widths=THIN).eval()
    single.load_state_dict({name: net.state_dict()[name] for name in single.state_dict()})
    scaled = [image, ops.interp(image, (49, 73)), ops.interp(image, (33, 49))]
    scores = [single(each).scores for each in scaled]
    assert [tuple(each.shape[2:]) for each in scores] == [(65, 97), (49, 73), (33, 49)]
    at_image = torch.stack([ops.interp(each, (65, 97)) for each in scores])

    prediction = net(image)
    if merge == "average":
        expected = at_image.sum(0) * 0.33333
    elif merge == "max":
        expected = at_image.amax(0)
    else:
        features = [single.stream(each).features["fc7"] for each in scaled]
        softmax = net.head(features, (9, 13))[0].softmax(1)
        assert softmax.std(dim=(2, 3)).min() > 0.01
        weights = ops.interp(softmax, (65, 97))
        torch.testing.assert_close(prediction.weights, weights)
        expected = (weights.transpose(0, 1).unsqueeze(2) * at_image).sum(0)
    torch.testing.assert_close(prediction.scores, expected)
    for ours, theirs in zip(prediction.scale_scores, scores, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_skip_net_is_rebuilt_from_its_config():
    for net in (DeepLabMSc(4, pool5a=True, widths=THIN), ShareNet(4, (1, 0.5), "max", skip_net=True, widths=THIN)):
        again = build_model(net.config())
        again.load_state_dict(net.state_dict())
        assert again.config() == net.config()
        image = torch.randn(1, 3, 33, 33)
        assert torch.equal(again.eval()(image).scores, net.eval()(image).scores)
