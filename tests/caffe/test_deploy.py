"""OpenCV, an independent implementation of Caffe's layers, runs the exported nets.

The tolerance is 1e-5 of the largest value: float32 sums in another order differ by up to 2e-6 on score maps and 6e-6 on
attention weights. OpenCV's Winograd convolutions are off, because their rounding errors are larger (1.3e-5).
"""

import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from a2s_repro import ops
from a2s_repro.caffe.conversion import from_caffe, random_init, to_caffe
from a2s_repro.caffe.deploy import deploy_prototxt, output_blob
from a2s_repro.checkpoint.weights import Weights, save_weights
from a2s_repro.errors import InputError
from a2s_repro.models import AttentionHead, DeepLab, DeepLabLargeFOV, DeepLabMSc, ShareNet, Widths
from a2s_repro.replay.recording import read_recording
from caffe_weights import write_caffemodel
from tests.paths import GOLDEN
from tests.processes import run_tool

TOLERANCE = 1e-5
CLASSES = 21
THIN = Widths().scaled(1 / 16)

opencv4 = pytest.mark.skipif(
    not hasattr(cv2.dnn, "readNetFromCaffe"), reason=f"OpenCV {cv2.__version__} runs no Caffe nets: 4.x does"
)

MERGES = ("attention", "average", "max")
NETS = {
    "largefov": partial(DeepLabLargeFOV, CLASSES),
    "largefov-pool5a": partial(DeepLabLargeFOV, CLASSES, pool5a=True),
    "msc-pool5a": partial(DeepLabMSc, CLASSES, pool5a=True),
    **{f"{merge}2": partial(ShareNet, CLASSES, (1, 0.5), merge) for merge in MERGES},
    **{f"{merge}3": partial(ShareNet, CLASSES, (1, 0.75, 0.5), merge) for merge in MERGES},
    **{f"msc-{merge}3": partial(ShareNet, CLASSES, (1, 0.75, 0.5), merge, skip_net=True) for merge in MERGES},
    "attention4": partial(ShareNet, CLASSES, (1, 0.75, 0.5, 0.25)),
    "attention-without-scale-1": partial(ShareNet, CLASSES, (0.75, 0.5)),
    "attention-on-fc6-by-one-layer": partial(ShareNet, CLASSES, head=AttentionHead("fc6", 1)),
    "attention-on-fc8-by-three-layers": partial(ShareNet, CLASSES, (1, 0.5), head=AttentionHead("fc8", 3, 1)),
    "msc-attention-on-fc8": partial(ShareNet, CLASSES, (1, 0.5), skip_net=True, head=AttentionHead("fc8")),
}


def net_of(name: str, widths: Widths = THIN) -> DeepLab:
    """A net with features of order 1, and with scores and attention that vary over the image."""
    net = NETS[name](widths=widths)
    net.load_state_dict(from_caffe(random_init(widths, seed=0), "init").weights.state_dict, strict=False)
    generator = torch.Generator().manual_seed(1)
    for layer in net.new_layers:
        weight = net.layer(layer).weight
        gain = 0.3 if layer == "att_fc" else 2  # an almost one-hot softmax would hide errors
        weight.data.normal_(std=gain * weight[0].numel() ** -0.5, generator=generator)
    return net.eval()


def weights_of(net: DeepLab) -> Weights:
    return Weights(net.state_dict(), {"model": net.config(), "classifier": "fc8_voc12"})


def image_of(size: tuple[int, int], images: int = 1) -> torch.Tensor:
    return 64 * torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(2))


