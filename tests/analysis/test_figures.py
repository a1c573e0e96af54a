"""Attention figures: their columns, their content, and the file that the tool writes."""

import re
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from a2s_repro.analysis.figures import Row, attention_figure, figure_rows, save_figure
from a2s_repro.analysis.inspection import inspect
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.lists import read_list
from a2s_repro.data.voc import palette
from a2s_repro.errors import InputError
from a2s_repro.inference.segmenter import Segmentation, Segmenter
from a2s_repro.models import RefineHead, ShareNet, Widths
from tests.processes import run_tool

NAMES = ("background", "cat", "dog")
THIN = Widths().scaled(1 / 32)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("demo"), num_train=1, num_val=2)


def segmenter(merge="attention", scales=(1, 0.5), **head):
    torch.manual_seed(0)
    net = ShareNet(len(CLASSES), scales, merge, widths=THIN, **head).eval()
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return Segmenter(net, CLASSES, pad_to=65)


def items(demo):
    return read_list(demo / "ImageSets/Segmentation/val.txt", demo)


def titles_and_maps(figure, columns):
    """Titles of the columns, and the float maps in the first row."""
    axes = figure.axes[:columns]
    shown = [axis.get_images()[0].get_array() for axis in axes]
    return [axis.get_title() for axis in axes], [values for values in shown if values.dtype != np.uint8]


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


def test_comparison_has_the_baseline_before_ours(demo):
    ours, other = segmenter(), segmenter("average")
    rows = figure_rows(items(demo), "comparison", ours, other)
    figure = attention_figure(rows, (1, 0.5), CLASSES, "comparison")
    titles, maps = titles_and_maps(figure, 6)
    assert titles == ["image", "ground truth", "baseline", "ours", "weights, scale 1", "weights, scale 0.5"]
    baseline, prediction = (figure.axes[column].get_images()[0].get_array() for column in (2, 3))
    assert (baseline == palette()[other(rows[0].image).labels]).all()
    assert (prediction == palette()[ours(rows[0].image).labels]).all()
    assert (np.stack(maps) == ours(rows[0].image).weights).all()


def test_winner_is_the_scale_of_the_maximum(demo):
    """At every pixel exactly one scale has weight 1, and its score for the predicted class is the merged score."""
    ours, other = segmenter(), segmenter("max")
    rows = figure_rows(items(demo)[:1], "winner", ours, other)
    titles, maps = titles_and_maps(attention_figure(rows, (1, 0.5), CLASSES, "winner"), 6)
    scales = [f"{name}, scale {scale}" for name in ("max-pooling", "attention") for scale in (1, 0.5)]
    assert titles == ["image", "ground truth", *scales]
    one_hot = np.stack(maps[:2])
    assert set(np.unique(one_hot)) == {0, 1} and (one_hot.sum(0) == 1).all()
    inspection = inspect(other, rows[0].image, 8)
    merged = inspection.scores.max(0).values
    chosen = inspection.scale_scores.gather(1, inspection.scores.argmax(0).expand(2, 1, -1, -1))[:, 0]
    weights = torch.from_numpy(one_hot[:, ::8, ::8])
    torch.testing.assert_close((weights * chosen).sum(0), merged, rtol=0, atol=0)


@pytest.mark.parametrize(("recalibration", "limits"), [("multiply", (0, 1)), ("add", None)])
def test_recalibration_of_the_most_frequent_classes(demo, recalibration, limits):
    """Factors are shown from 0 to 1, biases symmetrically about 0."""
    net = segmenter(head=RefineHead(recalibration=recalibration))
    rows = figure_rows(items(demo)[:1], "recalibration", net)
    figure = attention_figure(rows, (1, 0.5), CLASSES, "recalibration")
    titles, maps = titles_and_maps(figure, 7)
    assert titles[:3] == ["image", "ground truth", "prediction"]
    labels = [CLASSES.index(title.removeprefix("recalibration, ")) for title in titles[3:]]
    everything = np.append(rows[0].truth, rows[0].segmentation.labels)
    counts = [(everything == label).sum() for label in labels]
    assert counts == sorted((np.bincount(everything, minlength=256)[:255]), reverse=True)[:4]
    assert (np.stack(maps) == net(rows[0].image, scores=True).recalibration[labels]).all()
    bound = max(abs(values).max() for values in maps)
    assert figure.axes[3].get_images()[0].get_clim() == (limits or (-bound, bound))
    assert figure.axes[-1].get_ylabel() == "recalibration"


