"""ResNet34-dilated8: names and counts of ImageNet's ResNet-34, dilations, decoders, and files of its weights."""

import copy
import math
import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from a2s_repro import ops
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.errors import InputError
from a2s_repro.inference.segmenter import load_model
from a2s_repro.models import AttentionHead, RefineHead, ResNetDilated8, build_model
from a2s_repro.models.resnet import STAGES, load_resnet34
from a2s_repro.reproduction.trial import csailvision_shapes
from tests.models.receptive_field import rows_seen, smooth

WIDTH = 1 / 16
SCALES = (1, 0.5)
REFINE = RefineHead(stages=STAGES)
FIVE_NETS = {
    "baseline": {},
    "attention": {"scales": SCALES, "merge": "attention"},
    "psp": {"decoder": "psp"},
    "refine": {"scales": SCALES, "merge": "attention", "head": REFINE},
    "refine_psp": {"scales": SCALES, "merge": "attention", "head": REFINE, "decoder": "psp"},
}
"""Those of Table 3."""


def thin(classes: int = 5, **fields) -> ResNetDilated8:
    torch.manual_seed(0)
    return ResNetDilated8(classes, width=WIDTH, **fields)


def full_counts(**fields) -> dict[str, int]:
    """Parameters of each layer of a net for ADE20K's 150 classes, at full width."""
    with torch.device("meta"):
        net = ResNetDilated8(150, **fields)
    return {name: sum(p.numel() for p in layer.parameters()) for name, layer in net.named_children()}


def torchvision_names() -> list[str]:
    """The state dict keys of torchvision's ResNet-34 without `fc`."""
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def norm(name: str) -> list[str]:
        return [f"{name}.{kind}" for kind in statistics]

    names = ["conv1.weight", *norm("bn1")]
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            prefix = f"layer{layer}.{block}."
            names += [prefix + "conv1.weight", *norm(prefix + "bn1"), prefix + "conv2.weight", *norm(prefix + "bn2")]
            if block == 0 and layer > 1:
                names += [prefix + "downsample.0.weight", *norm(prefix + "downsample.1")]
    return names


def test_the_encoder_has_torchvisions_names_and_parameters():
    """21,797,672 with a classifier of 1000 classes on 512 channels."""
    counts = full_counts(stem="plain")
    assert sum(counts.values()) - counts["decoder"] + 1000 * 512 + 1000 == 21_797_672
    encoder = [key for key in thin(stem="plain").state_dict() if not key.startswith("decoder")]
    assert encoder == torchvision_names()


def test_the_default_stem_is_that_of_csailvisions_revision_of_2017():
    shapes = csailvision_shapes()
    with torch.device("meta"):
        ours = {key: tuple(tensor.shape) for key, tensor in ResNetDilated8(150).state_dict().items()}
    assert {key for key in ours if "num_batches" not in key and "decoder" not in key} == {
        key for key in shapes if not key.startswith("fc")
    }
    assert all(ours[key] == shape for key, shape in shapes.items() if not key.startswith("fc"))
    counts = full_counts()
    assert sum(counts.values()) - counts["decoder"] == 21_350_976


def test_a_file_of_csailvisions_revision_of_2017_loads(tmp_path):
    torch.manual_seed(0)
    state = {key: torch.rand(shape) for key, shape in csailvision_shapes().items()}
    torch.save(state, tmp_path / "resnet34.pth", _use_new_zipfile_serialization=False)
    net = ResNetDilated8(5)
    sentence = load_resnet34(net, tmp_path / "resnet34.pth")
    assert sentence.startswith("ResNet-34 with stem 'deep64' loaded from") and "fc of the file not used" in sentence
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in state.items() if not key.startswith("fc"))


