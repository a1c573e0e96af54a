"""Backbones of timm and torchvision by name: built, trained by commands, kept in files, filled from files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import a2s_repro
from a2s_repro import commands
from a2s_repro.checkpoint.initialisation import load_init
from a2s_repro.checkpoint.weights import load_weights
from a2s_repro.errors import InputError
from a2s_repro.export import export
from a2s_repro.models import AttentionHead, BackboneNet, RefineHead, build_model
from a2s_repro.models.backbone import probed
from a2s_repro.models.named_backbone import PRETRAINED, named_backbone
from a2s_repro.recipes import Recipe
from tests.packages import need_timm
from tests.processes import make_files

need_timm()

import timm  # noqa: E402
import torchvision  # noqa: E402

RESNET, CONVNEXT = "timm:test_resnet", "timm:test_convnext"
"""timm's nets for tests, of 20 to 60 channels."""
SCALES = (1.5, 1, 0.5)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", [RESNET, CONVNEXT])
def test_a_net_of_timm_gives_its_maps_at_the_stride(name, stride):
    probe = probed(named_backbone(name, stride))
    assert probe.stride == stride and len(probe.channels) >= 4
    assert any(probe.padding) == (name == CONVNEXT)  # its cells are patches


def test_a_resnet_of_torchvision_is_dilated_and_gives_the_maps_of_its_groups():
    backbone = named_backbone("torchvision:resnet50", 8)
    assert probed(backbone) == ((256, 512, 1024, 2048), 8, (0, 0))
    assert {"conv1.weight", "layer4.2.bn3.running_var"} < backbone.state_dict().keys()


@pytest.mark.parametrize("name", [RESNET, CONVNEXT])
def test_a_net_is_built_again_from_its_description(name):
    net = a2s_repro.multi_scale(name, 5, SCALES, output_stride=16, decoder="psp", width=1 / 32).eval()
    same = build_model(json.loads(json.dumps(net.config()))).eval()
    same.load_state_dict(net.state_dict())
    image = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        assert torch.equal(same(image).scores, net(image).scores)
    assert net.config()["backbone"] == name and same.output_stride == 16


def test_the_head_of_attention_to_refine_reads_maps_of_timm():
    head = RefineHead(stages=("map1", "map4"))
    net = a2s_repro.multi_scale(RESNET, 5, (1, 0.5), head=head, width=1 / 64).eval()
    assert net(torch.randn(1, 3, 65, 65)).scores.shape == (1, 5, 17, 17)


def test_a_recipe_with_another_backbone_reads_its_last_map():
    recipe = Recipe("own", num_classes=3, scales=SCALES, merge="attention").changed(backbone=CONVNEXT)
    assert recipe.head == AttentionHead(features="backbone") and isinstance(recipe.net(), BackboneNet)
    assert Recipe.of_config(json.loads(json.dumps(recipe.config()))) == recipe
    assert recipe.cost().parameters == sum(parameter.numel() for parameter in recipe.net().parameters())
    assert recipe.changed(backbone="resnet34").head == AttentionHead(features="layer4")
    assert recipe.changed(backbone="vgg16").head == AttentionHead()


def run(name: str, *words: object) -> None:
    """A command, in this process."""
    assert not commands.command(name).main(commands.parser_of(name).parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("data"), num_train=2, validated=True)


