"""DeepLab v2 on VGG-16 and ResNet-101: files of its Caffe convert in both directions, and OpenCV gives the same maps.

The tolerances are those of test_deploy.py. Layer names and counts are restated from DeepLab v2's definitions.
"""

import copy
import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from a2s_repro import ops
from a2s_repro.caffe.conversion import from_caffe, random_init, to_caffe
from a2s_repro.caffe.deploy import deploy_prototxt, output_blob
from a2s_repro.caffe.export import snapshot_in_caffe
from a2s_repro.checkpoint.initialisation import load_init
from a2s_repro.checkpoint.weights import Weights, save_weights
from a2s_repro.data.lists import Item
from a2s_repro.errors import InputError
from a2s_repro.models import DeepLabASPP, DeepLabResNet101, Net, Widths
from a2s_repro.models.losses import training_loss
from a2s_repro.models.resnet101 import BatchNorm, block_names
from a2s_repro.recipes import find_recipe
from a2s_repro.reproduction.trial import draw_caffe_resnet101
from a2s_repro.training import Trainer
from caffe_weights import CaffeNet, Layer, read_caffemodel, write_caffemodel, write_solverstate
from tests.caffe.test_deploy import TOLERANCE, image_of, opencv4

cv2 = pytest.importorskip("cv2")
CLASSES = 21
THIN = dataclasses.replace(Widths().scaled(1 / 32), att_conv1=512, ms=128, refine=512)  # widths that no file has
THREE = (1, 0.75, 0.5)
NETS = {
    "resnet101": lambda width: DeepLabResNet101(CLASSES, THREE, "max", width=width),
    "resnet101-attention": lambda width: DeepLabResNet101(CLASSES, (1, 0.5), "attention", width=width),
    "aspp": lambda width: DeepLabASPP(CLASSES, widths=THIN if width < 1 else Widths()),
}
SIDES = {"resnet101": (33, 65, 97), "resnet101-attention": (33,), "aspp": (33, 65, 97)}


@cache
def net_of(name: str, width: float = 1 / 32) -> Net:
    return filled(NETS[name](width), width)


def filled(net: Net, width: float) -> Net:
    """The net with random weights and statistics in Caffe's format, and features of order 1."""
    resnet = isinstance(net, DeepLabResNet101)
    generator = torch.Generator().manual_seed(0)
    start = draw_caffe_resnet101(width, generator) if resnet else random_init(net.widths, seed=0)
    trunk = from_caffe(start, "init").weights.state_dict
    if not resnet:
        trunk |= {f"fc{n}_{i}{kind}": trunk[f"fc{n}{kind}"] for n in (6, 7) for i in range(1, 5) for kind in KINDS}
    net.load_state_dict({key: trunk[key] for key in net.state_dict() if key in trunk}, strict=False)
    for key, tensor in net.state_dict().items():
        if key.partition(".")[0] in net.new_layers and tensor.dim() == 4:
            tensor.normal_(std=2 * tensor[0].numel() ** -0.5, generator=generator)
        elif key.startswith(("bn", "scale")) and not key.endswith("factor"):
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator) * tensor.abs().max().clamp(min=0.1))
    return net.eval()


KINDS = (".weight", ".bias")


@cache
def weights_of(net: Net) -> Weights:
    return Weights(net.state_dict(), {"model": net.config(), "classifier": f"{net.classifier_layer}_voc12"})


@cache
def file_of(net: Net) -> CaffeNet:
    return to_caffe(weights_of(net))


def opencv(net: Net, folder: Path, size: tuple[int, int]):
    """The exported net in OpenCV, without its fused layers, so that every blob can be read."""
    prototxt, caffemodel = folder / "net.prototxt", folder / "net.caffemodel"
    prototxt.write_text(deploy_prototxt(net, weights_of(net).meta["classifier"], size))
    if not caffemodel.exists():
        write_caffemodel(caffemodel, file_of(net))
    peer = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    peer.enableWinograd(False)
    peer.enableFusion(False)
    return peer


def compare_scores(net: Net, folder: Path, side: int) -> None:
    peer, image = opencv(net, folder, (side, side)), image_of((side, side))
    peer.setInput(image.numpy())
    with torch.inference_mode():
        ours = ops.interp(net(image).scores, (side, side))
    assert ours.std() > 0.01
    assert np.abs(peer.forward(output_blob(net)) - ours.numpy()).max() < TOLERANCE * ours.abs().max()


def test_parameter_counts_are_those_of_the_published_definitions():
    """ResNet-101 has 104 convolutions without bias, each with a BatchNorm of C + C + 1 values and a Scale of 2 C."""
    with torch.device("meta"):
        resnet, aspp = DeepLabResNet101(CLASSES), DeepLabASPP(CLASSES)
    weights, channels, inputs = 7 * 7 * 3 * 64, 64, 64
    for blocks, inner in ((3, 64), (4, 128), (23, 256), (3, 512)):
        for block in range(blocks):
            weights += inputs * inner + 9 * inner**2 + inner * 4 * inner + (0 if block else inputs * 4 * inner)
            channels += 2 * inner + 4 * inner + (0 if block else 4 * inner)
            inputs = 4 * inner
    classifier = 4 * (9 * 2048 * CLASSES + CLASSES)
    parameters = {net: sum(parameter.numel() for parameter in net.parameters()) for net in (resnet, aspp)}
    assert parameters[resnet] == weights + 2 * channels + classifier == 44_048_532
    assert sum(buffer.numel() for buffer in resnet.buffers()) == 2 * channels + 104 == 105_448
    assert parameters[aspp] == 14_714_688 + 4 * (4_719_616 + 1_049_600 + 21_525)


