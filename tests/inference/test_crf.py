"""The dense CRF against exact mean field and known properties."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from a2s_repro.errors import InputError
from a2s_repro.inference.crf import CRF, PARAMETERS, dense_crf, refine
from a2s_repro.ops import _native


def scene(height: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image with a dark and a bright half, and noisy scores that favour class 0 in the dark half, else class 1."""
    random = np.random.default_rng(seed)
    half = np.arange(width) < width // 2
    image = np.where(half[:, None], 60, 90) + random.integers(-4, 5, (height, width, 3))
    scores = random.normal(size=(classes, height, width))
    scores[0, :, half] += 0.5
    scores[1 % classes, :, ~half] += 0.5
    return image.astype(np.uint8), scores.astype(np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) - scores.max(0))
    return powers / powers.sum(0)


def exact_mean_field(image: np.ndarray, scores: np.ndarray, crf: CRF) -> np.ndarray:
    """Mean field with exact Gaussian sums over all pairs of pixels, in float64."""
    position = np.indices(image.shape[:2]).reshape(2, -1).T
    colour = image.reshape(-1, 3).astype(float)
    kernels = []
    for weight, features in (
        (crf.pos_w, position / crf.pos_xy_std),
        (crf.bi_w, np.concatenate([position / crf.bi_xy_std, colour / crf.bi_rgb_std], axis=1)),
    ):
        distance = np.square(features[:, None] - features[None]).sum(-1)
        gaussian = np.exp(-distance / 2)
        kernels.append(weight * gaussian / gaussian.sum(1, keepdims=True))
    unary = scores.reshape(len(scores), -1)
    marginals = softmax(unary)
    for _ in range(crf.iterations):
        marginals = softmax(unary + sum(marginals @ kernel.T for kernel in kernels))
    return marginals.reshape(scores.shape)


@pytest.mark.parametrize(
    "crf",
    [CRF(), CRF(iterations=1), CRF(bi_w=0), CRF(pos_w=0), CRF(bi_xy_std=8, bi_rgb_std=20), CRF(pos_xy_std=1.5, bi_w=1)],
    ids=str,
)
def test_the_lattice_approximates_the_exact_gaussians(crf: CRF) -> None:
    """The lattice is piecewise linear: single marginals differ by up to 0.05, on average by less than 0.005."""
    image, scores = scene(20, 16, 3)
    difference = np.abs(dense_crf(image, scores, **vars(crf)) - exact_mean_field(image, scores, crf))
    assert difference.max() < 0.06 and difference.mean() < 0.005
    moved = np.abs(softmax(scores) - exact_mean_field(image, scores, crf))
    assert difference.mean() < moved.mean() / 10


def test_labels_follow_the_edge_of_the_image() -> None:
    image, scores = scene(24, 20, 4)
    truth = np.broadcast_to(np.where(np.arange(20) < 10, 0, 1), (24, 20))
    assert (scores.argmax(0) == truth).mean() < 0.6
    assert (refine(image, scores, CRF()) == truth).mean() > 0.98


@pytest.mark.parametrize("classes", [1, 2, 7, 8, 21, 40, 81])
def test_marginals_are_probabilities_for_any_number_of_classes(classes: int) -> None:
    marginals = dense_crf(*scene(9, 11, classes))
    assert marginals.shape == (classes, 9, 11) and marginals.dtype == np.float32
    assert marginals.min() >= 0
    assert marginals.sum(0) == pytest.approx(1, abs=1e-6)


def test_zero_iterations_give_the_softmax() -> None:
    """Values below e^-20 times the largest become 0, as in the authors' fast_exp."""
    image, scores = scene(9, 11, 21)
    scores *= 8
    assert dense_crf(image, scores, iterations=0) == pytest.approx(softmax(scores), abs=3e-7)
    scores[:] = 0
    scores[3] = 21
    assert np.array_equal(dense_crf(image, scores, iterations=0)[:, 0, 0], np.arange(21) == 3)


def test_classes_are_interchangeable() -> None:
    image, scores = scene(20, 16, 6)
    order = np.array([3, 0, 5, 1, 4, 2])
    assert dense_crf(image, scores[order]) == pytest.approx(dense_crf(image, scores)[order], abs=2e-6)


def test_a_tie_gives_the_first_class() -> None:
    image, _ = scene(4, 4, 1)
    assert not refine(image, np.zeros((5, 4, 4), np.float32), CRF()).any()


def test_huge_scores_stay_finite() -> None:
    image, scores = scene(8, 8, 3)
    limit = np.finfo(np.float32).max
    scores[:, 0, 0] = [limit, -limit, 0]
    marginals = dense_crf(image, scores)
    assert np.isfinite(marginals).all() and marginals[0, 0, 0] == 1