def test_the_stem_of_2018():
    """Its third convolution has 128 filters, so the first block projects 128 channels to 64."""
    plain, deep = full_counts(stem="plain"), full_counts(stem="deep128")
    stem = sum(deep[name] for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"))
    assert stem == 9 * (3 * 64 + 64 * 64 + 64 * 128) + 2 * (64 + 64 + 128)
    assert deep["layer1"] - plain["layer1"] == 64 * 64 * 9 + 128 * 64 + 2 * 64
    assert sum(deep.values()) - deep["decoder"] == 21_433_152
    added = set(thin(stem="deep128").state_dict()) - set(torchvision_names())
    assert {key.rpartition(".")[0] for key in added} == {
        "conv2", "bn2", "conv3", "bn3", "layer1.0.downsample.0", "layer1.0.downsample.1", "decoder.conv_last"
    }  # fmt: skip
    assert thin(stem="deep").stem == "deep128"  # its name in files of version 0.1


def test_parameter_counts_of_the_five_nets():
    encoder, a2s = 21_350_976, 2 * 512 * 512 * 9 + 512 + 2 * 512 + 2
    hypercolumn = 64 + 64 + 128 + 256 + 512
    conv1 = 2 * 512 * 512 * 9 + 512
    refine = 2 * (hypercolumn * 512 * 9 + 512) + 2 * conv1 + 2 * 512 + 2 + 150 * 512 + 150
    c1, psp = 150 * 512, 12_927_126
    expected = {
        "baseline": encoder + c1,
        "attention": encoder + c1 + a2s,
        "psp": encoder + psp,
        "refine": encoder + c1 + refine,
        "refine_psp": encoder + psp + refine,
    }
    assert {name: sum(full_counts(**fields).values()) for name, fields in FIVE_NETS.items()} == expected
    assert list(expected.values()) == [21_427_776, 26_147_906, 34_278_102, 40_382_168, 53_232_494]


def strided(net: ResNetDilated8) -> ResNetDilated8:
    """The classifier's net: strides in the last two groups of blocks, and no dilation."""
    net = copy.deepcopy(net)
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d) and re.match(r"layer[34]", name):
            if layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (1, 1)
            if re.fullmatch(r"layer[34]\.0\.(conv1|downsample\.0)", name):
                layer.stride = (2, 2)
    return net


