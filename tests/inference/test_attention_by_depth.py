"""Attention weights by depth, checked on painted objects."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from a2s_repro.inference.attention_by_depth import AttentionByDepth


def test_depth_is_the_distance_to_the_nearest_pixel_of_another_label():
    """A square of 9 x 9 that touches another class and the image's border, which is no edge; label 0 is excluded."""
    truth = np.zeros((20, 20), np.uint8)
    truth[5:14, 11:] = 1
    truth[14:, 11:] = 2
    measured = AttentionByDepth((1, 0.5), excluded=[0])
    measured.update(truth, np.full((2, 20, 20), 0.5))
    pixels = measured.counts.sum(2)
    assert pixels[0, :7].tolist() == [0, 25 + 14, 21 + 12, 17 + 10, 13 + 8, 5 + 6, 4]  # of labels 1 and 2
    assert pixels.sum(1).tolist() == [9 * 9 + 6 * 9] * 2
    assert measured.counts[:, :, 500].sum() == measured.counts.sum()


def painted() -> tuple[np.ndarray, np.ndarray]:
    """A bar whose columns have the depths 1 to 9, 10 and 9 to 1, and weights that fall with depth, with noise."""
    truth = np.zeros((12, 21), np.uint8)
    truth[:, 1:20] = 3
    depths = np.minimum(np.arange(21), 20 - np.arange(21))
    noise = np.random.default_rng(0).integers(0, 300, (12, 21))
    return truth, (760 - 60 * depths + noise) / 1000


def test_the_correlation_is_spearmans_over_all_pixels():
    truth, weights = painted()
    measured = AttentionByDepth((1, 0.5), excluded=[0])
    measured.update(truth, np.stack([weights, 1 - weights]))
    depths = np.broadcast_to(np.minimum(np.arange(21), 20 - np.arange(21)), truth.shape)
    expected = spearmanr(depths[truth == 3], weights[truth == 3]).statistic
    assert -0.95 < expected < -0.5
    np.testing.assert_allclose(measured.correlation, [expected, -expected], atol=1e-12)
    assert measured.table().splitlines()[-1].split()[-2:] == [f"{expected:+.3f}", f"{-expected:+.3f}"]


def test_ignored_pixels_are_an_edge_and_are_not_counted():
    truth, weights = painted()
    truth[5] = 255
    measured = AttentionByDepth((1,), excluded=[0])
    measured.update(truth, weights[None])
    assert measured.counts.sum() == 11 * 19
    assert measured.counts[0].any(1).nonzero()[0].tolist() == [1, 2, 3, 4, 5, 6]


def test_bands_hold_mean_weights():
    truth = np.zeros((1, 41), np.uint8)
    truth[:, 1:40] = 1
    depths = np.minimum(np.arange(41), 40 - np.arange(41))
    measured = AttentionByDepth((1, 0.5), excluded=[0])
    measured.update(truth, np.stack([depths, 40 - depths])[:, None] / 40)
    bands = measured.bands()
    assert [(band["from"], band["below"], band["pixels"]) for band in bands] == [
        (1, 3, 4), (3, 6, 6), (6, 10, 8), (10, 15, 10), (15, 20, 10), (20, 30, 1),
    ]  # fmt: skip
    assert bands[0]["weights"] == pytest.approx([1.5 / 40, 1 - 1.5 / 40])
    assert measured.summary() == {"correlation": pytest.approx([1, -1]), "bands": bands}
    assert measured.table().splitlines()[1].split() == ["1", "to", "3", "4", "0.0375", "0.9625"]


def test_a_label_without_an_edge_and_constant_weights_give_nothing():
    measured = AttentionByDepth((1, 0.5))
    measured.update(np.full((4, 5), 2, np.uint8), np.full((2, 4, 5), 0.5))
    assert (measured.bands(), measured.correlation.tolist()) == ([], [0, 0])
    measured.update(np.repeat(np.uint8([[1, 2]]), 2, 0), np.full((2, 2, 2), 0.5))
    assert (measured.counts.sum(), measured.correlation.tolist()) == (8, [0, 0])
