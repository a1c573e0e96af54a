"""Conversion between Caffe nets and state dicts: bit for bit, in the authors' layer order; bad files are refused."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from a2s_repro.caffe.conversion import convert_file, from_caffe, random_init, to_caffe
from a2s_repro.caffe.layers import TRUNK
from a2s_repro.caffe.vgg16 import TORCHVISION_LAYERS, subsampled
from a2s_repro.checkpoint.weights import Weights
from a2s_repro.data.normalization import MEAN_BGR, TORCHVISION_MEAN_RGB, TORCHVISION_STD_RGB
from a2s_repro.errors import InputError
from a2s_repro.models import AttentionHead, DeepLabLargeFOV, DeepLabMSc, ShareNet, Widths, build_model
from caffe_weights import CaffeNet, Layer, read_caffemodel, write_caffemodel
from tests.paths import GOLDEN

SINGLE = GOLDEN / "nets/init_single.caffemodel"
V1 = GOLDEN / "caffemodel/legacy_v1.caffemodel"
SHARED = GOLDEN / "nets/iv_att2_esupv_B_iter_20.caffemodel"
THIN = replace(Widths().scaled(1 / 32), refine=512)
"""Thin widths; `refine` keeps its default, because Caffe files do not hold it."""


def blobs(net: CaffeNet) -> dict[str, list[bytes]]:
    return {layer.name: [blob.tobytes() for blob in layer.blobs] for layer in net.layers if layer.blobs}


def changed(net: CaffeNet, name: str, change: Callable[[np.ndarray], np.ndarray], only: int | None = None) -> CaffeNet:
    """The net with `change` applied to the blobs (or blob `only`) of one layer."""
    layers = []
    for layer in net.layers:
        if layer.name == name:
            new = [change(blob) if only in (None, i) else blob for i, blob in enumerate(layer.blobs)]
            layer = replace(layer, blobs=new)
        layers.append(layer)
    return CaffeNet(net.name, layers)


def without(net: CaffeNet, *names: str) -> CaffeNet:
    return CaffeNet(net.name, [layer for layer in net.layers if layer.name not in names])


def trained(model: DeepLabLargeFOV, classifier: str = "fc8_voc12") -> Weights:
    """Weights of a model as after training: no zeros, and the model in the meta."""
    torch.manual_seed(0)
    state_dict = {key: torch.randn_like(tensor) for key, tensor in model.state_dict().items()}
    config = model.config()
    return Weights(state_dict, {"pool5a": config["pool5a"], "classifier": classifier, "model": config})


# From Caffe


@pytest.mark.parametrize("source", [SINGLE, V1])
def test_a_single_scale_net_of_either_container(source):
    conversion = convert_file(source)
    state_dict, meta = conversion.weights.state_dict, conversion.weights.meta
    for layer in read_caffemodel(SINGLE).layers:
        for kind, blob in zip(("weight", "bias"), layer.blobs, strict=False):
            module = "fc8" if layer.name == "fc8_voc12" else layer.name
            assert state_dict[f"{module}.{kind}"].numpy().tobytes() == blob.tobytes()
    assert (meta["classifier"], meta["pool5a"], meta["scales"]) == ("fc8_voc12", False, [1])
    assert meta["source"]["file"] == source.name and meta["source"]["kind"] == "net"
    assert len(meta["source"]["sha256"]) == 64
    build_model(meta["model"]).load_state_dict(state_dict, strict=True)


def test_a_share_net_is_folded_and_rebuilt():
    conversion = convert_file(SHARED)
    weights = conversion.weights
    model = build_model(weights.meta["model"])
    model.load_state_dict(weights.state_dict, strict=True)
    assert (model.scales, model.merge, model.num_classes) == ((1, 0.5), "attention", 5)
    assert conversion.copies == [f"{name}_res05" for name in (*TRUNK, "fc8_voc12")]
    assert weights.meta["widths"] == {"conv1": 4, "conv2": 8, "conv3": 16, "conv4": 32, "conv5": 32} | {
        "fc6": 64,
        "fc7": 64,
        "att_conv1": 32,
    }


def test_an_init_file_has_no_classifier_and_no_model():
    conversion = from_caffe(without(read_caffemodel(SINGLE), "fc8_voc12"), "init.caffemodel")
    meta = conversion.weights.meta
    assert meta["classifier"] is None and meta["source"]["kind"] == "init" and "model" not in meta
    assert {key.split(".")[0] for key in conversion.weights.state_dict} == set(TRUNK)


@pytest.mark.parametrize("v1", [False, True], ids=["new", "v1"])
def test_pool5a_is_a_property_of_the_file(tmp_path, v1):
    write_caffemodel(tmp_path / "net.caffemodel", to_caffe(trained(DeepLabLargeFOV(5, pool5a=True, widths=THIN))), v1)
    meta = convert_file(tmp_path / "net.caffemodel").weights.meta
    assert meta["pool5a"] and meta["model"]["pool5a"]


def test_double_blobs_become_float32():
    net = read_caffemodel(SINGLE)
    doubled = CaffeNet(
        net.name, [replace(layer, blobs=[blob.astype(float) for blob in layer.blobs]) for layer in net.layers]
    )
    single, double = (from_caffe(source, "net").weights.state_dict for source in (net, doubled))
    assert all(double[key].dtype == torch.float32 and torch.equal(double[key], single[key]) for key in single)


def test_state_dicts_do_not_alias_the_file():
    state_dict = convert_file(SINGLE).weights.state_dict
    state_dict["fc8.bias"].add_(1)
    assert not torch.equal(state_dict["fc8.bias"], convert_file(SINGLE).weights.state_dict["fc8.bias"])


# And back


def test_a_snapshot_round_trips_in_order_and_bit_for_bit():
    original = read_caffemodel(SHARED)
    back = to_caffe(convert_file(SHARED).weights)
    assert list(blobs(back).items()) == list(blobs(original).items())


@pytest.mark.parametrize(
    "name, classifier, net",
    [
        ("ii_avg2", "fc8_voc12", ShareNet(5, (1, 0.5), "average", widths=THIN)),
        ("iii_max3_esupv", "fc8_voc12", ShareNet(5, (1, 0.75, 0.5), "max", widths=THIN)),
        ("v_att3_esupv", "fc8_voc12", ShareNet(5, (1, 0.75, 0.5), widths=THIN)),
        ("vii_att4_esupv", "fc8_voc10_part", ShareNet(5, (1, 0.75, 0.5, 0.25), widths=THIN)),
        ("vi_msc", "fc8_voc12", DeepLabMSc(5, pool5a=True, widths=THIN)),
        ("viii_msc_att3_esupv", "fc8_voc12", ShareNet(5, (1, 0.75, 0.5), skip_net=True, widths=THIN)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_order_of_copies_is_the_authors(name, classifier, net):
    """The authors' nets list the parameters of all copies in the order of a snapshot."""
    info = json.loads(str(np.load(GOLDEN / f"nets/net_{name}.npz")["info_json"]))
    written = to_caffe(trained(net, classifier))
    assert [f"{layer.name}/{i}" for layer in written.layers for i in range(len(layer.blobs))] == info["params"]


