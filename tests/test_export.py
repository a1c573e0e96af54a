"""Exported nets: their results in other programs, and their descriptions. The snippets of docs/export.md are run.

The tolerance is 1e-4 of the largest score. Sums in another order change scores by up to 3e-5 (onnxruntime, random nets
of Attention to Refine). Almost one-hot attention amplifies rounding: 1.3e-4 was measured for such a random net.
"""

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import a2s_repro
from a2s_repro.analysis.inspection import inspect
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.demo import draw_scene, make_demo_data
from a2s_repro.data.normalization import NORMALIZATIONS
from a2s_repro.data.voc import CLASSES as VOC_CLASSES
from a2s_repro.errors import InputError
from a2s_repro.export import IMAGE, TOLERANCE, Deployed, Exported, deviation, export, program
from a2s_repro.models import DeepLab, RefineHead, ResNetDilated8, ShareNet
from a2s_repro.models.base import Net
from tests.caffe.test_deploy import THIN, image_of, net_of, opencv4, weights_of
from tests.markdown import snippets
from tests.processes import run_tool

pytestmark = pytest.mark.long

RECIPE = {"name": "voc12/attention2_esupv"}
SIZES = [(1, 33, 49), (3, 65, 33), (2, 161, 129)]


def saved(folder: Path, net: Net) -> Path:
    path = folder / "model.pth"
    save_weights(path, net.state_dict(), weights_of(net).meta | {"recipe": RECIPE})
    return path