def training(data: dict, backbone: str, out: object, *words: object) -> tuple:
    """The words of a training of a thin net on crops of 65 pixels."""
    words = ("--data-root", data["data_root"], "--train-list", data["train_list"], "--backbone", backbone, *words)
    words += ("--width", 1 / 64, "--crop", 65, "--test-crop", 65, "--batch-size", 2, "--iter-size", 1)
    return ("train", *words, "--max-iter", 1, "--workers", 0, "--device", "cpu", "--out", out)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of a ResNet over three scales, validated."""
    out = tmp_path_factory.mktemp("runs") / "resnet"
    run(*training(data, RESNET, out, "--scales", *SCALES, "--val-list", data["val_list"]))
    return out


@pytest.mark.long
def test_a_run_goes_through_the_commands(data, trained, tmp_path):
    images = ("--data-root", data["data_root"], "--list", data["val_list"], "--pad-to", 65)
    run("evaluate", "--model", trained, *images, "--json", tmp_path / "val.json")
    attention = json.loads((tmp_path / "val.json").read_text())["attention"]
    assert attention["scales"] == list(SCALES) and sum(attention["mean"]) == pytest.approx(1)
    photograph = next((data["data_root"] / "JPEGImages").glob("val*"))
    run("segment", photograph, "--model", trained, "--out", tmp_path / "segmented", "--pad-to", 65, "--attention")
    assert len(list((tmp_path / "segmented/attention").iterdir())) == 1
    run("report", trained, "--count", 1, "--out", tmp_path / "report.html", "--pad-to", 65)
    assert RESNET in (tmp_path / "report.html").read_text()


def test_a_run_goes_on(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    run("train", "--resume", tmp_path / "run", "--max-iter", 2)
    meta = torch.load(tmp_path / "run/final.pth", weights_only=True)["meta"]
    assert meta["iteration"] == 2 and meta["model"]["backbone"] == meta["recipe"]["backbone"] == RESNET


def test_a_net_starts_from_a_run(trained):
    net = a2s_repro.multi_scale(RESNET, 6, SCALES, width=1 / 64)
    assert load_init(net, trained, "fc8").fresh == []
    theirs = load_weights(trained / "final.pth").state_dict
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in net.state_dict().items())


def test_a_file_is_loaded_into_one_net(trained, monkeypatch):
    made, create_model = [], timm.create_model

    def counted(*words, **settings):
        made.append(words)
        return create_model(*words, **settings)

    monkeypatch.setattr(timm, "create_model", counted)
    net = a2s_repro.load(trained).model
    assert len(made) == 1 and not any(tensor.is_meta for tensor in net.state_dict().values())


def test_a_convnext_trained_on_two_scales_is_evaluated_at_three(data, tmp_path):
    words = ("--output-stride", 16, "--scales", 1, 0.5, "--merge", "hierarchical")
    run(*training(data, CONVNEXT, tmp_path / "run", *words))
    images = ("--data-root", data["data_root"], "--list", data["val_list"], "--pad-to", 97)
    run("evaluate", "--model", tmp_path / "run", *images, "--scales", *SCALES, "--json", tmp_path / "val.json")
    assert json.loads((tmp_path / "val.json").read_text())["attention"]["scales"] == list(SCALES)


def test_caffe_has_no_such_net(trained, tmp_path):
    with pytest.raises(InputError, match="has parameters that the authors' Caffe nets do not have: backbone"):
        export(trained, tmp_path / "net.caffemodel")


def classifier(name: str) -> nn.Module:
    package, _, net = name.partition(":")
    torch.manual_seed(1)
    return timm.create_model(net) if package == "timm" else torchvision.models.get_model(net, weights=None)


@pytest.mark.parametrize("name", [RESNET, CONVNEXT, "torchvision:mobilenet_v3_small"])
def test_the_state_dict_of_a_classifier_fills_the_backbone(tmp_path, name):
    whole = classifier(name)
    file = tmp_path / ("classifier.pth" if name == RESNET else "classifier.safetensors")
    if name == RESNET:
        torch.save(whole.state_dict(), file)
    else:
        save_file(whole.state_dict(), file, metadata={"format": "pt"})  # as the hub has it
    net = a2s_repro.multi_scale(name, 5, output_stride=32, width=1 / 32)
    assert str(load_init(net, file, "fc8")).startswith(f"weights of {name} loaded from {file}; the decoder")
    values = {tensor.sum().item() for tensor in whole.state_dict().values() if tensor.dim() > 1}
    assert {tensor.sum().item() for tensor in net.backbone.state_dict().values() if tensor.dim() > 1} <= values


def test_a_file_of_another_net_is_refused(tmp_path):
    torch.save(classifier(CONVNEXT).state_dict(), tmp_path / "classifier.pth")
    for name in (RESNET, "torchvision:mobilenet_v3_small"):
        net = a2s_repro.multi_scale(name, 5, output_stride=32, width=1 / 32)
        with pytest.raises(InputError, match=rf"classifier.pth is not the state dict of {name} \(.*\): give that"):
            load_init(net, tmp_path / "classifier.pth", "fc8")
    with pytest.raises(FileNotFoundError):
        load_init(net, tmp_path / "missing.pth", "fc8")


def test_a_hub_out_of_reach_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    for name in (RESNET, "torchvision:mobilenet_v3_small"):
        with pytest.raises(InputError, match=f"the pretrained weights of {name} cannot be had from the hub") as error:
            named_backbone(name, 32, PRETRAINED)
        assert "\n" not in str(error.value) and str(error.value).endswith("to start from random weights.")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:resnet5", "timm has no net 'resnet5'; the nearest are resnet50"),
        ("torchvision:resnet5", "torchvision has no net 'resnet5'; the nearest are resnet50"),
        ("timm:test_vit", "timm:test_vit cannot give maps of stride 8 .* give another output stride"),
        ("torchvision:resnet18", r"torchvision:resnet18 cannot give maps of stride 8 \(Dilation > 1 not supported"),
        ("torchvision:mobilenet_v3_small", "mobilenet_v3_small has stride 32, not 8: give that output stride"),
        ("torchvision:shufflenet_v2_x0_5", "shufflenet_v2_x0_5 gives no maps: choose a ResNet, or a net of timm"),
    ],
)
def test_impossible_names(name, words):
    with pytest.raises(InputError, match=words):
        a2s_repro.multi_scale(name, 5)


def test_impossible_strides():
    with pytest.raises(InputError, match="output_stride '4' is not known; it is one of 8, 16, 32"):
        a2s_repro.multi_scale(RESNET, 5, output_stride=4)
    with pytest.raises(InputError, match="it is one of vgg16, resnet34, resnet101, timm:NAME, torchvision:NAME"):
        Recipe("", backbone="resnet50")
    with pytest.raises(InputError, match="output_stride 16 is not for the backbone vgg16"):
        Recipe("", output_stride=16)
