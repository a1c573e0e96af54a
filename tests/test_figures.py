"""The attention figure: its columns, what they show, and the file that the tool writes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from a2s_repro.checkpoint import save_weights
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.voc import palette
from a2s_repro.figures import Row, attention_figure
from a2s_repro.models import ShareNet, Widths
from a2s_repro.segmenter import Segmentation

TOOL = Path(__file__).parents[1] / "tools" / "show_attention.py"
NAMES = ("background", "cat", "dog")


def row(height, width, scales):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    truth = np.full((height, width), 255, np.uint8)
    labels = np.ones((height, width), np.uint8)
    weights = torch.rand(scales, height, width).numpy() if scales else None
    return Row(image, truth, Segmentation(labels, weights))


@pytest.mark.parametrize("scales", [(1, 0.5), (1, 0.75, 0.5), (1, 0.75, 0.5, 0.25)])
def test_columns_are_image_truth_prediction_and_a_map_per_scale(scales):
    rows = [row(20, 30, len(scales)), row(30, 20, len(scales))]
    figure = attention_figure(rows, scales, NAMES)
    *axes, colour_bar = figure.axes
    columns = 3 + len(scales)
    titles = [axis.get_title() for axis in axes[:columns]]
    assert titles == ["image", "ground truth", "prediction", *(f"weights, scale {scale:g}" for scale in scales)]
    assert colour_bar.get_ylabel() == "attention weight"
    for number, content in enumerate(rows):
        shown = [axis.get_images()[0] for axis in axes[number * columns : (number + 1) * columns]]
        assert (shown[0].get_array() == content.image[..., ::-1]).all()
        assert (shown[1].get_array() == palette()[255]).all()
        assert (shown[2].get_array() == palette()[1]).all()
        for image, weights in zip(shown[3:], content.segmentation.weights, strict=True):
            assert (image.get_array() == weights).all()
            assert image.get_clim() == (0, 1)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "ignored"]


def test_without_weights_there_are_no_maps_and_no_colour_bar():
    figure = attention_figure([row(20, 30, 0)], (1, 0.5), NAMES)
    assert [axis.get_title() for axis in figure.axes] == ["image", "ground truth", "prediction"]


def test_tool_writes_a_png_of_the_asked_images(tmp_path):
    demo = make_demo_data(tmp_path / "demo", num_train=1, num_val=2)
    model = ShareNet(len(CLASSES), (1, 0.5), widths=Widths().scaled(1 / 32))
    save_weights(tmp_path / "final.pth", model.state_dict(), {"model": model.config(), "pool5a": False})
    command = [sys.executable, TOOL, "--model", tmp_path / "final.pth", "--data-root", demo, "--crop", "65"]
    command += ["--list", demo / "ImageSets/Segmentation/val.txt", "--ids", "val_0001"]
    command += ["--out", tmp_path / "attention.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "attention.png")
    picture = np.asarray(Image.open(tmp_path / "attention.png").convert("RGB"))
    assert picture.std() > 10