def test_layouts_that_do_not_fit_the_nets_are_refused(demo):
    wanted = {
        "weights": (segmenter("max"), "shows one net: leave out the baseline"),
        "comparison": (None, "give the other one as the baseline"),
        "winner": (segmenter("average"), "a baseline that merges the scales 1 0.5 by max"),
        "recalibration": (None, "head recalibrates the scores"),
        "mosaic": (None, "'mosaic' is not known; it is one of weights, comparison"),
    }
    for layout, (baseline, sentence) in wanted.items():
        with pytest.raises(InputError, match=sentence):
            figure_rows(items(demo)[:1], layout, segmenter(), baseline)
    with pytest.raises(InputError, match="the net has none"):
        figure_rows(items(demo)[:1], "winner", segmenter("average"), segmenter("max"))


def test_tool_writes_a_png(tmp_path, demo):
    words = ["--data-root", demo, "--pad-to", "65", "--layout", "winner", "--ids", "val_0001"]
    for option, merge in (("--model", "attention"), ("--baseline", "max")):
        net = segmenter(merge).model
        save_weights(tmp_path / f"{merge}.pth", net.state_dict(), {"model": net.config(), "pool5a": False})
        words += [option, tmp_path / f"{merge}.pth"]
    words += ["--list", demo / "ImageSets/Segmentation/val.txt", "--out", tmp_path / "attention.png"]
    done = run_tool("show_attention", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "attention.png")
    picture = np.asarray(Image.open(tmp_path / "attention.png").convert("RGB"))
    assert picture.std() > 10


@pytest.mark.parametrize(
    ("suffix", "begins"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".JPG", b"\xff\xd8")]
)
def test_a_figure_is_written_in_the_format_of_its_suffix(tmp_path, suffix, begins):
    figure = attention_figure([row(20, 30, 0)], (1, 0.5), NAMES)
    save_figure(tmp_path / f"figure{suffix}", figure)
    assert (tmp_path / f"figure{suffix}").read_bytes().startswith(begins)


def test_text_in_vector_figures_is_text(tmp_path):
    """SVG has it as elements; PDF as 16-bit characters of an embedded TrueType font, with spacing between them."""
    figure = attention_figure([row(20, 30, 2)], (1, 0.5), NAMES)
    for suffix in (".svg", ".pdf"):
        save_figure(tmp_path / f"figure{suffix}", figure)
    in_svg = "".join(ElementTree.parse(tmp_path / "figure.svg").getroot().itertext())
    document = (tmp_path / "figure.pdf").read_bytes()
    assert b"/FontFile2" in document and b"/ToUnicode" in document
    parts = map(zlib.decompress, re.findall(rb"stream\r?\n(x.*?)\r?\nendstream", document, re.DOTALL))
    (drawn,) = (part for part in parts if b"TJ" in part)
    in_pdf = b"".join(re.findall(rb"\((.*?)\)", drawn)).replace(b"\0", b"").decode()
    for words in ("ground truth", "prediction", "weights, scale 0.5", "attention weight", "cat", "ignored"):
        assert words in in_svg and words in in_pdf


def test_a_figure_of_another_suffix_is_refused(tmp_path):
    figure = attention_figure([row(20, 30, 0)], (1, 0.5), NAMES)
    with pytest.raises(InputError, match=r"figure.docx: a figure's name ends in one of .png .pdf .svg"):
        save_figure(tmp_path / "figure.docx", figure)


def test_the_resolution_is_pixels_per_inch(tmp_path):
    figure = attention_figure([row(20, 30, 0)], (1, 0.5), NAMES)
    widths = []
    for dpi in (50, 100):
        save_figure(tmp_path / "figure.png", figure, dpi)
        widths.append(Image.open(tmp_path / "figure.png").width)
    assert widths[1] == pytest.approx(2 * widths[0], abs=2)