@opencv4
@pytest.mark.parametrize("name", NETS)
def test_opencv_gives_the_same_score_maps(tmp_path, name):
    net = net_of(name)
    for side in SIDES[name]:
        compare_scores(net, tmp_path, side)


@opencv4
@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_full_net(tmp_path, name):
    net = net_of(name, 1)
    for side in SIDES[name]:
        compare_scores(net, tmp_path, side)


@opencv4
def test_every_block_of_resnet101_is_opencvs(tmp_path):
    net, image = filled(DeepLabResNet101(CLASSES, width=1 / 32), 1 / 32), image_of((65, 65))
    net.head_maps = ("conv1", *block_names())
    with torch.inference_mode():
        maps = net.stream(image).features
    peer = opencv(net, tmp_path, (65, 65))
    peer.setInput(image.numpy())
    names = {name: f"{name}_relu" for name in net.head_maps} | {"fc1": "fc1_voc12"}
    for name, blob in zip(names, peer.forward(list(names.values())), strict=True):
        assert np.abs(blob - maps[name].numpy()).max() < TOLERANCE * maps[name].abs().max(), name


@pytest.mark.parametrize("name", NETS)
def test_weights_round_trip_bit_for_bit(tmp_path, name):
    net = net_of(name)
    write_caffemodel(tmp_path / "net.caffemodel", file_of(net))
    conversion = from_caffe(read_caffemodel(tmp_path / "net.caffemodel"), "net.caffemodel")
    back = conversion.weights
    assert back.meta["model"] == net.config() and back.meta["classifier"] == weights_of(net).meta["classifier"]
    assert back.state_dict.keys() == net.state_dict().keys()
    assert all(torch.equal(back.state_dict[key], tensor) for key, tensor in net.state_dict().items())


def test_layers_have_the_names_and_the_order_of_the_published_definitions():
    """The trunk of scale 1, of 0.5, of 0.75; then the classifiers, whose stream is named before the branch."""
    names = [layer.name for layer in file_of(net_of("resnet101")).layers]
    assert names[:5] == ["conv1", "bn_conv1", "scale_conv1", "res2a_branch1", "bn2a_branch1"]
    assert names.index("res5c_branch2c") < names.index("conv1_res05") < names.index("conv1_res075")
    assert names[-13:] == [
        *(f"fc1_voc12_c{index}" for index in range(4)),
        *(f"fc1_voc12_res05_c{index}" for index in range(4)),
        *(f"fc1_voc12_res075_c{index}" for index in range(4)),
        "fc_fusion",
    ]
    branch = [layer.name for layer in file_of(net_of("aspp")).layers][13:19]
    assert branch == ["fc6_1", "fc7_1", "fc8_voc12_1", "fc6_2", "fc7_2", "fc8_voc12_2"]


def test_a_classifier_of_imagenet_gives_initial_weights(tmp_path):
    conversion = from_caffe(draw_caffe_resnet101(1 / 32, torch.Generator().manual_seed(0)), "init.caffemodel")
    assert conversion.skipped == ["fc1000"] and conversion.weights.meta["source"]["kind"] == "init"
    save_weights(tmp_path / "init.pth", conversion.weights.state_dict, conversion.weights.meta)
    loaded = load_init(DeepLabResNet101(3, width=1 / 32), tmp_path / "init.pth", "fc1_mine")
    assert loaded.fresh == [f"fc1_c{index}" for index in range(4)] and not loaded.ignored


def test_all_branches_start_from_fc6_and_fc7_of_one_net(tmp_path):
    weights = from_caffe(random_init(THIN, seed=0), "init.caffemodel").weights
    save_weights(tmp_path / "init.pth", weights.state_dict, weights.meta)
    net = DeepLabASPP(3, widths=THIN)
    loaded = load_init(net, tmp_path / "init.pth", "fc8_mine")
    assert loaded.fresh == [f"fc8_{index}" for index in range(1, 5)] and not loaded.ignored
    assert all(torch.equal(net.fc6_1.weight, net.layer(f"fc6_{index}").weight) for index in (2, 3, 4))


def test_a_scale_factor_of_zero_stands_for_no_statistics():
    """As in Caffe, where a net that was never trained has stored nothing yet."""
    norm = BatchNorm(3)
    norm.mean.fill_(5)
    norm.scale_factor.zero_()
    assert [statistic.tolist() for statistic in norm.statistics()] == [[0, 0, 0], [0, 0, 0]]