@pytest.mark.parametrize("pool5a", [False, True])
@pytest.mark.parametrize("merge", ["attention", "average", "max"])
def test_a_trained_net_round_trips_through_caffe(merge, pool5a):
    widths = replace(THIN, att_conv1=512, ms=128)  # the defaults, because files without these layers give no widths
    weights = trained(ShareNet(7, (1, 0.75, 0.25), merge, pool5a=pool5a, widths=widths), "fc8_voc10_part")
    back = from_caffe(to_caffe(weights), "net.caffemodel").weights
    assert back.meta["model"] == weights.meta["model"] and back.meta["classifier"] == "fc8_voc10_part"
    assert all(torch.equal(back.state_dict[key], tensor) for key, tensor in weights.state_dict.items())


@pytest.mark.parametrize(
    "net",
    [
        DeepLabMSc(7, pool5a=True, widths=replace(THIN, att_conv1=512)),
        ShareNet(7, (1, 0.5), "average", skip_net=True, widths=replace(THIN, att_conv1=512)),
        ShareNet(7, skip_net=True, widths=THIN),
        ShareNet(7, head=AttentionHead("fc6", layers=1), widths=replace(THIN, ms=128, att_conv1=512)),
        ShareNet(7, head=AttentionHead("fc8", layers=2, kernel=1), widths=replace(THIN, ms=128)),
        ShareNet(7, head=AttentionHead("fc7", layers=3), widths=replace(THIN, ms=128)),
    ],
    ids=["msc", "msc-average", "msc-attention", "fc6-1-layer", "fc8-1x1", "fc7-3-layers"],
)
def test_skip_nets_and_all_heads_round_trip(net, tmp_path):
    weights = trained(net)
    write_caffemodel(tmp_path / "net.caffemodel", to_caffe(weights))
    back = convert_file(tmp_path / "net.caffemodel").weights
    assert back.meta["model"] == weights.meta["model"]
    assert all(torch.equal(back.state_dict[key], tensor) for key, tensor in weights.state_dict.items())


