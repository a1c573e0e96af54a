"""The command lines over Caffe files, run as a user runs them."""

import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

import a2s_repro
from a2s_repro.checkpoint.weights import load_weights
from a2s_repro.commands import main
from a2s_repro.data.demo import draw_scene
from caffe_weights import CaffeFileError, read_caffemodel
from tests.paths import GOLDEN, ROOT
from tests.processes import run_tool

SHARED = GOLDEN / "nets/iv_att2_esupv_B_iter_20.caffemodel"


def test_to_torch_and_back_gives_the_same_blobs(tmp_path):
    forth = run_tool("convert_caffe", SHARED, tmp_path / "net.safetensors", "--num-classes", 5)
    assert forth.returncode == 0, forth.stderr
    for line in ("matched 18 layers", "folded 16 shared copies; scales 1 0.5", "pool5a: no", "classifier: fc8_voc12"):
        assert line in forth.stdout
    assert forth.stdout.endswith(f"wrote {tmp_path / 'net.safetensors'}\n")

    back = run_tool("convert_caffe", tmp_path / "net.safetensors", tmp_path / "net.caffemodel", "--to-caffe")
    assert back.returncode == 0, back.stderr
    blobs = [
        [
            (layer.name, [blob.tobytes() for blob in layer.blobs])
            for layer in read_caffemodel(path).layers
            if layer.blobs
        ]
        for path in (tmp_path / "net.caffemodel", SHARED)
    ]
    assert blobs[0] == blobs[1]


@pytest.mark.skipif(not hasattr(cv2.dnn, "readNetFromCaffe"), reason="OpenCV 4 runs Caffe nets")
def test_check_runs_the_file_in_opencv(tmp_path, capsys):
    """Of the authors' Caffe and of ours; the tolerance is that of the command, 1e-4 of the largest score."""
    cv2.imwrite(str(tmp_path / "x.png"), draw_scene(np.random.default_rng(0))[0])
    back = tmp_path / "net.pth", tmp_path / "net.caffemodel", "--to-caffe"
    for files in ((SHARED, tmp_path / "net.pth"), back):
        with pytest.raises(SystemExit) as end:
            main(["convert", *map(str, files), "--check", str(tmp_path / "x.png")])
        printed = capsys.readouterr().out.splitlines()[-1]
        assert not end.value.code, printed
        deviation = re.search(r"differ by at most (\S+) of the largest score, \S+ % of the labels differ$", printed)
        assert float(deviation[1]) < 1e-4


def test_load_takes_a_caffe_file(tmp_path):
    segmenter = a2s_repro.load(SHARED)
    assert segmenter.model.scales == (1, 0.5) and segmenter.classes == ["0", "1", "2", "3", "4"]
    page = tmp_path / "page.caffemodel"
    page.write_text("<html>")
    with pytest.raises(CaffeFileError, match=r"page\.caffemodel"):
        a2s_repro.load(page)


def test_inspect_shows_both_kinds_of_file():
    caffemodel = run_tool("convert_caffe", SHARED, "--inspect")
    assert caffemodel.returncode == 0 and "copy of fc8_voc12" in caffemodel.stdout
    solverstate = run_tool("convert_caffe", SHARED.with_suffix(".solverstate"), "--inspect")
    assert solverstate.returncode == 0 and solverstate.stdout.startswith("iter 20, current_step 2")


@pytest.mark.parametrize(
    "args, words",
    [
        ([SHARED, "net.pth", "--num-classes", 21], "5 outputs, but the classifier must have 21 outputs"),
        ([SHARED], "an output is needed"),
        ([GOLDEN / "INDEX.md", "net.pth"], "no binary Caffe file"),
        (["absent.caffemodel", "net.pth"], "absent.caffemodel does not exist"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(tmp_path, args, words):
    done = run_tool("convert_caffe", *args, folder=tmp_path)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_make_init_gives_a_file_that_converts(tmp_path):
    assert run_tool("make_init", tmp_path / "init.caffemodel", "--width", 0.0625, "--seed", 3).returncode == 0
    assert run_tool("convert_caffe", tmp_path / "init.caffemodel", tmp_path / "init.pth").returncode == 0
    weights = load_weights(tmp_path / "init.pth")
    assert weights.state_dict["fc6.weight"].shape == (64, 32, 3, 3) and weights.meta["classifier"] is None


VGG16 = """
import sys, numpy as np
from caffe_weights import Layer, CaffeNet, write_caffemodel
from tests.processes import run_tool
rng = np.random.default_rng(0)
channels = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)] + [(512, 512)] * 5
names = "1_1 1_2 2_1 2_2 3_1 3_2 3_3 4_1 4_2 4_3 5_1 5_2 5_3".split()
shapes = {f"conv{name}": (o, i, 3, 3) for name, (i, o) in zip(names, channels, strict=True)}
shapes |= {"fc6": (4096, 25088), "fc7": (4096, 4096), "fc8": (1000, 4096)}
layers = [
    Layer(name, "Convolution" if len(shape) == 4 else "InnerProduct",
          [rng.standard_normal(shape, np.float32), rng.standard_normal(shape[0], np.float32)])
    for name, shape in shapes.items()
]
write_caffemodel(sys.argv[1], CaffeNet("VGG_ILSVRC_16_layers", layers), v1=True)
fc6 = layers[13].blobs[0].reshape(4096, 512, 7, 7)[0::4, :, 0::3, 0::3]
np.savez(sys.argv[2], fc6=fc6, conv5_3=layers[12].blobs[0])
"""


@pytest.mark.slow
def test_the_full_vgg16_converts_in_a_minute_and_two_and_a_half_gigabytes(tmp_path):
    """A V1 file of 138 million weights; the kernel accounts processor time and peak memory of the tool's process."""
    model, kept = tmp_path / "VGG_ILSVRC_16_layers.caffemodel", tmp_path / "kept.npz"
    subprocess.run([sys.executable, "-c", VGG16, model, kept], check=True)
    assert model.stat().st_size > 553_000_000
    tool = subprocess.Popen(
        [sys.executable, ROOT / "tools/convert_caffe.py", model, tmp_path / "init.pth", "--subsample"]
    )
    _, status, usage = os.wait4(tool.pid, 0)
    assert status == 0
    assert usage.ru_utime + usage.ru_stime < 60
    assert usage.ru_maxrss * 1024 < 2.5e9

    state_dict, expected = load_weights(tmp_path / "init.pth").state_dict, np.load(kept)
    assert state_dict["fc6.weight"].shape == (1024, 512, 3, 3) and state_dict["fc7.weight"].shape == (1024, 1024, 1, 1)
    assert all(np.array_equal(state_dict[f"{name}.weight"], expected[name]) for name in expected)