def test_dilation_computes_what_the_strided_net_does_and_the_cells_between():
    """Weights from ImageNet keep their meaning: every fourth cell of layer4 and every second of layer3 equals the
    strided net's, borders included."""
    net = thin(scales=SCALES, merge="attention", head=REFINE).double().eval()
    image = torch.randn(1, 3, 129, 161, dtype=torch.float64)
    dilated, original = net.stream(image).features, strided(net).stream(image).features
    assert dilated["layer4"].shape[2:] == (17, 21) and original["layer4"].shape[2:] == (5, 6)
    torch.testing.assert_close(dilated["layer2"], original["layer2"])
    torch.testing.assert_close(dilated["layer3"][..., ::2, ::2], original["layer3"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dilated["layer4"][..., ::4, ::4], original["layer4"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("stem", "stem_field"), [("deep64", 11), ("deep128", 11), ("plain", 7)])
def test_receptive_fields_and_grids_of_the_stages(stem, stem_field):
    """A cell sees 1 + the sum of (window - 1) x dilation x stride so far, centred on its pixel: corners align."""
    net = smooth(thin(scales=SCALES, merge="attention", head=REFINE, stem=stem))
    after_pool = stem_field + 2 * 2
    fields = {"stem": stem_field, "layer1": after_pool + 6 * 2 * 4}
    fields["layer2"] = fields["layer1"] + 2 * 4 + 7 * 2 * 8
    fields["layer3"] = fields["layer2"] + 2 * 8 + 11 * 2 * 2 * 8
    fields["layer4"] = fields["layer3"] + 2 * 2 * 8 + 5 * 2 * 4 * 8
    assert list(fields.values()) == {11: [11, 63, 183, 551, 903], 7: [7, 59, 179, 547, 899]}[stem_field]
    image = torch.rand(1, 3, 1025, 17, dtype=torch.float64, requires_grad=True)
    maps = net.stream(image).features
    assert [tuple(maps[stage].shape[2:]) for stage in STAGES] == [(513, 9), (257, 5), (129, 3), (129, 3), (129, 3)]
    for stage, field in fields.items():
        middle = maps[stage].shape[2] // 2
        cell = maps[stage][0, 0, middle, 1]
        assert rows_seen(cell, image) == field
        (gradient,) = torch.autograd.grad(cell, image, retain_graph=True)
        assert gradient.flip(2).abs().sum((0, 1, 3)).gt(0).equal(gradient.abs().sum((0, 1, 3)).gt(0))


@pytest.mark.parametrize("name", FIVE_NETS)
def test_the_five_nets_predict(name):
    """On the 1/8 grid, or with the attention of Attention to Refine on the 1/4 grid; and again from their config."""
    net = thin(**FIVE_NETS[name]).eval()
    image = torch.randn(2, 3, 65, 97)
    prediction = net(image)
    refine = name.startswith("refine")
    assert prediction.stride == (4 if refine else 8)
    assert prediction.scores.shape == (2, 5, *((17, 25) if refine else (9, 13)))
    assert [tuple(s.shape[2:]) for s in prediction.scale_scores] == [(9, 13), (5, 7)][: len(net.scales)]
    assert (prediction.recalibration is not None) == refine
    assert (prediction.weights is not None) == (len(net.scales) > 1)
    again = build_model(net.config())
    again.load_state_dict(net.state_dict())
    assert again.config() == net.config()
    assert torch.equal(again.eval()(image).scores, prediction.scores)


@pytest.mark.parametrize("merge", ["average", "max"])
def test_scales_can_be_pooled(merge):
    net = thin(scales=SCALES, merge=merge).eval()
    prediction = net(torch.randn(1, 3, 33, 33))
    maps = torch.stack([ops.interp(scores, (5, 5)) for scores in prediction.scale_scores])
    torch.testing.assert_close(prediction.scores, maps.mean(0) if merge == "average" else maps.amax(0))


def test_attention_to_scale_reads_layer4():
    net = thin(scales=SCALES, merge="attention").eval()
    image = torch.randn(1, 3, 33, 33)
    features = [net.stream(ops.interp(image, (side, side))).features["layer4"] for side in (33, 17)]
    conv = net.head.att_conv1
    x = F.conv2d(ops.interp_concat(features, (5, 5)), conv.weight, conv.bias, padding=1).clamp(min=0)
    torch.testing.assert_close(net(image).weights, net.head.att_fc(x).softmax(1))


def test_all_scales_run_the_same_batch_normalisations():
    """Running statistics see each scale in turn, so that a pass counts as two batches."""
    net = thin(scales=SCALES, merge="attention").train()
    net(torch.randn(2, 3, 33, 33))
    counts = {name: count.item() for name, count in net.named_buffers() if name.endswith("num_batches_tracked")}
    assert len(counts) == len([m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]) == 3 + 2 * 16 + 3
    assert set(counts.values()) == {2}


def test_every_parameter_has_its_rule():
    """Decoder and attention learn at ten times the encoder's rate; biases and batch normalisations do not decay."""
    net = thin(**FIVE_NETS["refine_psp"])
    rules = net.parameter_rules()
    assert rules.keys() == net.keyed_parameters().keys()
    assert rules["conv1.weight"] == rules["layer4.0.downsample.0.weight"] == (1, 1, 2)
    assert rules["bn1.weight"] == rules["layer4.0.downsample.1.bias"] == (1, 0, 2)
    assert rules["decoder.ppm.0.1.weight"] == rules["decoder.conv_last.4.weight"] == (10, 1, 2)
    assert rules["decoder.ppm.0.2.weight"] == rules["decoder.conv_last.4.bias"] == (10, 0, 2)
    assert rules["ref_conv2.weight"] == rules["rec_fc.weight"] == (10, 1, 1)
    assert rules["att_fc.bias"] == (10, 0, 1)
    assert net.parameter_rules({"layer1": 0})["layer1.0.conv1.weight"] == (0, 0, 2)


def test_how_layers_start():
    net = ResNetDilated8(5, SCALES, "attention", head=REFINE, decoder="psp", width=1 / 4)
    assert net.layer4[1].conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.05)
    new = {name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    new = {name.removeprefix("head.") for name in new if name.startswith(("decoder", "head"))}
    assert net.new_layers.keys() == new
    for name in ("ref_conv1", "att_conv1"):
        weight = net.layer(name).weight
        assert weight.std().item() == pytest.approx(math.sqrt(2 / weight[0].numel()), rel=0.05), name
    for name, std in (("decoder.conv_last.0", 0.001), ("att_fc", 0.01), ("rec_fc", 0.01)):
        assert net.layer(name).weight.std().item() == pytest.approx(std, rel=0.2), name
    assert not net.head.rec_fc.bias.any()
    scales = torch.cat([layer.weight for layer in net.decoder.modules() if isinstance(layer, nn.BatchNorm2d)])
    assert scales.mean().item() == pytest.approx(1, abs=0.004) and scales.std().item() == pytest.approx(0.02, rel=0.15)
    assert not any(layer.bias.any() for layer in net.decoder.modules() if isinstance(layer, nn.BatchNorm2d))


def classifier(net: ResNetDilated8) -> dict[str, torch.Tensor]:
    """A classifier's state dict with the encoder of `net`."""
    torch.manual_seed(1)
    encoder = {k: v for k, v in net.state_dict().items() if k.partition(".")[0] in net.encoder_layers}
    state = {key: torch.rand_like(tensor) if tensor.is_floating_point() else tensor for key, tensor in encoder.items()}
    return state | {"fc.weight": torch.zeros(10, 32), "fc.bias": torch.zeros(10)}


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("stem", ["plain", "deep64", "deep128"])
def test_weights_of_a_classifier_are_loaded(tmp_path, stem, form):
    """Files as torchvision writes them today, and as CSAILVision wrote them in 2017, without `num_batches_tracked`."""
    net = thin(stem=stem, decoder="psp")
    state, path = classifier(net), tmp_path / ("net.safetensors" if form == "safetensors" else "net.pth")
    if stem != "plain":
        state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    decoder = {key: tensor.clone() for key, tensor in net.decoder.state_dict().items()}
    sentence = load_resnet34(net, path)
    assert sentence == f"ResNet-34 with stem '{stem}' loaded from {path}; fc of the file not used; decoder new"
    for key, tensor in state.items():
        assert key.startswith("fc") or torch.equal(net.state_dict()[key], tensor), key
    assert all(torch.equal(net.decoder.state_dict()[key], tensor) for key, tensor in decoder.items())


def changed(state: dict, **changes: torch.Tensor | None) -> dict:
    """The state dict with entries replaced or, given None, left out; `__` in a name stands for a dot."""
    changes = {key.replace("__", "."): tensor for key, tensor in changes.items()}
    return {key: tensor for key, tensor in (state | changes).items() if tensor is not None}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: changed(s, layer1__2__conv1__weight=None), "lacks layer1.2.conv1.weight.*state dict of a ResNet-34"),
        (lambda s: changed(s, layer3__6__conv1__weight=s["conv1.weight"]), "has layer3.6.conv1.weight besides"),
        (lambda s: changed(s, conv1__weight=torch.zeros(64, 3, 7, 7)), "conv1.weight is 64x3x7x7, but the net's is 4x"),
        (lambda s: changed(s, bn1__weight=s["bn1.weight"] / 0), "bn1.weight has values that are not finite"),
        (
            lambda s: classifier(thin(stem="deep64")),
            "first layers of stem 'deep64', .* those of 'plain': give --stem deep64",
        ),
        (lambda s: classifier(thin(stem="deep128")), "first layers of stem 'deep128', .* give --stem deep128"),
        (lambda s: {"state_dict": s}, "holds other things than named tensors"),
        (lambda s: {}, "holds other things than named tensors"),
        (lambda s: thin(), "cannot be read .*damaged, or no state dict"),
    ],
    ids=["lacks", "besides", "shape", "not-finite", "stem-of-2017", "stem-of-2018", "nested", "empty", "objects"],
)
def test_other_files_are_refused_in_a_sentence(tmp_path, change, sentence):
    net, path = thin(stem="plain"), tmp_path / "net.pth"
    torch.save(change(classifier(net)), path)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(InputError, match=sentence) as refusal:
        load_resnet34(net, path)
    assert str(path) in str(refusal.value)
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, suffix):
    net, path = thin(stem="plain"), tmp_path / f"net.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(classifier(net), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="cannot be read"):
        load_resnet34(net, path)