def test_a_net_without_scale_1_round_trips():
    weights = trained(ShareNet(5, (0.75, 0.5), widths=replace(THIN, ms=128)))
    net = to_caffe(weights)
    assert [layer.name for layer in net.layers][:1] == ["conv1_1_res05"]
    back = from_caffe(net, "net.caffemodel").weights
    assert back.meta["model"] == weights.meta["model"]
    assert all(torch.equal(back.state_dict[key], tensor) for key, tensor in weights.state_dict.items())


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda state, meta: state.pop("fc6.bias"), "fc6.bias differs"),
        (lambda state, meta: state.update({"fc6.bias": torch.ones(2)}), "fc6.bias differs"),
        (lambda state, meta: state["conv1_1.weight"].fill_(torch.nan), "layer conv1_1 of the weights holds NaN"),
        (lambda state, meta: meta["model"].update(scales=[1, 0.5]), "att_conv1.weight differs"),
        (lambda state, meta: meta["model"].update(scales=["1"]), "does not fit ShareNet"),
        (lambda state, meta: meta["model"].update(num_classes=2**62), "does not fit ShareNet"),
        (lambda state, meta: meta.update(model=3), "names the net None"),
        (lambda state, meta: meta.pop("model"), "only one scale"),
        (lambda state, meta: meta.update(classifier="fc7"), "two layers of the name fc7"),
        (lambda state, meta: meta.update(classifier=3), "layers that the net lacks: 3"),
    ],
)
def test_damaged_weights_are_not_exported(damage, words):
    weights = trained(ShareNet(5, widths=THIN))
    damage(weights.state_dict, weights.meta)
    with pytest.raises(InputError) as error:
        to_caffe(weights)
    assert words in str(error.value)


def test_foreign_weights_are_not_exported():
    with pytest.raises(InputError, match="do not have: layer4\\.weight"):
        to_caffe(Weights({"layer4.weight": torch.zeros(1)}, {"pool5a": False}))


# What is refused


def refused(net: CaffeNet, words: str, **options) -> None:
    with pytest.raises(InputError) as error:
        from_caffe(net, "net.caffemodel", **options)
    assert words in str(error.value) and "net.caffemodel" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_layer_is_named_unless_allowed():
    net = without(read_caffemodel(SINGLE), "conv3_2", "fc7")
    refused(net, "lacks layers of the net: conv3_2, fc7")
    conversion = from_caffe(net, "net.caffemodel", allow_missing=True)
    assert conversion.missing == ["conv3_2", "fc7"]
    assert "fc7.weight" not in conversion.weights.state_dict and "model" not in conversion.weights.meta


def test_an_unmatched_layer_is_named_unless_allowed_or_skipped():
    net = read_caffemodel(SINGLE)
    net = CaffeNet(net.name, [*net.layers, Layer("norm1", "LRN", [np.ones(3, np.float32)])])
    refused(net, "norm1")
    assert from_caffe(net, "net", allow_unmatched=True).unmatched == ["norm1"]
    assert from_caffe(net, "net", skip=["norm1"]).skipped == ["norm1"]


