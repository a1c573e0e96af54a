"""Segmenter: images of any size and pixel format, single and batched, whole and tiled."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import a2s_repro
from a2s_repro import ops
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.images import read_label
from a2s_repro.data.normalization import subtract_mean
from a2s_repro.data.voc import palette
from a2s_repro.errors import InputError
from a2s_repro.inference.crf import CRF, refine
from a2s_repro.inference.pixels import as_bgr
from a2s_repro.inference.segmenter import Segmentation, Segmenter
from a2s_repro.models import DeepLab, DeepLabLargeFOV, RefineHead, ShareNet, Widths

CLASSES = ["background", "cat", "dog"]


def with_random_weights(model: DeepLab) -> DeepLab:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter)
    return model


def thin(model_class: type, *arguments, **options) -> DeepLab:
    """A thin net whose predictions vary over an image."""
    return with_random_weights(model_class(len(CLASSES), *arguments, widths=Widths().scaled(1 / 32), **options))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@contextmanager
def sizes_seen(segmenter: Segmenter) -> Iterator[list[tuple[int, int]]]:
    """Collects the sizes of the net's inputs within the block."""
    sizes: list[tuple[int, int]] = []
    hook = segmenter.model.conv1_1.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    segmenter.bytes_per_pixel  # noqa: B018  computed on the meta device, before sizes are collected
    sizes.clear()
    yield sizes
    hook.remove()


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(thin(ShareNet, (1, 0.5)), CLASSES, pad_to=65)


def assert_same(first: Segmentation, second: Segmentation) -> None:
    assert np.array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.weights, second.weights)