def compare(prototxt: Path, caffemodel: Path, net: DeepLab, image: torch.Tensor) -> None:
    peer = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    peer.enableWinograd(False)
    peer.setInput(image.numpy())
    with torch.inference_mode():
        prediction = net(image)
    ours = {output_blob(net): ops.interp(prediction.scores, tuple(image.shape[2:]))}
    if prediction.weights is not None:
        blobs = [f"attention{i}_interp" for i, _ in enumerate(net.scales, 1)] if net.skip_net else ["attention"]
        ours |= dict(zip(blobs, prediction.weights.split(1 if net.skip_net else len(net.scales), 1), strict=True))
        assert prediction.weights.std(dim=(2, 3)).min() > 0.01
    for (blob, values), theirs in zip(ours.items(), peer.forward(list(ours)), strict=True):
        assert theirs.shape == tuple(values.shape)
        assert np.abs(theirs - values.numpy()).max() < TOLERANCE * values.abs().max(), blob


def export(folder: Path, net: DeepLab, size: tuple[int, int]) -> tuple[Path, Path]:
    prototxt, caffemodel = folder / "net.prototxt", folder / "net.caffemodel"
    prototxt.write_text(deploy_prototxt(net, "fc8_voc12", size))
    write_caffemodel(caffemodel, to_caffe(weights_of(net)))
    return prototxt, caffemodel


@opencv4
@pytest.mark.parametrize("side", [65, 97, 321])
@pytest.mark.parametrize("name", NETS)
def test_opencv_gives_the_same_score_maps(tmp_path, name, side):
    net = net_of(name)
    compare(*export(tmp_path, net, (side, side)), net, image_of((side, side)))


@opencv4
def test_oblong_images_and_batches(tmp_path):
    net = net_of("attention3")
    compare(*export(tmp_path, net, (65, 97)), net, image_of((65, 97), images=3))


@opencv4
@pytest.mark.slow
@pytest.mark.parametrize("name", ["largefov", "attention3"])
def test_the_full_net(tmp_path, name):
    net = net_of(name, Widths())
    compare(*export(tmp_path, net, (321, 321)), net, image_of((321, 321)))


def test_different_merges_give_clearly_different_results():
    """The comparisons of this file can therefore detect a wrong merge."""
    image = image_of((65, 65))
    with torch.inference_mode():
        maps = [net_of(name)(image).scores for name in ("attention3", "average3", "max3", "largefov")]
    for i, first in enumerate(maps):
        assert all((first - second).abs().max() > 0.01 * first.abs().max() for second in maps[:i])


@opencv4
def test_the_tool_writes_the_prototxt_next_to_the_weights(tmp_path):
    net = net_of("average2")
    save_weights(tmp_path / "net.pth", net.state_dict(), weights_of(net).meta)
    words = ("net.pth", "net.caffemodel", "--to-caffe", "--deploy-size", "65", "81")
    done = run_tool("convert_caffe", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote net.caffemodel\nwrote net_deploy.prototxt\n"
    compare(tmp_path / "net_deploy.prototxt", tmp_path / "net.caffemodel", net, image_of((65, 81)))


@pytest.mark.parametrize("name", ["iv_att2_esupv", "v_att3_esupv", "vi_msc", "viii_msc_att3_esupv"])
def test_layers_have_the_names_of_the_authors_test_nets(name):
    """Exceptions: data, argmax and dropout layers are omitted, and the weights are concatenated once per class."""
    recording = read_recording(GOLDEN / "nets", name)
    texts = (
        deploy_prototxt(recording.net(torch.float32), recording.classifier, (129, 129)),
        (GOLDEN / "nets" / f"{name}_test.prototxt").read_text(),
    )
    ours, theirs = (set(re.findall(r'^  name: "(\w+)"', text, re.MULTILINE)) for text in texts)
    assert all(layer.endswith("_wide") for layer in ours - theirs)
    left_out = {layer for layer in theirs - ours if not layer.startswith("drop")}
    assert len(left_out) == 2 and "data" in left_out and any(layer.endswith("_argmax") for layer in left_out)


def test_a_size_off_the_grid_is_refused():
    with pytest.raises(InputError, match=r"side of 72 pixels .* nearest being 65 and 97"):
        deploy_prototxt(net_of("attention3"), "fc8", (65, 72))
