"""Caffe's ImageSegData stream with recorded draws, and this package's stream and loader."""

import shutil
import subprocess
import sys
import tempfile
from contextlib import closing

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from a2s_repro.data.cache import decode_all
from a2s_repro.data.image_seg import (
    Draw,
    RandomStream,
    SegmentationDataset,
    loader,
    rescale,
    scale_factor,
    transform,
)
from a2s_repro.data.images import read_image, read_pair
from a2s_repro.data.lists import Item, read_list
from a2s_repro.data.normalization import (
    MEAN_BGR,
    NORMALIZATIONS,
    TORCHVISION_MEAN_RGB,
    TORCHVISION_STD_RGB,
    Normalization,
    net_input,
)
from a2s_repro.errors import InputError

CROP = 65
CAFFE = NORMALIZATIONS["caffe"]
ON_GPU = (pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.fixture(scope="module")
def recorded(golden):
    return np.load(golden / "data" / "stream.npz")


@pytest.fixture(scope="module")
def items(golden):
    return read_list(golden / "data/files/list.txt", golden / "data/files")


class RecordedStream:
    """Recorded draws of the authors' Caffe; a recorded offset is smaller than the modulus, so it serves as the word."""

    def __init__(self, recorded):
        self.recorded = recorded

    def batch(self, k):
        names = ("index", "mirror", "h_off", "w_off")
        return [Draw(*(int(self.recorded[name][k, slot]) for name in names)) for slot in range(3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_stream_is_caffes_bit_for_bit(recorded, items, workers):
    dataset = SegmentationDataset(items, num_classes=5, crop=CROP)
    batches = list(loader(dataset, RecordedStream(recorded), start=0, num_batches=12, workers=workers))
    assert len(batches) == 12
    for k, batch in enumerate(batches):
        assert (batch.index.numpy() == recorded["index"][k]).all()
        assert (np.bincount(batch.label.numpy().ravel(), minlength=256) == recorded["label_hist"][k]).all()
        assert (batch.image.numpy().astype(np.float64).sum((1, 2, 3)) == recorded["data_sum"][k]).all()
        if k < 4:
            assert (batch.image.numpy() == recorded["data_first4"][k]).all()
            assert (batch.label.numpy() == recorded["label_first4"][k, :, 0]).all()


def test_test_phase_crops_the_centre(recorded, items):
    for k, expected in enumerate(recorded["test_data_first3"]):
        image = read_image(items[k].image)
        assert (transform(image, np.zeros(image.shape[:2], np.uint8), CROP, CAFFE, None)[0] == expected).all()


def test_an_item_without_label_has_only_ignored_pixels(recorded, items):
    for k, expected in enumerate(recorded["test_label_values"][:3]):
        image, label = read_pair(items[k]._replace(label=None), num_classes=5)
        assert label.shape == image.shape[:2]
        assert (label == expected).all()


@pytest.mark.parametrize("number", [1, 3, 4, 8])
def test_jpeg_pixels_equal_the_recorded_ones(recorded, items, number):
    assert (read_image(items[number].image) == recorded[f"decoded_bgr_{number}"]).all()


def test_mean_is_subtracted_in_float32(recorded):
    assert MEAN_BGR.dtype == np.float32
    assert (recorded["mean_bgr"] == MEAN_BGR).all()


def test_torchvision_normalization():
    """Channels are R, G, B; each is (x / 255 - mean) / std."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = np.random.default_rng(0).integers(256, size=(5, 4, 3), dtype=np.uint8)
    pixels = NORMALIZATIONS["torchvision"](image)
    assert pixels.dtype == np.float32 and pixels.flags.c_contiguous
    expected = ((image[:, :, ::-1] / 255 - mean) / std).transpose(2, 0, 1)
    assert np.abs(pixels - expected).max() < 1e-6


def in_numpy(name: str, image: np.ndarray) -> np.ndarray:
    """The normalised image (H, W, 3), in float32 as NumPy rounds it."""
    if name == "caffe":
        return image.astype(np.float32) - MEAN_BGR
    rgb = image[:, :, ::-1].astype(np.float32) / np.float32(255)
    return (rgb - TORCHVISION_MEAN_RGB) / TORCHVISION_STD_RGB


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_inputs_are_normalised_padded_and_mirrored_to_the_bit(name, device):
    """Every grey level of every channel, in images of several sizes, against the same steps on the host."""
    levels = np.arange(256, dtype=np.uint8)
    colours = np.stack([np.roll(levels, 85 * channel) for channel in range(3)], -1)
    images = [colours.reshape(rows, -1, 3) for rows in (8, 16)]
    sizes, pixels = [image.shape[:2] for image in images], np.full((2, 17, 33, 3), 9, np.uint8)
    expected = np.zeros((2, 17, 33, 3), np.float32)
    for canvas, result, image in zip(pixels, expected, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
        result[: image.shape[0], : image.shape[1]] = in_numpy(name, image)
    pixels[1], expected[1] = pixels[1, :, ::-1].copy(), expected[1, :, ::-1].copy()
    ours = net_input(torch.from_numpy(pixels).to(device), sizes, NORMALIZATIONS[name], (False, True))
    assert ours.is_contiguous(memory_format=torch.channels_last) and ours.dtype == torch.float32
    assert (ours.cpu().numpy() == expected.transpose(0, 3, 1, 2)).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_deliver_a_byte_per_value(items, workers):
    """A quarter of the bytes of the net's input; the loader finishes them on the net's device."""
    dataset = SegmentationDataset(items, num_classes=5, crop=CROP)
    crop, sample = dataset.crop_of(Draw(2, 1, 7, 9)), dataset[Draw(2, 1, 7, 9)]
    assert crop.pixels.dtype == crop.label.dtype == torch.uint8 and crop.mirrored
    assert 4 * crop.pixels.nbytes == sample.image.nbytes
    (batch,) = loader(dataset, RandomStream(len(items), 2, seed=0), 0, 1, workers)
    for index, draw in enumerate(RandomStream(len(items), 2, seed=0).batch(0)):
        assert torch.equal(batch.image[index], dataset[draw].image)
        assert torch.equal(batch.label[index], dataset[draw].label)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_a_loader_for_a_gpu_gives_what_one_for_the_cpu_gives(items, device):
    """The host does not wait for the copies, which lie in pinned memory."""
    dataset, stream = SegmentationDataset(items, num_classes=5, crop=CROP), RandomStream(len(items), 3, seed=0)
    expected = list(loader(dataset, stream, 0, 4, workers=1))
    batches = loader(dataset, stream, 0, 4, 1, device)
    first = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        given = [first, *batches]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch, theirs in zip(given, expected, strict=True):
        assert batch.image.is_cuda and batch.label.is_cuda and not batch.index.is_cuda
        assert all(torch.equal(ours.cpu(), values) for ours, values in zip(batch, theirs, strict=True))


def test_each_normalization_pads_with_the_mean_colour(items):
    for normalization in NORMALIZATIONS.values():
        dataset = SegmentationDataset(items, num_classes=5, crop=CROP, normalization=normalization)
        sample = dataset[Draw(0, 0, 0, 0)]
        image, _ = read_pair(items[0], num_classes=5)
        rows, columns = (min(side, CROP) for side in image.shape[:2])
        assert (sample.image[:, :rows, :columns].numpy() == normalization(image)[:, :rows, :columns]).all()
        assert not sample.image[:, rows:].any() and not sample.image[:, :, columns:].any()


def test_offset_words_are_reduced_modulo_the_positions_after_padding():
    image = np.arange(10 * 4 * 3, dtype=np.uint8).reshape(10, 4, 3)  # higher and narrower than the crop
    label = np.arange(40, dtype=np.uint8).reshape(10, 4)
    word = 2**32 - 1  # odd: mirrored
    pixels, labels = transform(image, label, 6, Normalization(np.zeros(3, np.float32)), Draw(0, word, word, word))
    h_off = word % 5
    assert (labels[:, 2:] == label[h_off : h_off + 6, ::-1]).all()
    assert (labels[:, :2] == 255).all()
    assert (pixels[:, :, 2:] == image[h_off : h_off + 6, ::-1].transpose(2, 0, 1)).all()
    assert (pixels[:, :, :2] == 0).all()


def test_stream_draws_every_item_once_per_epoch_in_a_new_order():
    stream = RandomStream(num_items=7, batch_size=3, seed=5)
    indices = np.array([draw.index for k in range(7) for draw in stream.batch(k)]).reshape(3, 7)
    assert (np.sort(indices) == np.arange(7)).all()
    assert len({tuple(epoch) for epoch in indices}) == 3


def test_stream_is_a_function_of_seed_and_batch_number():
    whole = [RandomStream(7, 3, seed=5).batch(k) for k in range(10)]
    assert RandomStream(7, 3, seed=5).batch(9) == whole[9]
    revisited = RandomStream(7, 3, seed=5)
    assert [revisited.batch(k) for k in (9, 2, 9)] == [whole[9], whole[2], whole[9]]
    assert RandomStream(7, 3, seed=6).batch(9) != whole[9]
    assert RandomStream(7, 30, seed=5).batch(0) == [draw for batch in whole for draw in batch]


def test_stream_words_fill_32_bits_and_mirror_half_of_the_samples():
    draws = np.array(RandomStream(10, 4000, seed=0).batch(0), dtype=np.int64)
    words = draws[:, 1:]
    assert words.min() >= 0
    assert 2**32 * 0.99 < words.max() < 2**32
    assert abs((words[:, 0] % 2).mean() - 0.5) < 0.03  # 4 standard deviations
    assert all(draw.mirror == 0 for draw in RandomStream(10, 50, seed=0, mirror=False).batch(0))
    assert [draw.index for draw in RandomStream(4, 6, seed=0, shuffle=False).batch(1)] == [2, 3, 0, 1, 2, 3]


def test_words_for_scales_do_not_change_the_other_words():
    """Runs from before the fourth word existed must resume with the same samples."""
    draws = [RandomStream(7, 1, seed=5).batch(k)[0] for k in (0, 9)]
    assert [draw[1:4] for draw in draws] == [(568244433, 3325181635, 3342468483), (3478782642, 1255461823, 1674704598)]
    assert len({draw.scale for draw in draws}) == 2


def test_rescaling_truncates_sides_and_uses_nearest_labels():
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    label = np.arange(35, dtype=np.uint8).reshape(5, 7)
    small, small_label = rescale(image, label, 0.6)  # 3.0 x 4.2
    assert small.shape == (3, 4, 3)
    assert (small_label == label[np.ix_([0, 1, 3], [0, 1, 3, 5])]).all()
    double, double_label = rescale(image, label, 2)
    assert (double_label == label.repeat(2, 0).repeat(2, 1)).all()
    assert double[0, 1:3, 0].tolist() == [1, 2]  # interpolated at 1/4 and 3/4 between 0 and 3
    assert rescale(image, label, 0.01)[1].shape == (1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_scale_augmentation_rescales_each_sample_before_the_crop(items, workers):
    dataset = SegmentationDataset(items, num_classes=5, crop=CROP, scale_range=(0.6, 1.4))
    stream = RandomStream(len(items), 3, seed=2)
    for k, batch in enumerate(loader(dataset, stream, 0, 4, workers)):
        for draw, pixels, labels in zip(stream.batch(k), batch.image, batch.label, strict=True):
            image, label = read_pair(items[draw.index], num_classes=5)
            factor = 0.6 + 0.8 * draw.scale / 2**32
            size = int(image.shape[1] * factor), int(image.shape[0] * factor)
            resized = cv2.resize(image, size), cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
            expected = transform(*resized, CROP, CAFFE, draw)
            assert (pixels.numpy() == expected[0]).all()
            assert (labels.numpy() == expected[1]).all()


def test_small_samples_are_enlarged_to_fill_the_crop(items):
    """The factor is at least crop / (shorter side - 1), so that nothing is padded; larger factors are unchanged."""
    shortest = min(min(read_image(item.image).shape[:2]) for item in items)
    crop = 2 * shortest
    dataset = SegmentationDataset(items, 5, crop, scale_range=(0.5, 1.5), fill_crop=True)
    for draw in RandomStream(len(items), 12, seed=0).batch(0):
        assert (dataset[draw].image != 0).any(dim=0).all()  # a padded pixel is 0 in all channels
    small = SegmentationDataset(items, 5, 9, scale_range=(0.6, 1.4), fill_crop=True)
    plain = SegmentationDataset(items, 5, 9, scale_range=(0.6, 1.4))
    draw = RandomStream(len(items), 1, seed=0).batch(0)[0]
    assert torch.equal(small[draw].image, plain[draw].image)


def test_scale_factors_are_uniform_in_the_range():
    factors = np.array([scale_factor(draw, (0.6, 1.4)) for draw in RandomStream(10, 4000, seed=0).batch(0)])
    assert factors.min() >= 0.6 and factors.max() < 1.4
    counts = np.histogram(factors, 8, (0.6, 1.4))[0]
    assert abs(counts - 500).max() < 84  # 4 standard deviations


def test_impossible_scale_ranges_and_streams_without_scales_are_refused(items):
    for wrong in ((0, 1), (1.4, 0.6)):
        with pytest.raises(InputError, match=r"scale_range \(.*\) is not possible"):
            SegmentationDataset(items, 5, CROP, scale_range=wrong)
    dataset = SegmentationDataset(items, 5, CROP, scale_range=(0.6, 1.4))
    with pytest.raises(InputError, match="Caffe's streams have no scale augmentation"):
        dataset[Draw(0, 0, 0, 0)]


def test_loader_starts_at_any_batch_without_torchs_random_state(items):
    dataset = SegmentationDataset(items, num_classes=5, crop=33)
    stream = RandomStream(len(items), 4, seed=1)
    before = torch.get_rng_state()
    whole = list(loader(dataset, stream, 0, 5, workers=0))
    resumed = list(loader(dataset, stream, 3, 2, workers=2))
    assert torch.equal(torch.get_rng_state(), before)
    for batch, expected in zip(resumed, whole[3:], strict=True):
        assert all(torch.equal(mine, other) for mine, other in zip(batch, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_gives_the_same_samples_without_the_files(golden, tmp_path, workers):
    files = shutil.copytree(golden / "data/files", tmp_path / "files")
    items = read_list(files / "list.txt", files)
    dataset = SegmentationDataset(items, 5, CROP, scale_range=(0.6, 1.4))
    stream = RandomStream(len(items), 3, seed=2)
    decoded = list(loader(dataset, stream, 0, 5, workers))
    dataset.cache(threads=2)
    shutil.rmtree(files)
    for batch, expected in zip(loader(dataset, stream, 0, 5, workers), decoded, strict=True):
        assert all(torch.equal(mine, other) for mine, other in zip(batch, expected, strict=True))


def test_a_cache_that_would_fill_the_memory_is_refused(items):
    with pytest.raises(
        InputError, match=r"the first 1 of \d+ images take .* GiB when decoded and leave less than 100%"
    ):
        decode_all(items, 5, threads=1, left=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_raises_its_error_from_the_loader(tmp_path, workers):
    image, label = tmp_path / "x.jpg", tmp_path / "x.png"
    cv2.imwrite(str(image), np.zeros((20, 30, 3), np.uint8))
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(label)
    dataset = SegmentationDataset([Item("x", image, label)], num_classes=5, crop=33)
    with pytest.raises(InputError) as caught:
        list(loader(dataset, RandomStream(1, 2, seed=0), 0, 1, workers))
    assert str(caught.value).startswith(f"{label} holds values that are no labels (7): 5 classes allow")
    assert "\n" not in str(caught.value)


def test_without_workers_no_temporary_folder_is_made(items, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    dataset = SegmentationDataset(items, num_classes=5, crop=33)
    assert len(list(loader(dataset, RandomStream(len(items), 4, seed=1), 0, 2, workers=0))) == 2


def test_workers_that_end_early_leave_no_files(items, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dataset = SegmentationDataset(items, num_classes=5, crop=33)
    with closing(loader(dataset, RandomStream(len(items), 4, seed=1), 0, 40, workers=2)) as batches:
        next(batches)
    assert not list(tmp_path.iterdir())


def test_workers_deliver_after_an_interrupt(golden):
    """Only the main process handles Ctrl-C: workers continue to deliver batches."""
    script = f"""
import os, signal
from a2s_repro.data.image_seg import RandomStream, SegmentationDataset, loader
from a2s_repro.data.lists import read_list
signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
items = read_list({str(golden / "data/files/list.txt")!r}, {str(golden / "data/files")!r})
batches = loader(SegmentationDataset(items, 5, 33), RandomStream(len(items), 2, 0), 0, 40, workers=1)
next(batches)
os.killpg(os.getpgrp(), signal.SIGINT)
print(sum(1 for _ in batches))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, start_new_session=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["interrupted", "39"]