def test_half_an_attention_head_is_refused_unless_allowed():
    net = without(read_caffemodel(SHARED), "att_fc")
    refused(net, "lacks layers of the net: att_fc")
    refused(without(read_caffemodel(SHARED), "att_conv1"), "the weight of layer att_fc of net.caffemodel is 2x32x1x1")
    weights = from_caffe(net, "net.caffemodel", allow_missing=True).weights
    assert "att_conv1.weight" in weights.state_dict and "model" not in weights.meta


def test_incomplete_skip_branches_are_refused():
    net = to_caffe(trained(DeepLabMSc(5, widths=THIN)), "net")
    refused(without(net, "pool1_conv", "data_ms"), "lacks layers of the net: data_ms, pool1_conv")


def test_an_attention_head_of_another_kernel_is_refused():
    def wider(blob: np.ndarray) -> np.ndarray:
        return np.pad(blob, ((0, 0), (0, 0), (1, 1), (1, 1)))

    net = changed(read_caffemodel(SHARED), "att_conv1", wider, only=0)
    refused(net, "head's kernel '5' is not known; it is one of 1, 3")


def test_an_attention_head_on_one_scale_is_refused():
    net = read_caffemodel(SHARED)
    refused(
        without(net, *(layer.name for layer in net.layers if layer.name.endswith("_res05"))),
        "an attention head but only one scale",
    )


def test_copies_that_differ_by_one_bit_are_refused():
    def flip(blob: np.ndarray) -> np.ndarray:
        bits = blob.copy()
        bits.view(np.uint32).ravel()[-1] ^= 1
        return bits

    refused(changed(read_caffemodel(SHARED), "conv4_2_res05", flip), "layer conv4_2_res05")


def test_skipping_fc8_drops_the_classifier_and_its_copies():
    conversion = convert_file(SHARED, skip=["fc8"])
    assert conversion.skipped == ["fc8_voc12", "fc8_voc12_res05"]
    assert conversion.weights.meta["classifier"] is None and "model" not in conversion.weights.meta
    assert "att_fc.weight" in conversion.weights.state_dict


def test_skipping_a_missing_layer_is_refused():
    refused(read_caffemodel(SINGLE), "no layer fc9", skip=["fc9"])


def test_two_classifiers_are_refused_until_one_is_skipped():
    net = read_caffemodel(SINGLE)
    fc8 = next(layer for layer in net.layers if layer.name == "fc8_voc12")
    net = CaffeNet(net.name, [*net.layers, replace(fc8, name="fc8_coco")])
    refused(net, "fc8_voc12 and fc8_coco")
    assert from_caffe(net, "net", skip=["fc8_voc12"]).weights.meta["classifier"] == "fc8_coco"


def test_the_number_of_classes_is_checked_when_given():
    assert from_caffe(read_caffemodel(SINGLE), "net", num_classes=5)
    refused(read_caffemodel(SINGLE), "5 outputs, but the classifier must have 21 outputs", num_classes=21)
    refused(without(read_caffemodel(SINGLE), "fc8_voc12"), "no classifier", num_classes=21)


def test_weights_beyond_float32_are_refused():
    refused(changed(read_caffemodel(SINGLE), "fc7", lambda blob: blob.astype(float) * 1e300), "layer fc7")