def test_all_forms_of_the_same_pixels_give_the_same_result(segmenter: Segmenter, tmp_path: Path) -> None:
    bgr = picture(50, 70)
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    cv2.imwrite(str(tmp_path / "x.png"), bgr)
    expected = segmenter(bgr)
    assert expected.labels.shape == (50, 70) and len(np.unique(expected.labels)) > 1
    forms = [segmenter(tmp_path / "x.png"), segmenter(str(tmp_path / "x.png"), order="rgb")]
    forms += [segmenter(rgb, order="rgb"), segmenter(torch.from_numpy(bgr).permute(2, 0, 1))]
    for form in forms:
        assert_same(form, expected)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (20, 30, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_alpha_and_16_bits_are_read_as_from_a_file(shape: tuple, dtype: type, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    cv2.imwrite(str(tmp_path / "x.png"), pixels)
    read = as_bgr(tmp_path / "x.png")
    assert read.shape == (20, 30, 3) and read.dtype == np.uint8
    assert np.array_equal(as_bgr(pixels), read)
    channels_first = torch.from_numpy(pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
    assert np.array_equal(as_bgr(channels_first), read)


def test_a_cmyk_photograph_is_read(tmp_path: Path) -> None:
    rgb = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    assert np.abs(as_bgr(tmp_path / "x.jpg").astype(int) - rgb[..., ::-1]).max() < 8  # loss of the conversions


def test_a_result_is_saved_drawn_and_printed(segmenter: Segmenter, tmp_path: Path) -> None:
    bgr = picture(50, 70)
    result = segmenter(bgr, order="bgr", scores=True)
    result.save(tmp_path / "labels.png")
    assert np.array_equal(read_label(tmp_path / "labels.png", len(CLASSES)), result.labels)
    result.save(tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as arrays:
        assert set(arrays) == {"labels", "weights", "scores"}
        np.testing.assert_array_equal(arrays["scores"], result.scores)
    with pytest.raises(InputError, match=r"labels\.jpg: give a \.png for the labels, or an \.npz"):
        result.save(tmp_path / "labels.jpg")
    with pytest.raises(InputError, match=r"all\.npz/labels\.png cannot be written"):
        result.save(tmp_path / "all.npz" / "labels.png")

    blended = np.asarray(result.overlay()).astype(int)
    expected = (bgr[..., ::-1].astype(int) + palette()[result.labels]) / 2
    assert np.abs(blended - expected).max() <= 0.5
    with pytest.raises(InputError, match="holds no image to draw on"):
        segmenter.start([bgr])()[0].overlay()


def test_the_repr_of_a_result_is_short() -> None:
    labels = np.repeat(np.array([0, 2], np.uint8), (60, 40)).reshape(10, 10)
    named = Segmentation(labels, weights=np.zeros((2, 10, 10), np.float32), classes=CLASSES)
    assert repr(named) == "<Segmentation 10x10: background 60 %, dog 40 %; attention over 2 scales>"
    every = Segmentation(np.arange(9, dtype=np.uint8).reshape(3, 3), scores=np.zeros((9, 3, 3), np.float32))
    assert repr(every).endswith("class 0 11 %, class 1 11 %, class 2 11 %, class 3 11 %, 5 more; scores>")


@pytest.mark.parametrize(
    ("pixels", "given"),
    [
        (np.zeros((4, 5, 3), np.float32), r"\(4, 5, 3\) float32"),
        (np.zeros((4, 5, 2), np.uint8), r"\(4, 5, 2\) uint8"),
        (np.zeros((0, 5, 3), np.uint8), r"\(0, 5, 3\) uint8"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), r"\(1, 3, 4, 5\) uint8"),
        (torch.zeros(3, 4, 5), r"\(3, 4, 5\) float32"),
    ],
)
def test_invalid_pixels_are_refused(pixels: np.ndarray | torch.Tensor, given: str) -> None:
    with pytest.raises(InputError, match=f"an image is given as {given}; give uint8"):
        as_bgr(pixels)
    with pytest.raises(InputError, match="order is 'bgrr'"):
        as_bgr(np.zeros((4, 5), np.uint8), "bgrr")


def test_a_batch_gives_the_results_of_single_images(segmenter: Segmenter) -> None:
    """Images of the same padded size share a pass, in which convolutions may sum in another order."""
    images = [picture(*size, seed) for seed, size in enumerate([(1, 1), (33, 100), (65, 65), (20, 97), (1, 65)])]
    together = segmenter(images, scores=True)
    for image, batched in zip(images, together, strict=True):
        alone = segmenter(image, scores=True)
        assert batched.labels.shape == image.shape[:2]
        assert batched.weights.shape == (2, *image.shape[:2])
        np.testing.assert_allclose(batched.scores, alone.scores, rtol=1e-4, atol=1e-4 * np.abs(alone.scores).max())
    assert segmenter([]) == []


def test_scores_are_returned_on_request() -> None:
    head = RefineHead()
    segmenter = Segmenter(thin(ShareNet, (1, 0.5), head=head), pad_to=65)
    image = picture(40, 60)
    labels_alone, complete = segmenter(image), segmenter(image, scores=True)
    assert labels_alone.scores is None and labels_alone.recalibration is None
    assert_same(labels_alone, complete)
    assert complete.scores.dtype == np.float32
    assert np.array_equal(complete.scores.argmax(0), complete.labels)
    assert complete.recalibration.shape == complete.scores.shape == (3, 40, 60)
    assert 0 <= complete.recalibration.min() < complete.recalibration.max() <= 1


@pytest.mark.parametrize(("scales", "step"), [((1,), 8), ((1, 0.5), 16), ((1, 0.75, 0.5), 32)])
def test_images_are_padded_to_the_grid_of_the_scales(scales: tuple, step: int) -> None:
    model = thin(ShareNet, scales) if len(scales) > 1 else thin(DeepLabLargeFOV)
    segmenter = Segmenter(model, pad_to=513)
    assert segmenter.padded_size(picture(1, 513)) == (513, 513)
    assert segmenter.padded_size(picture(514, 1000)) == (513 + step, (999 // step + 1) * step + 1)
    assert Segmenter(model, pad_to=1).padded_size(picture(1, 2)) == (1, 1 + step)


def test_a_dense_crf_refines_the_labels_but_not_the_scores(segmenter: Segmenter) -> None:
    image, crf = picture(40, 60), CRF(iterations=2)
    plain, refined = segmenter(image, scores=True), segmenter(image, scores=True, crf=crf)
    assert np.array_equal(refined.labels, refine(image[..., ::-1], plain.scores, crf))
    assert np.array_equal(refined.scores, plain.scores)
    assert segmenter(image, crf=crf).scores is None


def test_softmax_is_averaged_over_short_sides() -> None:
    model = thin(ShareNet, (1, 0.5)).eval()
    image = picture(40, 60)
    segmentation = Segmenter(model, short_sides=(30, 50))(image, scores=True)
    mean = 0
    for rows, columns in ((33, 49), (65, 81)):  # 30 x 45 and 50 x 75, rounded up to 16k + 1
        resized = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
        with torch.no_grad():
            scores = model(torch.from_numpy(subtract_mean(resized))[None]).scores
        mean = mean + ops.interp(scores, (40, 60)).softmax(1)[0] / 2
    np.testing.assert_allclose(np.exp(segmentation.scores), mean, atol=1e-6)
    assert np.array_equal(segmentation.labels, mean.argmax(0))
    np.testing.assert_allclose(segmentation.weights.sum(0), 1, atol=1e-6)


def test_softmax_is_averaged_over_factors() -> None:
    """CSAILVision's evaluation of 2017: scipy's zoom of the normalised image, bilinear with the corners aligned. Sides
    are its rounded ones, raised to the net's grid."""
    model = thin(ShareNet, (1, 0.5)).eval()
    image = picture(40, 60)
    segmentation = Segmenter(model, factors=(0.5, 1, 1.5))(image, scores=True)
    mean, normalised = 0, torch.from_numpy(subtract_mean(image))[None]
    for size in ((33, 33), (49, 65), (65, 97)):  # 20 x 30, 40 x 60, 60 x 90, rounded up to 16k + 1
        resized = torch.nn.functional.interpolate(normalised, size, mode="bilinear", align_corners=True)
        with torch.no_grad():
            scores = model(resized).scores
        mean = mean + ops.interp(scores, (40, 60)).softmax(1)[0] / 3
    np.testing.assert_allclose(np.exp(segmentation.scores), mean, atol=1e-5)
    assert (segmentation.labels == mean.argmax(0).numpy()).mean() > 0.99
    np.testing.assert_allclose(segmentation.weights.sum(0), 1, atol=1e-6)


def test_the_longer_side_of_a_resized_image_is_at_most_1000() -> None:
    segmenter = Segmenter(thin(DeepLabLargeFOV), short_sides=(100,))
    with sizes_seen(segmenter) as sizes:
        assert segmenter(picture(9, 120)).labels.shape == (9, 120)
    assert sizes == [(81, 1001)]  # 75 x 1000, rounded up to 8k + 1


def test_memory_is_estimated_from_the_largest_layer() -> None:
    """The largest layer is conv1_2 with 64 input and 64 output channels of 4 bytes; the estimate doubles them."""
    assert Segmenter(DeepLabLargeFOV(21)).bytes_per_pixel == 2 * (64 + 64) * 4


def test_an_image_too_large_for_the_memory_runs_in_tiles() -> None:
    """The receptive field of a cell reaches 209 pixels, and pixels are interpolated between cells 8 pixels apart, so
    tiling changes only pixels within 217 pixels of an inner tile edge."""
    image, model, reach = picture(449, 961), thin(DeepLabLargeFOV), 209 + 8
    whole = Segmenter(model, pad_to=65)
    tiled = Segmenter(model, pad_to=65, memory=whole.bytes_per_pixel * 641 * 641 / 1e9)
    with sizes_seen(tiled) as sizes:
        segmentation = tiled(image, scores=True)
    assert sizes == [(449, 641), (449, 641)]  # from columns 0 and 320
    expected = whole(image, scores=True)
    for columns in (np.s_[: 641 - reach], np.s_[320 + reach :]):
        tiled_scores, whole_scores = segmentation.scores[..., columns], expected.scores[..., columns]
        np.testing.assert_allclose(tiled_scores, whole_scores, rtol=1e-4, atol=1e-5 * np.abs(whole_scores).max())
        assert (segmentation.labels[..., columns] == expected.labels[..., columns]).mean() > 0.9999
    assert (segmentation.labels == expected.labels).mean() > 0.9


def test_load_returns_a_segmenter(segmenter: Segmenter, tmp_path: Path) -> None:
    meta = {"model": segmenter.model.config(), "pool5a": False, "classes": CLASSES}
    save_weights(tmp_path / "x.safetensors", segmenter.model.state_dict(), meta)
    loaded = a2s_repro.load(tmp_path / "x.safetensors")
    assert loaded.classes == CLASSES and loaded.pad_to == 513 and loaded.meta["model"] == meta["model"]
    image = picture(20, 30)
    loaded.pad_to = segmenter.pad_to
    segmenter.model.to(memory_format=torch.channels_last)  # as in a loaded net, for equal rounding
    assert_same(loaded(image), segmenter(image))


@pytest.mark.filterwarnings("ignore:this processor has no units")
def test_bfloat16_gives_nearly_the_same_in_float32_maps(segmenter: Segmenter) -> None:
    """Scores agree within 5 % of the largest (2.9 % measured), because each of 17 layers rounds to 8 bits."""
    image = picture(60, 90)
    exact = segmenter(image, scores=True)
    rounded = dataclasses.replace(segmenter, precision="bf16")(image, scores=True)
    assert rounded.scores.dtype == rounded.weights.dtype == np.float32
    deviation = abs(rounded.scores - exact.scores).max() / abs(exact.scores).max()
    assert 0 < deviation < 0.05


def test_invalid_options_are_refused() -> None:
    model = thin(DeepLabLargeFOV)
    for options, sentence in (
        ({"pad_to": 0}, "pad_to is 0"),
        ({"short_sides": (300, 0)}, r"short sides \[300, 0\]"),
        ({"factors": (1, 0)}, r"the factors are \[1, 0\]; they must be positive"),
        ({"factors": (1,), "short_sides": (300,)}, "without short sides"),
        ({"memory": 0}, "memory is 0 GB"),
        ({"precision": "int8"}, "precision 'int8' is not known"),
    ):
        with pytest.raises(InputError, match=sentence):
            Segmenter(model, **options)


def test_paths_bytes_pillow_images_and_arrays_give_one_result(segmenter: Segmenter, tmp_path: Path) -> None:
    image = Image.fromarray(picture(40, 60)[..., ::-1])
    image.save(tmp_path / "x.png")
    expected = segmenter(tmp_path / "x.png")
    rgb = np.asarray(image)
    for form in (image, image.convert("RGBA"), (tmp_path / "x.png").read_bytes()):
        assert_same(segmenter(form), expected)
    assert_same(segmenter(torch.from_numpy(rgb.copy()).permute(2, 0, 1), order="rgb"), expected)
    assert np.array_equal(as_bgr(image.convert("L")), as_bgr(np.asarray(image.convert("L"))))


def test_pixels_of_unknown_order_are_taken_as_bgr_with_a_warning(segmenter: Segmenter) -> None:
    with pytest.warns(UserWarning, match=r'pixels are taken as B, G, R.*give order="bgr", or order="rgb"'):
        given = segmenter(picture(9, 9))
    assert_same(given, segmenter(picture(9, 9), order="bgr"))


@pytest.mark.parametrize("image", [None, 3, Image.new("F", (4, 4)), b"no picture"])
def test_other_things_than_images_are_refused(segmenter: Segmenter, image: object) -> None:
    with pytest.raises(InputError, match=r"given as|mode F|is not an image"):
        segmenter(image)


def test_a_photograph_is_segmented_upright_and_the_result_says_so(segmenter: Segmenter, tmp_path: Path) -> None:
    image, exif = Image.fromarray(picture(40, 60)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    result = segmenter(tmp_path / "x.png")
    assert (result.labels.shape, result.orientation) == ((60, 40), 6)
    assert_same(result, dataclasses.replace(segmenter(image.rotate(-90, expand=True)), orientation=6))


def test_scores_that_are_not_finite_are_an_error() -> None:
    segmenter = Segmenter(thin(DeepLabLargeFOV), pad_to=65)
    with torch.no_grad():
        next(segmenter.model.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="scores are not finite: its training diverged"):
        segmenter(picture(9, 9), order="bgr")