@pytest.fixture(scope="module")
def net() -> DeepLab:
    return net_of("attention2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, net: DeepLab) -> Path:
    return saved(tmp_path_factory.mktemp("model"), net)


@pytest.fixture(scope="module")
def onnx_file(model: Path) -> Exported:
    return export(model, model.with_suffix(".onnx"))


@pytest.fixture(scope="module")
def program_file(model: Path) -> subprocess.CompletedProcess:
    """model.pt2, as the tool writes it."""
    return run_tool("export", model.name, "model.pt2", folder=model.parent)


@pytest.fixture
def here(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the model's folder the current one, because the documents' snippets use bare file names."""
    monkeypatch.chdir(model.parent)
    return model.parent


def expected_labels(net: DeepLab, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return Deployed(net)(image)["labels"]


def assert_alike(net: DeepLab, outputs: dict[str, torch.Tensor], image: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = Deployed(net)(image)
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        assert outputs[name].dtype == values.dtype and outputs[name].shape == values.shape
        unit = values.abs().max().item() if name == "scores" else 1
        assert (outputs[name] - values).abs().max() <= (0 if name == "labels" else TOLERANCE * unit), name


def assert_segments_like(exported: str, weights: str) -> None:
    """`load` of both gives the same labels, but for pixels of nearly equal scores, and the same weights and names."""
    theirs, ours = a2s_repro.load(exported), a2s_repro.load(weights)
    assert (theirs.pad_to, theirs.classes, theirs.model.scales) == (ours.pad_to, ours.classes, ours.model.scales)
    assert theirs.bytes_per_pixel == ours.bytes_per_pixel
    for pixels in (draw_scene(np.random.default_rng(seed))[0] for seed in range(3)):
        expected, result = (segmenter(pixels, order="bgr", scores=True) for segmenter in (ours, theirs))
        assert len(np.unique(expected.labels)) > 1
        assert np.mean(result.labels != expected.labels) < 1e-4
        assert np.abs(result.weights - expected.weights).max() < TOLERANCE
        assert np.abs(result.scores - expected.scores).max() < TOLERANCE * np.abs(expected.scores).max()


def test_onnx_runs_any_batch_and_size_and_has_a_description(here, net, onnx_file):
    assert onnx_file.files == [here / "model.onnx"] and onnx_file.deviation < TOLERANCE
    picture = np.random.default_rng(0).integers(0, 256, (33, 50, 3), np.uint8)
    names = {"picture": picture}
    exec(snippets("docs/export.md", "ONNX")[0], names)

    assert np.array_equal(names["labels"], a2s_repro.load("model.pth")(picture, order="rgb").labels)
    assert len(names["names"]) > 1 and set(names["names"]) <= set(VOC_CLASSES)

    about = names["about"]
    assert about["classes"] == list(VOC_CLASSES) and about["recipe"] == RECIPE and about["net"] == net.config()
    assert about["grid_step"] == 16 and about["scales"] == [1, 0.5] and about["pad_to"] == 513
    assert_segments_like("model.onnx", "model.pth")
    session = names["session"]
    assert session.get_inputs()[0].shape == ["batch", 3, "16*rows + 1", "16*columns + 1"]
    for batch, *size in SIZES:
        image = image_of(tuple(size), batch)
        outputs = session.run(None, {"image": image.numpy()})
        names = [output.name for output in session.get_outputs()]
        assert_alike(net, dict(zip(names, map(torch.from_numpy, outputs), strict=True)), image)


CONSUMER = """
import sys
sys.modules["a2s_repro"] = sys.modules["caffe_weights"] = None  # an import would fail
import torch
image = torch.load("image.pth")
{snippet}
torch.save({{"labels": labels, "scores": scores, "classes": classes}}, "outputs.pth")
"""


def test_the_tool_writes_a_program_that_needs_only_pytorch(here, net, program_file):
    done = program_file
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote model.pt2\nrun on batches of three sizes: within ")
    assert done.stderr == ""

    image = image_of((33, 65), images=3)
    torch.save(image, "image.pth")
    source = CONSUMER.format(snippet=snippets("docs/export.md", "PyTorch")[0])
    subprocess.run([sys.executable, "-I", "-c", source], check=True)
    outputs = torch.load("outputs.pth", weights_only=True)
    assert torch.equal(outputs["labels"], expected_labels(net, image))
    assert outputs["classes"] == list(VOC_CLASSES)
    assert_segments_like("model.pt2", "model.pth")


def test_commands_take_exported_nets_as_they_take_weights(here, onnx_file, program_file):
    export("model.pth", "model.caffemodel", deploy_size=(33, 33))
    data = make_demo_data(here / "data", num_train=1, num_val=1)
    images = ["--data-root", data, "--list", data / "ImageSets/Segmentation/val.txt", "--pad-to", 1]

    scores = {}
    for model in ("model.pth", "model.onnx", "model.pt2", "model.caffemodel"):
        done = run_tool("evaluate", "--model", model, *images, "--json")
        assert done.returncode == 0, done.stderr
        scores[model] = json.loads(done.stdout)
        assert scores[model]["attention"]["mean"] == pytest.approx(scores["model.pth"]["attention"]["mean"], abs=1e-4)
        moved = np.abs(np.array(scores[model]["confusion"]) - scores["model.pth"]["confusion"]).sum()
        assert moved <= 2e-4 * scores[model]["pixels"], model

    one_crf = ["--count", 1, "--bi-w", 4, "--bi-xy-std", 40, "--bi-rgb-std", 5, "--crf-iterations", 1]
    for words in (
        ["segment", data / "JPEGImages/val_0000.jpg", "--model", "model.onnx", "--out", "segmented", "--pad-to", 1],
        ["show_attention", "--model", "model.onnx", *images, "--out", "attention.png"],
        ["crf_search", "--model", "model.caffemodel", *images, *one_crf],
    ):
        done = run_tool(*words)
        assert done.returncode == 0, done.stderr
    done = run_tool("show_attention", "--model", "model.onnx", *images, "--layout", "recalibration", "--out", "x.png")
    assert done.returncode == 2 and "an exported net has no recalibration" in done.stderr


def test_what_an_exported_net_cannot_give_is_refused(here, onnx_file, program_file):
    picture = np.zeros((33, 33, 3), np.uint8)
    for name in ("model.onnx", "model.pt2"):
        segmenter = a2s_repro.load(name)
        with pytest.raises(InputError, match="no score maps of its scales: give the weights"):
            inspect(segmenter, picture)
        with pytest.raises(InputError, match="computes in float32: give precision fp32"):
            replace(segmenter, precision="bf16")(picture, order="bgr")
        with pytest.raises(InputError, match=rf"{name} is an exported net, .*: give the file it was exported from"):
            export(name, "again.pt2")


def test_files_that_export_did_not_write_are_refused(tmp_path, monkeypatch):
    for name in ("net.onnx", "net.pt2"):
        with pytest.raises(InputError, match=rf"{name} does not exist"):
            a2s_repro.load(tmp_path / name)
        (tmp_path / name).write_bytes(b"not a net")
        with pytest.raises(InputError, match=rf"{name} is damaged, or not an export of this version .*: export "):
            a2s_repro.load(tmp_path / name)
    with pytest.raises(InputError, match="runs on the CPU alone"):
        a2s_repro.load(tmp_path / "net.onnx", "cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"net\.onnx needs onnxruntime to run: pip install onnxruntime"):
        a2s_repro.load(tmp_path / "net.onnx")


def test_a_native_program_keeps_the_fused_operators_and_is_bit_identical(net):
    native = program(net, native=True)
    used = {str(node.target) for node in native.graph.nodes}
    assert {"a2s.interp_shift_add.default", "a2s.scale_merge.default", "a2s.segment.default"} <= used
    run = native.module()
    assert deviation(net, run) == 0
    with pytest.raises(AssertionError, match="% 16 == 0"):
        run(image_of((33, 40)))


def test_safetensors_hold_the_meta(here, net):
    assert export("model.pth", "model.safetensors").files == [Path("model.safetensors")]
    names = {}
    exec(snippets("docs/export.md", "safetensors")[0], names)
    assert names["classes"] == list(VOC_CLASSES)
    assert names["meta"]["model"] == net.config() and names["meta"]["recipe"] == RECIPE
    for name, tensor in net.state_dict().items():
        assert np.array_equal(names["tensors"][name], tensor.numpy())


@opencv4
def test_opencv_runs_the_caffe_files(here, net):
    assert list(map(str, export("model.pth", "model.caffemodel", deploy_size=(33, 65)).files)) == [
        "model.caffemodel",
        "model_deploy.prototxt",
    ]
    image = image_of((33, 65))
    names = {"image": image.numpy()}
    exec(snippets("docs/export.md", "OpenCV")[0], names)
    assert np.array_equal(names["scores"].argmax(1), expected_labels(net, image).numpy())


@pytest.mark.parametrize("name", IMAGE)
def test_the_described_normalization_is_the_one_in_use(name):
    picture = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    given = IMAGE[name]
    pixels = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if given["channels"] == "RGB" else picture
    described = (pixels * given["scale"] - given["mean"]) / given["std"]
    assert np.abs(described.transpose(2, 0, 1) - NORMALIZATIONS[name](picture)).max() < 1e-5
    assert IMAGE.keys() == NORMALIZATIONS.keys()


def test_deviation_detects_wrong_scores_labels_and_weights(net):
    ours = Deployed(net)

    def spoilt(name, change):
        return deviation(net, lambda image: (outputs := ours(image)) | {name: change(outputs[name])})

    assert deviation(net, ours) == 0
    assert spoilt("scores", lambda scores: scores * 1.001) == pytest.approx(0.001, rel=0.01)
    assert spoilt("labels", lambda labels: labels.flip(2)) > 0.01
    assert spoilt("weights", lambda weights: weights.flip(1)) > 0.01
    assert np.isnan(spoilt("scores", lambda scores: scores * np.nan))


@pytest.mark.long
def test_a_deviating_net_is_not_written(tmp_path):
    net = net_of("largefov")
    net.fc8.weight.data[0] = np.nan
    with pytest.raises(InputError, match=r"model\.pt2 is not written.* deviates from the net by nan"):
        export(saved(tmp_path, net), tmp_path / "model.pt2")
    assert os.listdir(tmp_path) == ["model.pth"]


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("model.tflite", {}, r"model\.tflite: the suffix selects .* \.pt2 .* \.onnx .* \.caffemodel .* \.safetensors"),
        ("model.onnx", {"native": True}, r"only a \.pt2 program can keep the native operators"),
        ("model.caffemodel", {"deploy_size": (33, 40)}, "side of 40 pixels"),
        ("model.pt2", {"device": "nowhere"}, "nowhere cannot be used"),
    ],
)
def test_impossible_exports_are_refused(here, output, options, message):
    before = sorted(os.listdir())
    with pytest.raises(InputError, match=message):
        export("model.pth", output, **options)
    assert sorted(os.listdir()) == before


RESNET_HEAD = RefineHead(stages=("stem", "layer1", "layer2", "layer3", "layer4"), recalibration="add")
OF_ATTENTION_TO_REFINE = {
    "refine": partial(ShareNet, 21, (1, 0.5), head=RefineHead(), widths=THIN),
    "resnet": partial(ResNetDilated8, 21, width=1 / 16),
    "resnet-psp-refine": partial(
        ResNetDilated8, 21, (1, 0.5), "attention", head=RESNET_HEAD, decoder="psp", stem="plain", width=1 / 16
    ),
}


def net_of_attention_to_refine(name: str) -> Net:
    """A net whose attention varies over the image but is far from one-hot, which would amplify rounding."""
    net = OF_ATTENTION_TO_REFINE[name]()
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in net.keyed_parameters().items():
        if parameter.dim() > 1:
            gain = 0.01 if parameter_name == "att_fc.weight" else 1
            parameter.data.normal_(std=gain * (2 / parameter[0].numel()) ** 0.5, generator=generator)
    return net.eval()


@pytest.mark.parametrize("name", OF_ATTENTION_TO_REFINE)
def test_caffe_has_no_layers_for_attention_to_refine(tmp_path, name):
    with pytest.raises(InputError, match=r"nets do not have: .* and \d+ more; only nets of Attention to Scale"):
        export(saved(tmp_path, net_of_attention_to_refine(name)), tmp_path / "model.caffemodel")
    assert os.listdir(tmp_path) == ["model.pth"]


class PaddedAsNeeded(nn.Conv2d):
    """A convolution of stride 8 whose padding is computed from the image's size, as in timm's ConvNeXts."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows, columns = (math.ceil(side / 8) * 8 for side in image.shape[2:])
        return super().forward(F.pad(image, (0, columns - image.shape[3], 0, rows - image.shape[2])))


def test_sizes_that_a_backbone_rounds_up_are_exported():
    net = a2s_repro.multi_scale(PaddedAsNeeded(3, 4, 8, 8), 5, (1,), None).eval()
    exported, image = program(net), torch.randn(1, 3, 41, 65)
    torch.export.save(exported, io.BytesIO())
    torch.testing.assert_close(exported.module()(image)["scores"], net(image).scores)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    "name",
    [
        *("largefov-pool5a", "msc-pool5a", "average3", "max3", "attention3", "attention4", "msc-attention3"),
        *OF_ATTENTION_TO_REFINE,
    ],
)
def test_every_kind_of_net_is_exported(tmp_path, name, suffix):
    net = net_of_attention_to_refine(name) if name in OF_ATTENTION_TO_REFINE else net_of(name)
    output = tmp_path / f"net{suffix}"
    assert export(saved(tmp_path, net), output).deviation < TOLERANCE
    if suffix == ".onnx":
        import onnx

        onnx.checker.check_model(output, full_check=True)
        assert json.loads(onnx.load(output).metadata_props[0].value) == list(VOC_CLASSES)


@pytest.mark.parametrize("suffix", [".pt2", ".safetensors", ".caffemodel"])
def test_a_full_disk_is_one_sentence_and_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    """A limit on the size of files stands for the disk; torch's writer of archives aborted the process."""
    model = saved(tmp_path, net_of("largefov"))
    done = run_tool("export", model, tmp_path / f"net{suffix}", largest_file=4096)
    assert done.returncode == 2, done.stderr
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("error: ") and f"net{suffix}" in sentence and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == [model.name]