def test_vertices_of_padding_pixels_take_part_in_the_blur() -> None:
    """Krähenbühl and Koltun's program pads the pixels to a multiple of 4 with pixels at feature 0, and the blur passes
    through their vertices. Expected values from pydensecrf2; without these vertices the third pixel has 0.2807."""
    image = np.array([[[11, 2, 3], [11, 4, 4], [4, 3, 9], [0, 4, 3], [2, 10, 8]]], np.uint8)
    scores = np.array([[[1.5, 2, -0.25, 2, -0.25]], [[-0.75, 1.5, 1.25, -1.25, -1.75]]], np.float32)
    theirs = [0.99433112, 0.96147889, 0.4959754, 0.99954247, 0.9902631]
    assert dense_crf(image, scores, iterations=1)[0, 0] == pytest.approx(theirs, abs=1e-6)


def test_results_are_bit_identical_for_any_number_of_threads() -> None:
    image, scores = scene(75, 91, 21)
    alone = dense_crf(image, scores, threads=1)
    for threads in (2, 5):
        assert np.array_equal(dense_crf(image, scores, threads=threads), alone)
    with ThreadPoolExecutor(3) as pool:
        for marginals in pool.map(lambda _: dense_crf(image, scores, threads=1), range(6)):
            assert np.array_equal(marginals, alone)


def test_views_and_copies_give_the_same() -> None:
    image, scores = scene(20, 16, 3)
    flipped = dense_crf(image[:, ::-1, ::-1], scores[:, :, ::-1])
    copied = dense_crf(image[:, ::-1, ::-1].copy(), scores[:, :, ::-1].copy())
    assert np.array_equal(flipped, copied)


IMAGE, SCORES = scene(4, 5, 3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": IMAGE.astype(np.float32)}, r"image must be \(H, W, 3\) uint8, not \(4, 5, 3\) float32"),
        ({"image": IMAGE[..., 0]}, r"not \(4, 5\) uint8"),
        ({"scores": SCORES.transpose(1, 2, 0)}, r"scores must be \(C, 4, 5\) float32.*not \(4, 5, 3\)"),
        ({"scores": SCORES.astype(np.float64)}, "float64"),
        ({"scores": SCORES[:0]}, r"not \(0, 4, 5\)"),
        ({"image": IMAGE[:0], "scores": SCORES[:, :0]}, "must have 1 to"),
        ({"scores": np.where(SCORES > 0, np.nan, SCORES)}, "not finite"),
        ({"iterations": -1}, "iterations is -1"),
        ({"bi_w": np.inf}, "bi_w is inf"),
        ({"bi_rgb_std": 0}, "bi_rgb_std is 0; a standard deviation must be above 0"),
        ({"bi_rgb_std": 1e-6}, "too small for an image of this size: choose larger ones than .*bi_rgb_std=1e-06"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        dense_crf(**({"image": IMAGE, "scores": SCORES} | changes))


def test_parameters_are_parsed_from_words() -> None:
    assert CRF.parse([]) == CRF() == PARAMETERS["voc12_coco/attention3_esupv"]
    part = CRF.parse(["person_part/attention3_esupv", "iterations=5", "bi_w=2.5"])
    assert part == CRF(iterations=5, bi_w=2.5, bi_xy_std=19, bi_rgb_std=3)
    for word, sentence in {
        "voc12/attention9": "'voc12/attention9' is no model with known parameters",
        "sigma=3": "no parameter 'sigma'; there are iterations, pos_w",
        "bi_w=x": "'bi_w=x': the value must be a number",
        "iterations=1.5": "a whole number",
        "bi_xy_std=-1": "bi_xy_std is -1",
    }.items():
        with pytest.raises(InputError, match=sentence):
            CRF.parse([word])


def test_the_native_library_is_opened_once(tmp_path, monkeypatch):
    """A second call does not need the file."""
    library = Path(shutil.copy(_native.LIBRARY_DIR / "liba2s_crf.so", tmp_path))
    monkeypatch.setattr("a2s_repro.ops._native.LIBRARY_DIR", tmp_path)
    first = dense_crf(IMAGE, SCORES)
    library.unlink()
    np.testing.assert_array_equal(dense_crf(IMAGE, SCORES), first)


def test_a_missing_native_library_is_named(tmp_path, monkeypatch):
    """And no parameters are blamed."""
    monkeypatch.setattr("a2s_repro.ops._native.LIBRARY_DIR", tmp_path)
    with pytest.raises(InputError, match=r"dense CRF cannot run, because .*liba2s_crf.so was not built: run `make"):
        dense_crf(IMAGE, SCORES)


def test_a_library_that_does_not_load_is_named(tmp_path, monkeypatch):
    (tmp_path / "liba2s_crf.so").touch()
    monkeypatch.setattr("a2s_repro.ops._native.LIBRARY_DIR", tmp_path)
    with pytest.raises(InputError, match=r"dense CRF cannot run, because .*liba2s_crf.so does not load: .*file too"):
        dense_crf(IMAGE, SCORES)
