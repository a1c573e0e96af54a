"""The attention of Attention to Refine on VGG-16: its parts counted, and the net against plain torch."""

import math

import pytest
import torch
import torch.nn.functional as F

from a2s_repro import ops
from a2s_repro.errors import InputError
from a2s_repro.models import AttentionHead, RefineHead, ShareNet, Widths, build_head, build_model
from a2s_repro.models.layers import Dropout
from tests.models.receptive_field import rows_seen, smooth

THIN = Widths().scaled(1 / 32)
SCALES = (1, 0.5)
STAGES = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")


def refine_net(head: RefineHead | None = None, scales: tuple[float, ...] = SCALES) -> ShareNet:
    return ShareNet(5, scales, head=head or RefineHead(), widths=THIN)


def filled(net: ShareNet) -> ShareNet:
    """A net with random weights everywhere, of which all maps have values near 1."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        std = math.sqrt(2 / parameter[0].numel()) if parameter.dim() == 4 else 0.1
        torch.nn.init.normal_(parameter, std=std)
    return net


def test_parameter_counts():
    """The full net on PASCAL VOC 2012 has hypercolumns of 1472 channels and 512 filters everywhere."""
    with torch.device("meta"):
        net = ShareNet(21, SCALES, head=RefineHead())
    layers = dict(net.named_children()) | dict(net.head.named_children())
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in layers.items()}
    hypercolumn = 64 + 128 + 256 + 512 + 512
    assert hypercolumn == 1472
    expected = {
        "ref_conv1": 512 * hypercolumn * 9 + 512,
        "ref_conv2": 512 * hypercolumn * 9 + 512,
        "att_conv1": 512 * 2 * 512 * 9 + 512,
        "att_fc": 2 * 512 + 2,
        "rec_conv1": 512 * 2 * 512 * 9 + 512,
        "rec_fc": 21 * 512 + 21,
    }
    assert {name: counts[name] for name in expected} == expected
    assert sum(expected.values()) == 23_016_983
    trunk = sum(count for name, count in counts.items() if name not in (*expected, "head"))
    assert trunk == 14_714_688 + 4_719_616 + 1_049_600 + 21_525


FIELDS = {"conv1_2": 5, "conv2_2": 15, "conv3_3": 43, "conv4_3": 99, "conv5_3": 211}
"""Pixels that a cell of each stage sees along one side: 1 + the sum of (window - 1) x dilation x stride so far."""
STRIDES = {"conv1_2": 1, "conv2_2": 2, "conv3_3": 4, "conv4_3": 8, "conv5_3": 8}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("scale", [0, 1], ids=["scale1", "scale05"])
def test_receptive_fields_of_the_attention(stage, scale):
    """Through one stage of one scale a logit sees one cell of att_conv1 and `dilation` cells of ref_conv to each side,
    one cell of the stage beyond them where its grid is coarser, and the receptive field of that cell."""
    net = smooth(refine_net(RefineHead(stages=(stage,))))
    other = net.layer(f"ref_conv{2 - scale}")
    torch.nn.init.zeros_(other.weight)
    logits = []
    net.head.att_fc.register_forward_hook(lambda _, __, output: logits.append(output))
    image = torch.rand(1, 3, 641, 17, dtype=torch.float64, requires_grad=True)
    net(image)

    shrink, dilation = 1 / SCALES[scale], RefineHead().dilations[scale]
    pitch = max(STRIDES[stage] * shrink, 4)  # in pixels of the image; finer maps are sampled on the 1/4 grid
    reach = math.ceil(4 * (1 + dilation) / pitch) * pitch + shrink * (FIELDS[stage] - 1) / 2
    assert rows_seen(logits[0][0, 0, 80, 2], image) == 2 * reach + 1
    if stage == "conv5_3":
        assert 2 * reach + 1 == (243, 549)[scale]


def test_receptive_field_of_the_scores():
    net = smooth(refine_net())
    image = torch.rand(1, 3, 1025, 17, dtype=torch.float64, requires_grad=True)
    large, small = net(image).scale_scores
    assert rows_seen(large[0, 0, 64, 1], image) == 211 + 16 + 2 * 12 * 8 == 419
    assert rows_seen(small[0, 0, 32, 1], image) == 2 * 418 + 1


def test_shapes_of_a_prediction():
    """Scores, weights and recalibration on the 1/4 grid of scale 1; score maps of the scales on their own."""
    prediction = filled(refine_net()).eval()(torch.randn(2, 3, 65, 97))
    assert prediction.stride == 4
    assert prediction.scores.shape == prediction.recalibration.shape == (2, 5, 17, 25)
    assert prediction.weights.shape == (2, 2, 17, 25)
    assert [tuple(scores.shape) for scores in prediction.scale_scores] == [(2, 5, 9, 13), (2, 5, 5, 7)]
    assert 0 < prediction.recalibration.min() < 0.4 and 0.6 < prediction.recalibration.max() < 1
    torch.testing.assert_close(prediction.weights.sum(1), torch.ones(2, 17, 25))
    assert 0 < prediction.weights.min() < 0.4
    attention_to_scale = ShareNet(5, SCALES, widths=THIN)(torch.randn(1, 3, 65, 97))
    assert attention_to_scale.stride == 8 and attention_to_scale.recalibration is None


def resized(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def composed(net: ShareNet, image: torch.Tensor) -> torch.Tensor:
    """The merged scores, step by step in plain torch."""
    size = tuple((side - 1) // 4 + 1 for side in image.shape[2:])
    streams, scores = [], []
    for index, scaled in enumerate((image, image[..., ::2, ::2]), 1):
        x, stages = scaled, []
        for group, count in enumerate((2, 2, 3, 3, 3), 1):
            for layer in range(1, count + 1):
                conv = net.get_submodule(f"conv{group}_{layer}")
                x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=conv.padding, dilation=conv.dilation))
            if f"conv{group}_{count}" in net.head_config.stages:
                stages.append(resized(x, size))
            x = F.max_pool2d(x, 3, 2 if group < 4 else 1, 1)
            if f"pool{group}" in net.head_config.stages:
                stages.append(resized(x, size))
        if net.head_config.normalization == "l2":
            stages = [stage / stage.square().sum(1, keepdim=True).clamp_min(1e-24).sqrt() for stage in stages]
            stages = [torch.cat(stages, 1) * net.layer(f"ref_norm{index}").weight.view(1, -1, 1, 1)]
        conv, dilation = net.layer(f"ref_conv{index}"), net.head_config.dilations[index - 1]
        hypercolumn = torch.cat(stages, 1)
        streams.append(F.relu(F.conv2d(hypercolumn, conv.weight, conv.bias, padding=dilation, dilation=dilation)))
        scores.append(net.fc8(F.relu(net.fc7(F.relu(net.fc6(x))))))
    x = torch.cat(streams, 1)
    weights = net.head.att_fc(F.relu(net.head.att_conv1(x))).softmax(1)
    recalibration = net.head.rec_fc(F.relu(net.head.rec_conv1(x))) if net.head_config.recalibration else None
    if recalibration is not None and net.head_config.recalibration == "multiply":
        recalibration = recalibration.sigmoid()
    if net.head_config.merge_stride == 8:
        size = tuple((side - 1) // 8 + 1 for side in image.shape[2:])
        weights = weights[..., ::2, ::2]
        recalibration = None if recalibration is None else recalibration[..., ::2, ::2]
    if net.head_config.recalibration == "multiply":  # Eq. 3: the scores of each scale, before they are weighed
        scores = [resized(each, size) * recalibration for each in scores]
    merged = sum(weights[:, s : s + 1] * resized(each, size) for s, each in enumerate(scores))
    return merged + recalibration if net.head_config.recalibration == "add" else merged


@pytest.mark.parametrize(
    "head",
    [
        RefineHead(),
        RefineHead(recalibration="add"),
        RefineHead(recalibration=None),
        RefineHead((1, 1), recalibration=None),
        RefineHead((12, 2), ("conv2_2", "conv5_3")),
        RefineHead(stages=("pool1", "pool3", "pool5")),
        RefineHead(normalization="l2"),
        RefineHead(merge_stride=8),
        RefineHead(merge_stride=8, recalibration="add"),
    ],
    ids=[
        *("ours", "bias", "no-recalibration", "no-diverse-dilations", "other-reading-and-stages"),
        *("pools", "l2", "merged-at-8", "bias-merged-at-8"),
    ],
)
def test_the_net_is_its_composition(head, backend):
    """Merged scores and all gradients, in float64. Every grid is a power of two of another, so that Interp's float32
    coordinates are exact; the sums are in another order."""
    net = filled(refine_net(head)).to(backend.device, torch.float64).eval()
    image = torch.randn(2, 3, 33, 49, dtype=torch.float64, device=backend.device, requires_grad=True)
    found, expected = net(image).scores, composed(net, image)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    weigh = torch.randn_like(expected)
    parameters = [image, *net.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((found * weigh).sum(), parameters),
        torch.autograd.grad((expected * weigh).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.parametrize("recalibration", ["multiply", "add"])
def test_gradients_are_those_of_the_merged_scores(recalibration):
    head = RefineHead(stages=("conv2_2", "conv4_3"), recalibration=recalibration)
    net = filled(ShareNet(2, SCALES, head=head, widths=Widths().scaled(1 / 256))).double().eval()
    image = torch.randn(1, 3, 17, 17, dtype=torch.float64, requires_grad=True)

    def of_head(image, *parameters):
        named = dict(zip((name for name, _ in net.named_parameters()), parameters, strict=True))
        prediction = torch.func.functional_call(net, named, (image,))
        return prediction.scores, prediction.weights, prediction.recalibration

    assert torch.autograd.gradcheck(of_head, (image, *net.parameters()), fast_mode=True)


def test_any_stage_can_be_read():
    """Layers within a group and fc7, too. The maps are taken after the ReLU."""
    net = filled(refine_net(RefineHead(stages=("conv5_1", "fc7")))).eval()
    image = torch.randn(1, 3, 33, 33)
    stream = net.stream(image)
    assert set(stream.features) == {"conv5_1", "fc6", "fc7", "fc8"}
    assert stream.features["conv5_1"].shape == (1, THIN.conv5, 5, 5) and stream.features["conv5_1"].min() == 0
    hypercolumn = net.head.read(stream.features, (9, 9))
    torch.testing.assert_close(hypercolumn[:, : THIN.conv5], ops.interp(stream.features["conv5_1"], (9, 9)))


@pytest.mark.parametrize("recalibration", ["multiply", "add"])
def test_the_recalibrated_scores_of_the_scales_are_supervised(recalibration):
    """Those whose weighted sum is the merged map. Without training they are not made."""
    net = filled(refine_net(RefineHead(recalibration=recalibration, supervision="recalibrated"))).train()
    for layer in net.modules():
        if isinstance(layer, Dropout):
            layer.p = 0
    prediction = net(torch.randn(1, 3, 33, 33))
    assert [scores.shape for scores in prediction.supervised] == [(1, 5, 9, 9)] * 2
    merged = sum(prediction.weights[:, s : s + 1] * scores for s, scores in enumerate(prediction.supervised))
    torch.testing.assert_close(prediction.scores, merged, rtol=1e-4, atol=1e-4 * float(merged.detach().abs().max()))
    assert net.eval()(torch.randn(1, 3, 33, 33)).supervised is None
    assert filled(refine_net()).train()(torch.randn(1, 3, 33, 33)).supervised is None


def test_batch_normalised_stages_have_mean_0_and_variance_1_for_each_scale():
    net = filled(refine_net(RefineHead(normalization="batch"))).train()
    normalised = []
    for name in ("ref_norm1", "ref_norm2"):
        torch.nn.init.ones_(net.layer(name).weight)
        torch.nn.init.zeros_(net.layer(name).bias)
        net.layer(name).register_forward_hook(lambda _, __, output: normalised.append(output.detach()))
    net(torch.randn(2, 3, 65, 65))
    for hypercolumn in normalised:
        used = hypercolumn.std((0, 2, 3)) > 0
        assert used.float().mean() > 0.5
        assert hypercolumn.mean((0, 2, 3)).abs().max() < 1e-4
        torch.testing.assert_close(hypercolumn.std((0, 2, 3))[used].median(), torch.tensor(1.0), rtol=1e-2, atol=0)


@pytest.mark.parametrize(("normalization", "start"), [("l2", 10), ("batch", 1)])
def test_normalisations_start_at_constants_and_learn_as_new_layers(normalization, start):
    net = refine_net(RefineHead(normalization=normalization))
    rules = net.parameter_rules()
    for name in ("ref_norm1", "ref_norm2"):
        assert (net.layer(name).weight == start).all() and name in net.new_layers
        assert rules[f"{name}.weight"] == (10, 1, 1)


def test_attention_and_recalibration_draw_their_own_dropout_masks():
    net = refine_net()
    torch.nn.init.ones_(net.head.att_conv1.bias)
    torch.nn.init.ones_(net.head.rec_conv1.bias)
    masks = []
    for name in ("drop_att_conv1", "drop_rec_conv1"):
        net.layer(name).register_forward_hook(lambda _, __, output: masks.append(output != 0))
    net.train()(torch.zeros(1, 3, 33, 33))
    location, recalibrating = masks
    assert not torch.equal(location, recalibrating) and 0.3 < location.float().mean() < 0.7


def test_fillers_and_rules():
    """New layers start gaussian and learn at ten times the rate; the attention exists once."""
    torch.manual_seed(0)
    net = ShareNet(21, SCALES, head=RefineHead(), widths=Widths().scaled(1 / 4))
    deviations = {"ref_conv1": 0.001, "ref_conv2": 0.001, "att_conv1": 0.005, "att_fc": 0.01}
    deviations |= {"rec_conv1": 0.005, "rec_fc": 0.01}
    assert net.new_layers == {"fc8": 0.01} | deviations
    rules = net.parameter_rules()
    for name, std in deviations.items():
        assert net.layer(name).weight.std().item() == pytest.approx(std, rel=0.15), name
        assert rules[f"{name}.weight"] == (10, 1, 1) and rules[f"{name}.bias"] == (20, 0, 1)
    assert rules["fc8.weight"] == (10, 1, 2) and rules["conv1_1.weight"] == (1, 1, 2)


@pytest.mark.parametrize(
    "head",
    [
        RefineHead((1, 3), ("conv1_1", "fc6"), "add"),
        RefineHead(recalibration=None),
        RefineHead(normalization="batch", merge_stride=8, supervision="recalibrated"),
    ],
)
def test_the_net_is_rebuilt_from_its_config(head):
    net = refine_net(head)
    again = build_model(net.config())
    again.load_state_dict(net.state_dict())
    assert again.config() == net.config() and again.head_config == head == build_head(head.config())
    image = torch.randn(1, 3, 33, 33)
    assert torch.equal(again.eval()(image).scores, net.eval()(image).scores)
    assert build_head(AttentionHead("fc6").config()) == AttentionHead("fc6")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: refine_net(scales=(1, 0.75, 0.5)), "2 dilations, 2 12, for the scales 1 0.75 0.5: give one for each"),
        (lambda: RefineHead((0, 12)), "dilations 0 12 are not possible: give integers from 1 on"),
        (lambda: RefineHead(stages=()), r"stages \(none\) are not possible: give one or more"),
        (lambda: RefineHead(stages=("conv1_2", "conv1_2")), "each once"),
        (lambda: RefineHead(recalibration="divide"), "recalibration 'divide' is not known; it is multiply, add"),
        (lambda: RefineHead(normalization="layer"), "normalization 'layer' is not known; it is l2, batch"),
        (lambda: RefineHead(merge_stride=2), "merged at every 4 or 8 pixels, not at every 2"),
        (lambda: RefineHead(supervision="both"), "supervision 'both' is not known; it is one of raw, recalibrated"),
        (
            lambda: RefineHead(recalibration=None, supervision="recalibrated"),
            "is not possible without recalibration: give",
        ),
        (lambda: refine_net(RefineHead(stages=("layer1",))), "no map 'layer1' for attention to read: it has conv1_1"),
        (lambda: ShareNet(5, SCALES, head=AttentionHead("layer4"), widths=THIN), "no map 'layer4'"),
        (lambda: ShareNet(5, SCALES, skip_net=True, head=RefineHead(), widths=THIN), "without skip branches"),
    ],
)
def test_impossible_heads_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
