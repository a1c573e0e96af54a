"""Attention weights by object size, checked on painted objects."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.inference.attention_by_size import SMALLEST, AttentionBySize
from a2s_repro.inference.evaluation import evaluate
from a2s_repro.models import DeepLabLargeFOV, ShareNet, Widths
from tests.processes import run_tool


def test_an_object_is_a_component_of_a_class():
    """Squares that touch at a corner are one object; another class, a gap or ignored pixels separate objects."""
    truth = np.full((40, 60), 255, np.uint8)
    truth[:10, :10] = truth[10:20, 10:20] = 3
    truth[:10, 10:20] = 1
    truth[:10, 30:40] = 3
    truth[30:37, :9] = 3  # 63 pixels, less than a cell of the grid
    measured = AttentionBySize((1, 0.5))
    measured.update(truth, np.full((2, 40, 60), 0.5))
    assert measured.labels.tolist() == [1, 3, 3]
    assert measured.areas.tolist() == [100, 200, 100]
    assert SMALLEST == 64


def test_an_objects_weight_is_the_mean_over_its_pixels():
    truth = np.zeros((20, 30), np.uint8)
    truth[5:15, 5:25] = 2
    weights = torch.rand(2, 20, 30, generator=torch.Generator().manual_seed(0))
    measured = AttentionBySize((1, 0.5))
    measured.update(truth, weights.numpy())
    expected = [weights[:, torch.from_numpy(truth == label)].mean(1).tolist() for label in (0, 2)]
    np.testing.assert_allclose(measured.weights, expected, rtol=1e-6)


def drawn(areas, labels, weights) -> AttentionBySize:
    """Statistics of one image per object, each with a bar of the given area."""
    measured = AttentionBySize((1, 0.5))
    for area, label, weight in zip(areas, labels, weights, strict=True):
        truth = np.full((1, 2000), 255, np.uint8)
        truth[:, :area] = label
        measured.update(truth, np.full((2, 1, 2000), [[[weight]], [[1 - weight]]]))
    return measured


def test_correlations_are_spearmans():
    generator = np.random.default_rng(0)
    areas, labels = generator.integers(64, 200, 30), generator.integers(0, 2, 30)
    weights = generator.integers(0, 9, 30) / 8  # eighths, whose means over pixels are exact, so ties remain ties
    measured = drawn(areas, labels, weights)
    expected = spearmanr(areas, weights).statistic
    np.testing.assert_allclose(measured.correlation, [expected, -expected], atol=1e-12)
    of_classes = [labels == label for label in (0, 1)]
    within = sum(part.sum() * spearmanr(areas[part], weights[part]).statistic for part in of_classes) / 30
    np.testing.assert_allclose(measured.correlation_within_classes, [within, -within], atol=1e-12)


def test_size_is_separated_from_class():
    """Class 1 is small and has the small weights, but within each class weights fall with size."""
    measured = drawn([100, 110, 120, 1000, 1100, 1200], [1, 1, 1, 2, 2, 2], [0.3, 0.2, 0.1, 0.9, 0.8, 0.7])
    assert measured.correlation[0] > 0
    assert measured.correlation_within_classes[0] == pytest.approx(-1)
    assert measured.table().splitlines()[-1].split()[-2:] == ["-1.000", "+1.000"]


def test_quartiles_are_ordered_by_area():
    areas = [400, 100, 300, 200, 800, 700, 600, 500]
    measured = drawn(areas, [1] * 8, [area / 1000 for area in areas])
    assert [(part["smallest"], part["largest"], part["objects"]) for part in measured.quartiles()] == [
        (100, 200, 2),
        (300, 400, 2),
        (500, 600, 2),
        (700, 800, 2),
    ]
    assert measured.quartiles()[0]["weights"] == pytest.approx([0.15, 0.85])
    lines = measured.table().splitlines()
    assert lines[1].split() == ["100", "to", "200", "2", "0.1500", "0.8500"]
    assert lines[-2].split()[-2:] == ["+1.000", "-1.000"]


def test_correlation_is_0_without_objects_or_variation():
    measured = AttentionBySize((1, 0.5))
    assert (measured.quartiles(), measured.correlation.tolist()) == ([], [0, 0])
    even = drawn([100, 200], [1, 1], [0.5, 0.5])
    assert even.correlation.tolist() == even.correlation_within_classes.tolist() == [0, 0]


def test_the_tool_measures_a_net_with_attention(tmp_path):
    torch.manual_seed(0)
    data = make_demo_data(tmp_path / "demo", num_train=1, num_val=2)
    widths = Widths().scaled(1 / 32)
    model = ShareNet(len(CLASSES), (1, 0.5), widths=widths)
    save_weights(tmp_path / "final.pth", model.state_dict(), {"model": model.config(), "classes": list(CLASSES)})
    val = data / "ImageSets/Segmentation/val.txt"
    words = ["--model", tmp_path / "final.pth", "--data-root", data, "--list", val]
    words += ["--device", "cpu", "--pad-to", "161", "--attention-by-size", "--json", tmp_path / "val.json"]
    done = run_tool("evaluate", *words)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "val.json").read_text())["attention"]["by_size"]
    assert measured["objects"] == sum(part["objects"] for part in measured["quartiles"]) > 2
    assert "the same within classes" in done.stdout

    with pytest.raises(InputError, match="no attention weights to measure"):
        evaluate(DeepLabLargeFOV(len(CLASSES), widths=widths), read_list(val, data), pad_to=161, by_size=True)
