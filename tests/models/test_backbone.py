"""`a2s_repro.multi_scale`: any backbone behind the merges, at scales up to 2, losses that meet the right pixels."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import a2s_repro
from a2s_repro import ops
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.errors import InputError
from a2s_repro.models import BackboneNet, RefineHead, build_model, named_backbone, restored_model
from a2s_repro.models.backbone import probed
from a2s_repro.models.losses import loss_inputs, training_loss
from a2s_repro.models.share_net import grid_step, rescaled
from a2s_repro.solver import CaffeSGD, parameter_groups

SIDE = 65


def convolutional(stride: int = 8) -> nn.Module:
    """3x3 convolutions of stride 2 with padding, as in ResNets: 8k + 1 pixels give k + 1 cells."""
    layers, inputs = [], 3
    while stride > 1:
        layers += [nn.Conv2d(inputs, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
        stride, inputs = stride // 2, 4
    return nn.Sequential(*layers)


class Patches(nn.Module):
    """Patches of 4 pixels, merged in pairs, as in ConvNeXt: 8k pixels give k cells. Returns both maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 6, 2, 2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        stem = self.stem(image)
        return [stem, self.down(F.relu(stem))]


BACKBONES = {"convolutions": convolutional, "patches": Patches}


def image_of(side: int = SIDE) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("backbone", "channels", "stride", "padding"),
    [
        (convolutional(), (4,), 8, (0, 0)),
        (convolutional(16), (4,), 16, (0, 0)),
        (Patches(), (4, 6), 8, (4, 3)),
    ],
)
def test_channels_and_stride_are_found(backbone, channels, stride, padding):
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    assert probed(backbone) == (channels, stride, padding) and backbone.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("scales", [(1, 0.5), (1.5, 1, 0.5), (2, 1.25, 0.75, 0.25)])
@pytest.mark.parametrize("merge", ["attention", "average", "max"])
def test_the_merged_grid_is_that_of_the_finest_scale(name, scales, merge):
    net = a2s_repro.multi_scale(BACKBONES[name](), 5, scales, merge, width=1 / 64).eval()
    with torch.inference_mode():
        prediction = net(image_of())
    sides = [int((SIDE - 1) * scale) // 8 + 1 for scale in scales]
    assert [scores.shape for scores in prediction.scale_scores] == [(2, 5, side, side) for side in sides]
    assert prediction.scores.shape == (2, 5, sides[0], sides[0])
    if merge == "attention":
        assert prediction.weights.shape == (2, len(scales), sides[0], sides[0])


def test_a_scale_of_two_is_an_enlarged_image():
    net = a2s_repro.multi_scale(convolutional(), 3, (2, 1), "max").eval()
    with torch.inference_mode():
        prediction = net(image_of())
        enlarged = ops.interp(image_of(), (2 * SIDE - 1, 2 * SIDE - 1))
        torch.testing.assert_close(prediction.scale_scores[0], net.decoder(net.backbone(enlarged)))
    torch.testing.assert_close(rescaled(image_of(), 2)[:, :, ::2, ::2], image_of())


def test_cells_of_patches_lie_on_the_same_pixels_at_all_scales():
    """A backbone that averages 8x8 patches of a ramp: its cells at scales 1 and 0.5 differ by less than a pixel."""
    backbone = nn.AvgPool2d(8)
    net = a2s_repro.multi_scale(backbone, 3, (1, 0.5), "max")
    ramp = torch.arange(129.0).expand(1, 3, 129, 129)
    with torch.inference_mode():
        inside = [net.backbone(F.pad(rescaled(ramp, scale), 2 * net.padding))[0, 0, 4, 1:-1] for scale in (1, 0.5)]
    cells = [8 * torch.arange(1.0, 16), 16 * torch.arange(1.0, 8)]
    assert all((ours - pixel).abs().max() <= 1 for ours, pixel in zip(inside, cells, strict=True))


@pytest.mark.parametrize("scales", [(1.5, 1, 0.5), (2, 0.75), (1, 0.25)])
def test_each_loss_meets_labels_at_whole_pixels(scales):
    """Labels that are the pixels' own numbers show which pixels a loss meets."""
    net = a2s_repro.multi_scale(convolutional(), 5, scales, width=1 / 64)
    numbers = torch.arange(SIDE**2).view(1, SIDE, SIDE)
    inputs = loss_inputs(net(image_of()[:1].expand(2, -1, -1, -1)), numbers.expand(2, -1, -1), True)
    strides = {2: 4, 1.5: 4, 1.25: 4, 1: 8, 0.75: 8, 0.5: 16, 0.25: 32}
    expected = [strides[scales[0]], *(strides[scale] for scale in scales)]
    for stride, (scores, labels) in zip(expected, inputs.values(), strict=True):
        assert torch.equal(labels[0], numbers[0, ::stride, ::stride]) and scores.shape[2:] == labels.shape[1:]


@pytest.mark.parametrize("name", BACKBONES)
def test_training_changes_every_layer_and_new_ones_learn_ten_times_as_fast(name):
    torch.manual_seed(0)
    net = a2s_repro.multi_scale(BACKBONES[name](), 5, (1.5, 1, 0.5), decoder="psp", width=1 / 64)
    rules = net.parameter_rules()
    assert {rule.lr_mult for key, rule in rules.items() if key.startswith("backbone.")} == {1}
    assert {rule.lr_mult for key, rule in rules.items() if not key.startswith("backbone.")} == {10}
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    labels = torch.randint(5, (2, SIDE, SIDE))
    solver = CaffeSGD(parameter_groups(net, "once"), lr=1e-2)
    sum(training_loss(net(image_of()), labels, extra_supervision=True).values()).backward()
    solver.step()
    assert not [key for key, tensor in net.state_dict().items() if torch.equal(tensor, before[key])]


def test_the_head_of_attention_to_refine_reads_all_maps():
    head = RefineHead(stages=("map0", "backbone"))
    net = a2s_repro.multi_scale(Patches(), 5, (1, 0.5), head=head, width=1 / 64).eval()
    assert net(image_of()).scores.shape == (2, 5, 17, 17)


def test_grid_steps():
    assert [grid_step((scale,)) for scale in (2, 1.5, 1.25, 1, 0.75, 0.5, 0.25)] == [4, 16, 32, 8, 32, 16, 32]
    assert grid_step((1.5, 1, 0.5)) == 16 and grid_step((1, 0.75), 16) == 64


def test_impossible_backbones_are_refused():
    with pytest.raises(InputError, match="its stride must be one of 4, 8, 16, 32"):
        a2s_repro.multi_scale(nn.Conv2d(3, 4, 3, 3), 5)
    with pytest.raises(InputError, match="does not run on an image"):
        a2s_repro.multi_scale(nn.Linear(7, 2), 5)
    with pytest.raises(InputError, match=r"scales 0.5 1: .* two or more of 2 1.5 1.25 1 0.75 0.5 0.25, in this order"):
        a2s_repro.multi_scale(convolutional(), 5, (0.5, 1))
    with pytest.raises(InputError, match="has stride 8, not 16: give that output stride"):
        a2s_repro.multi_scale(convolutional(), 5, output_stride=16)


def test_a_file_is_loaded_with_the_module_that_it_cannot_hold(tmp_path):
    net, file = a2s_repro.multi_scale(Patches(), 5, width=1 / 64), tmp_path / "net.pth"
    save_weights(file, net.state_dict(), {"model": net.config()})
    with pytest.raises(InputError, match=r"the backbone tests\..*\.Patches is neither .*load\(FILE, backbone=MODULE\)"):
        a2s_repro.load(file)
    again = a2s_repro.load(file, backbone=Patches()).model
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in again.state_dict().items())
    assert again.config() == net.config() and not again.training
    with pytest.raises(InputError, match="does not fit the net that it describes: backbone"):
        a2s_repro.load(file, backbone=convolutional())