def test_a_training_step_follows_the_published_multipliers():
    """lr_mult 1 and 10 of weights, 20 of the classifier's biases; decay once; BatchNorm and Scale stay as they are."""
    recipe = find_recipe("deeplab2_voc12/resnet101").changed(width=1 / 32)
    net = copy.deepcopy(net_of("resnet101")).train()
    solver = recipe.optimizer(net)
    solver.set_lr(recipe.learning_rate()(0))
    labels = torch.randint(CLASSES, (1, 33, 33), generator=torch.Generator().manual_seed(1)).float()
    sum(training_loss(net(image_of((33, 33))), labels, extra_supervision=True).values()).backward()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    gradients = {key: parameter.grad for key, parameter in net.keyed_parameters().items()}
    solver.step()
    multipliers = {"conv1.weight": (1, 1), "res4b22_branch2b.weight": (1, 1), "fc1_c3.weight": (10, 1)}
    for key, (lr_mult, decay_mult) in (multipliers | {"fc1_c3.bias": (20, 0)}).items():
        gradient = gradients[key] / recipe.iter_size + decay_mult * 5e-4 * before[key]
        torch.testing.assert_close(net.state_dict()[key], before[key] - 2.5e-4 * lr_mult * gradient)
        assert gradient.abs().max() > 0
    for key, tensor in net.state_dict().items():
        if key.startswith(("bn", "scale")):
            assert torch.equal(tensor, before[key]) and gradients.get(key) is None


def test_a_solverstate_of_resnet101_is_written_for_caffe_and_refused_here(tmp_path):
    """Its histories are in the order of the blobs of one stream, zeros for BatchNorm and Scale."""
    recipe = find_recipe("deeplab2_voc12/resnet101").changed(width=1 / 32, crop=33)
    item = Item("a", tmp_path / "a.jpg", tmp_path / "a.png")
    trainer = Trainer(recipe, [item], torch.device("cpu"), "fp32", seed=0)
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.solver.step()
    net, _, state = snapshot_in_caffe(trainer.snapshot(), "snapshot", str(tmp_path / "net.caffemodel"))
    of_one_stream = [layer for layer in net.layers if "_res0" not in layer.name for _ in layer.blobs]
    assert [history.any() for history in state.history] == [layer.type == "Convolution" for layer in of_one_stream]
    write_solverstate(tmp_path / "net.solverstate", state)
    with pytest.raises(InputError, match=r"net\.solverstate is of a run of Caffe's, but .* start from that by --init"):
        trainer.take_over(tmp_path / "net.solverstate")


def test_vgg16s_multipliers_are_the_published_ones():
    with torch.device("meta"):
        rules = DeepLabASPP(CLASSES).parameter_rules()
    for layer in ("conv1_1", "conv5_3", "fc6_4", "fc7_1"):
        assert (rules[f"{layer}.weight"][:2], rules[f"{layer}.bias"][:2]) == ((1, 1), (2, 0))
    assert (rules["fc8_3.weight"][:2], rules["fc8_3.bias"][:2]) == ((10, 1), (20, 0))


def foreign(*layers: tuple[str, str, tuple[int, ...]]) -> CaffeNet:
    """A net of layers given by name, type and the weight's shape."""
    return CaffeNet("", [Layer(name, kind, [np.ones(shape, np.float32)]) for name, kind, shape in layers])


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (
            foreign(("conv1", "Convolution", (20, 1, 5, 5)), ("ip1", "InnerProduct", (500, 800))),
            r"is of another net: its layers \(conv1, ip1\) are not those of DeepLab on VGG-16 .* or on ResNet-101",
        ),
        (
            foreign(
                ("data_bn", "BatchNorm", (3,)),
                ("conv1_h", "Convolution", (32, 3, 7, 7)),
                ("layer_64_1_conv1_h", "Convolution", (32, 32, 3, 3)),
            ),
            r"is of another net: its layers \(data_bn, conv1_h, layer_64_1_conv1_h\) are not",
        ),
        (
            foreign(
                ("conv_1", "Convolution", (64, 3, 7, 7)),
                ("bn_1", "BatchNorm", (64,)),
                *((f"conv_stage0_block{i}_branch2a", "Convolution", (32, 64, 1, 1)) for i in range(7)),
                ("fc_nsfw", "InnerProduct", (2, 1024)),
            ),
            r"is of another net: its layers \(conv_1, bn_1, conv_stage0_block0_branch2a and 7 more\) are not",
        ),
        (
            foreign(
                ("conv1", "Convolution", (64, 3, 7, 7)),
                *((f"res{block}_branch2a", "Convolution", (64, 64, 1, 1)) for block in ("2a", "3b", "4f")),
            ),
            r"is a ResNet of another depth, which has res3b_branch2a, res4f_branch2a: .* ResNet-101 converts",
        ),
    ],
    ids=["lenet", "face-detector", "open-nsfw", "resnet-50"],
)
def test_files_of_other_nets_are_refused_in_one_sentence(net, words):
    with pytest.raises(InputError, match=words) as error:
        from_caffe(net, "model.caffemodel", allow_missing=True, allow_unmatched=True)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