def test_a_trained_net_goes_through_a_weights_file(tmp_path):
    """Running statistics and the count of batches with it."""
    net = thin(**FIVE_NETS["refine"]).train()
    net(torch.randn(2, 3, 33, 33))
    save_weights(tmp_path / "net.safetensors", net.state_dict(), {"model": net.config()})
    again, _ = load_model(tmp_path / "net.safetensors")
    image = torch.randn(1, 3, 33, 33)
    net = net.eval().to(memory_format=torch.channels_last)  # as nets are loaded: sums depend on the order
    assert torch.equal(again(image).scores, net(image).scores)
    assert again.bn1.num_batches_tracked == 2


def test_statistics_over_processes_need_cuda(tmp_path):
    """With one process, its images are all images."""
    net, image = thin(batch_norm="sync"), torch.randn(2, 3, 33, 33)
    assert isinstance(net.layer1[0].bn1, nn.SyncBatchNorm)
    torch.testing.assert_close(net.train()(image).scores, thin().train()(image).scores)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match=r"batch_norm 'sync' takes its statistics over CUDA devices.*on the cpu"):
            net(image)
        net.eval()(image)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"decoder": "fpn"}, "decoder 'fpn' is not known; it is one of c1, psp"),
        ({"stem": "shallow"}, "stem 'shallow' is not known; it is one of deep64, deep128, plain"),
        ({"batch_norm": "group"}, "batch_norm 'group' is not known; it is one of batch, sync"),
        ({"scales": (0.5,)}, "scales 0.5: a share-net takes two or more"),
        ({"scales": SCALES}, "merge 'None' is not known; it is one of attention, hierarchical, average, max"),
        ({"merge": "max"}, "scales 1: a share-net takes two or more"),
        ({"scales": SCALES, "merge": "attention", "head": AttentionHead()}, "no map 'fc7' .*: it has stem, layer1"),
        ({"scales": SCALES, "merge": "attention", "head": RefineHead()}, "no map 'conv1_2' for attention to read"),
    ],
)
def test_impossible_nets_are_refused_in_a_sentence(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        thin(**fields)
