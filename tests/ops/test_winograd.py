"""3x3 convolutions by Winograd's algorithm, against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from a2s_repro import ops
from a2s_repro.models import ShareNet, Widths
from a2s_repro.ops import winograd
from a2s_repro.ops._native import loaded_devices
from a2s_repro.ops.conv2d import Filters, conv2d

pytestmark = pytest.mark.skipif("cpu" not in loaded_devices(), reason="the native operators are not built")

CHANNELS, FILTERS = 130, 139  # at least FEWEST_CHANNELS; no multiples of eight, so that vectors overlap


def random_inputs(size: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """A map of two images, a weight and a bias, each asking for its gradient."""
    torch.manual_seed(0)
    x = torch.randn(2, CHANNELS, *size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(FILTERS, CHANNELS, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(FILTERS, dtype=dtype).requires_grad_()


def with_gradients(result: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The result, and the inputs' gradients from one that is drawn, the same each time."""
    torch.manual_seed(1)
    return [result, *torch.autograd.grad(result, inputs, torch.randn_like(result))]


def worst(given: list[Tensor], expected: list[Tensor]) -> float:
    """The largest deviation of any tensor, relative to its largest value."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(given, expected, strict=True))


@pytest.mark.parametrize("most_tiles", [winograd.MOST_TILES, 50])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("size", [(12, 17), (33, 24)], ids=str)
def test_equals_torch(size: tuple[int, int], dilation: int, most_tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """float64: only rounding can differ, 1e-13 of the largest value. Covers one block of tiles, and several with a
    shorter last one."""
    monkeypatch.setattr(winograd, "MOST_TILES", most_tiles)
    x, weight, bias = random_inputs(size)
    assert winograd.pays(x, weight, dilation)
    ours = with_gradients(conv2d(x, weight, bias, dilation), x, weight, bias)
    theirs = with_gradients(F.conv2d(x, weight, bias, padding=dilation, dilation=dilation), x, weight, bias)
    assert worst(ours, theirs) <= 1e-13
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


def test_the_environment_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """With A2S_WINOGRAD=0 the result is bit-equal to torch's."""
    x, weight, bias = (tensor.float() for tensor in random_inputs((12, 17)))
    theirs = F.conv2d(x, weight, bias, padding=1)
    assert not torch.equal(conv2d(x, weight, bias), theirs)
    monkeypatch.setenv("A2S_WINOGRAD", "0")
    assert torch.equal(conv2d(x, weight, bias), theirs)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5)], ids=str)
def test_maps_smaller_than_a_tile_or_the_hole(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a tile lies beyond the map, which `pays` would refuse. 1e-13 as above."""
    monkeypatch.setattr(winograd, "MOST_PRODUCTS", float("inf"))
    x, weight, bias = random_inputs(size)
    for dilation in (1, 4, 12):
        ours = with_gradients(conv2d(x, weight, bias, dilation), x, weight, bias)
        assert "_Conv2d" in type(ours[0].grad_fn).__name__
        theirs = with_gradients(F.conv2d(x, weight, bias, padding=dilation, dilation=dilation), x, weight, bias)
        assert worst(ours, theirs) <= 1e-13


def test_in_float32_is_within_the_gate_of_a_layer() -> None:
    """1e-6 of the largest value, which Caffe's layers are held to: on conv4 of VGG-16, from the exact result."""
    torch.manual_seed(0)
    x = torch.randn(1, 512, 21, 21).relu_().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(512, 512, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    ours = with_gradients(conv2d(x, weight), x, weight)
    exact = x.double().detach().requires_grad_(), weight.double().detach().requires_grad_()
    y = F.conv2d(*exact, padding=1)
    torch.manual_seed(1)
    grad = torch.randn_like(ours[0]).double()
    assert worst([each.double() for each in ours], [y, *torch.autograd.grad(y, exact, grad)]) <= 1e-6


def test_the_same_bits_every_time() -> None:
    x, weight, bias = random_inputs((33, 24), torch.float32)
    first, *others = (with_gradients(conv2d(x, weight, bias), x, weight, bias) for _ in range(5))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_only_the_requested_gradients_are_computed() -> None:
    """A frozen weight's is not, nor an image's, and a weight alone has the same gradient as with the others."""
    x, weight, bias = random_inputs((12, 17))
    expected = with_gradients(conv2d(x, weight, bias), x, weight, bias)
    alone = with_gradients(conv2d(x.detach(), weight, bias.detach()), weight)
    assert torch.equal(alone[1], expected[2])
    frozen = with_gradients(conv2d(x, weight.detach(), bias.detach()), x)
    assert torch.equal(frozen[1], expected[1])


def test_convolutions_share_the_transform_and_its_gradient() -> None:
    """1e-13 of the largest value: only the order of the gradient's sum differs."""
    x, weight, _ = random_inputs((12, 17))
    small = x.detach()[:, :, :9, :9].contiguous(memory_format=torch.channels_last)
    shared = Filters(weight)
    together = conv2d(x, shared).sum() + conv2d(small, shared).square().sum()
    apart = conv2d(x, weight).sum() + conv2d(small, weight).square().sum()
    assert shared.transformed is shared.transformed
    given, expected = (torch.autograd.grad(total, [x, weight]) for total in (together, apart))
    assert worst(given, expected) <= 1e-13


def test_a_share_nets_scales_agree_with_the_references() -> None:
    """A net that is wide enough, in float64, against torch's convolutions: all gradients within 1e-12 of the largest
    value, through 13 layers."""
    torch.manual_seed(0)
    widths = Widths(conv1=8, conv2=128, conv3=130, conv4=128, conv5=16, fc6=16, fc7=16, att_conv1=8)
    net = ShareNet(3, (1, 0.5), dropout=0, widths=widths).double().to(memory_format=torch.channels_last)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    image = torch.randn(1, 3, 65, 65, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(net(image).scores.square().sum(), list(net.parameters())))

    ours = gradients()
    assert all(layer.filters is None for layer in net.children() if hasattr(layer, "filters"))
    with ops.use_backend("reference"):
        assert worst(ours, gradients()) <= 1e-12


def test_what_it_is_for() -> None:
    """3x3, many channels on both sides, float32 or float64, tiles that lie in the map, native operators."""
    x, weight, _ = random_inputs((12, 17), torch.float32)
    few = winograd.FEWEST_CHANNELS - 1
    assert winograd.pays(x, weight, dilation=1)
    assert not winograd.pays(x, weight[:, :, :1, :1], dilation=1)
    assert not winograd.pays(x[:, :few], weight[:, :few], dilation=1)
    assert not winograd.pays(x, weight[:few], dilation=1)
    assert not winograd.pays(x, weight, dilation=12)
    assert not winograd.pays(x.bfloat16(), weight.bfloat16(), dilation=1)
    assert not winograd.pays(x[:0], weight, dilation=1)
    with ops.use_backend("reference"):
        assert not winograd.pays(x, weight, dilation=1)


def test_under_autocast_and_without_gradients() -> None:
    """Autocast's products are bfloat16's; without gradients the result is the same."""
    x, weight, bias = random_inputs((12, 17), torch.float32)
    result = conv2d(x, weight, bias)
    with torch.no_grad():
        assert torch.equal(conv2d(x, weight, bias), result)
        with torch.autocast("cpu", torch.bfloat16):
            assert conv2d(x, weight, bias).dtype == torch.bfloat16


def test_it_cannot_be_differentiated_twice() -> None:
    x, weight, _ = random_inputs((12, 17))
    (grad,) = torch.autograd.grad(conv2d(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