def test_a_file_that_claims_billions_of_classes_is_refused_before_they_take_memory():
    backbone = convolutional()
    net = a2s_repro.multi_scale(backbone, 3, width=1 / 16)
    with pytest.raises(InputError, match=r"mine\.pth"):
        restored_model(net.config() | {"num_classes": 2**31}, net.state_dict(), "mine.pth", backbone)


def test_a_net_that_is_built_by_its_name_takes_no_module():
    with pytest.raises(InputError, match="the net, timm:resnet50, is built by its name: pass no backbone"):
        build_model({"net": "BackboneNet", "backbone": "timm:resnet50", "num_classes": 5}, Patches())
    with pytest.raises(InputError, match="the net, DeepLabLargeFOV, is built by its name"):
        build_model({"net": "DeepLabLargeFOV", "num_classes": 5}, Patches())


def test_a_package_that_is_missing_or_does_not_fit_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"need the package timm: pip install timm \(a2s_repro\[timm\]\)"):
        a2s_repro.multi_scale("timm:resnet50", 5)

    def failing(_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(named_backbone, "import_module", failing)
    with pytest.raises(InputError, match=r"torchvision::nms does not exist\): install a torchvision"):
        a2s_repro.multi_scale("torchvision:resnet50", 5)


def test_papers_nets_keep_their_scales():
    with pytest.raises(InputError, match=r"two or more of 1 0\.75 0\.5 0\.25, in this order"):
        a2s_repro.models.ShareNet(5, (2, 1))
    assert isinstance(a2s_repro.multi_scale(convolutional(), 5, (1,), None), BackboneNet)