@pytest.mark.parametrize(
    "layer, index, change, words",
    [
        ("conv3_1", 0, lambda w: w[:, :4], "weight of layer conv3_1 of net.caffemodel is 16x4x3x3, but 16x8x3x3"),
        ("conv3_1", 0, lambda w: w[..., :1], "16x8x3x1, but 16x8x3x3"),
        ("conv3_1", 1, lambda b: b[:3], "bias of layer conv3_1 of net.caffemodel is 3, but 16"),
        ("conv1_1", 0, lambda w: w[0], "no convolution"),
        (
            "fc6",
            0,
            lambda w: np.zeros((64, 32, 4, 4), np.float32),
            "weight of layer fc6 of net.caffemodel is 64x32x4x4",
        ),
        ("fc6", 0, lambda w: np.zeros((64, 32, 7, 7), np.float32), "plain VGG-16's (64x32x7x7)"),
        ("fc6", 0, lambda w: np.zeros((1, 1, 64, 32 * 49), np.float32), "convert with --subsample"),
    ],
)
def test_shapes_that_do_not_chain_are_refused_by_name(layer, index, change, words):
    refused(changed(read_caffemodel(SINGLE), layer, change, only=index), words)


def full_net(fc6: tuple[int, ...]) -> CaffeNet:
    """A trunk of full width with the given fc6 and without fc7."""
    shapes = {key: tensor.shape for key, tensor in DeepLabLargeFOV(1).state_dict().items() if key.startswith("conv")}
    shapes |= {"fc6.weight": fc6, "fc6.bias": fc6[:1]}
    layers = [key.removesuffix(".weight") for key in shapes if key.endswith(".weight")]
    return CaffeNet(
        "full",
        [
            Layer(name, "Convolution", [np.zeros(shapes[f"{name}.{kind}"], np.float32) for kind in ("weight", "bias")])
            for name in layers
        ],
    )


def test_on_the_full_trunk_only_largefovs_fc6_is_accepted():
    """Other widths mean a thin net; another fc6 on the full widths means another DeepLab variant."""
    refused(full_net((512, 512, 3, 3)), "layer fc6 of net.caffemodel is 512x512x3x3", allow_missing=True)
    refused(full_net((1024, 512, 4, 4)), "LargeFOV's is 1024x512x3x3", allow_missing=True)
    assert from_caffe(full_net((1024, 512, 3, 3)), "net", allow_missing=True).missing == ["fc7"]


# From the plain VGG-16

C, O6, O7 = 3, 8, 12  # input channels of fc6, outputs of fc6 and of fc7


def plain_vgg16(form: str) -> CaffeNet:
    rng = np.random.default_rng(0)
    weight6, weight7 = rng.standard_normal((O6, C, 7, 7), np.float32), rng.standard_normal((O7, O6), np.float32)
    if form != "convolution":
        weight6 = weight6.reshape(O6, C * 49)
    if form == "v1":
        weight6, weight7 = weight6[None, None], weight7[None, None]
    biases = (rng.standard_normal(n, np.float32) for n in (O6, O7))
    layers = [Layer(name, "", [w, b]) for name, w, b in zip(("fc6", "fc7"), (weight6, weight7), biases, strict=True)]
    return CaffeNet("vgg16", [*layers, Layer("fc8", "", [np.ones((10, O7), np.float32), np.ones(10, np.float32)])])


@pytest.mark.parametrize("form", ["convolution", "inner product", "v1"])
def test_subsampling_keeps_every_fourth_output_and_every_third_tap(form):
    net = plain_vgg16(form)
    (weight6, bias6), (weight7, bias7) = (layer.blobs for layer in net.layers[:2])
    fc6, fc7 = subsampled(net, "vgg16").layers
    for o, c, y, x in np.ndindex(2, C, 3, 3):
        assert fc6.blobs[0][o, c, y, x] == weight6.reshape(O6, C, 7, 7)[4 * o, c, 3 * y, 3 * x]
    for o, i in np.ndindex(3, 2):
        assert fc7.blobs[0][o, i, 0, 0] == weight7.reshape(O7, O6)[4 * o, 4 * i]
    assert fc6.blobs[1].tolist() == [bias6[0], bias6[4]] and fc7.blobs[1].tolist() == [bias7[0], bias7[4], bias7[8]]
    assert fc6.blobs[0].shape == (2, C, 3, 3) and fc7.blobs[0].shape == (3, 2, 1, 1)


def test_subsampling_of_a_reduced_net_is_refused():
    with pytest.raises(InputError, match="leave out --subsample"):
        subsampled(read_caffemodel(SINGLE), "init.caffemodel")


def torchvision_state_dict(width: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state_dict, channels = {}, 3
    for module in TORCHVISION_LAYERS:
        if module.startswith("features"):
            shape = (width, channels, 3, 3)
            channels = width
        else:
            shape = {"classifier.0": (16, 49 * width), "classifier.3": (16, 16), "classifier.6": (10, 16)}[module]
        state_dict[f"{module}.weight"], state_dict[f"{module}.bias"] = torch.randn(shape), torch.randn(shape[0])
    return state_dict


def test_torchvisions_vgg16_gives_the_same_responses(tmp_path):
    """conv1_1 on BGR minus Caffe's mean equals torchvision's conv1_1 on its own normalisation, without padding, up to
    float32 rounding of the folded weights (1e-6 of the largest response)."""
    state_dict = torchvision_state_dict()
    torch.save(state_dict, tmp_path / "vgg16.pth")
    ours = convert_file(tmp_path / "vgg16.pth", subsample=True).weights.state_dict
    assert torch.equal(ours["conv2_1.weight"], state_dict["features.5.weight"])
    assert ours["fc6.weight"].shape == (4, 4, 3, 3) and ours["fc7.weight"].shape == (4, 4, 1, 1)

    rgb = torch.randint(0, 256, (1, 3, 12, 12)).double()
    mean, std = (torch.tensor(rgb).double().view(1, 3, 1, 1) for rgb in (TORCHVISION_MEAN_RGB, TORCHVISION_STD_RGB))
    theirs = F.conv2d(
        (rgb / 255 - mean) / std, state_dict["features.0.weight"].double(), state_dict["features.0.bias"].double()
    )
    bgr = rgb.flip(1) - torch.from_numpy(MEAN_BGR).double().view(1, 3, 1, 1)
    converted = F.conv2d(bgr, ours["conv1_1.weight"].double(), ours["conv1_1.bias"].double())
    assert (converted - theirs).abs().max() < 1e-6 * theirs.abs().max()


def test_a_torchvision_net_needs_subsampling(tmp_path):
    torch.save(torchvision_state_dict(), tmp_path / "vgg16.pth")
    with pytest.raises(InputError, match=r"fc6 of vgg16\.pth .* --subsample"):
        convert_file(tmp_path / "vgg16.pth")


@pytest.mark.parametrize(
    "content, words",
    [
        (torchvision_state_dict() | {"features.1.running_mean": torch.ones(1)}, r"features\.1\.running_mean"),
        ({"format": "a2s_repro.weights/1"}, "values that are not tensors"),
        (torch.ones(3), "values that are not tensors"),
    ],
)
def test_other_pth_files_are_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(InputError, match=rf"net\.pth is no state dict of torchvision's vgg16.*{words}"):
        convert_file(tmp_path / "net.pth")


# Random weights


def test_random_init_gives_features_of_order_one():
    widths = Widths().scaled(1 / 8)
    weights = from_caffe(random_init(widths, seed=0), "init.caffemodel").weights
    model = DeepLabLargeFOV(5, widths=widths).eval()
    missing, unexpected = model.load_state_dict(weights.state_dict, strict=False)
    assert missing == ["fc8.weight", "fc8.bias"] and unexpected == []
    image = 64 * torch.randn(1, 3, 65, 65, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = model.stream(image).features["fc7"]
    assert 0.1 < features.square().mean().sqrt() < 10


def test_random_init_depends_only_on_the_seed():
    first, again, other = (blobs(random_init(THIN, seed)) for seed in (1, 1, 2))
    assert first == again and first != other


def test_a_net_without_any_layer_of_ours_is_refused_whatever_is_allowed():
    """Version 0.1 wrote a file of no weights."""
    foreign = CaffeNet("lenet", [Layer("ip1", "InnerProduct", [np.ones((4, 3), np.float32), np.ones(4, np.float32)])])
    with pytest.raises(InputError, match=r"lenet.caffemodel is of another net: its layers \(ip1\) are not those of"):
        from_caffe(foreign, "lenet.caffemodel", allow_missing=True, allow_unmatched=True)
