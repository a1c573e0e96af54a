"""Weights files: both formats round-trip, and bad files are refused."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from a2s_repro.caffe.vgg16 import net_from_torchvision
from a2s_repro.checkpoint.snapshots import load_snapshot
from a2s_repro.checkpoint.weights import load_weights, save_weights
from a2s_repro.errors import InputError
from a2s_repro.models import ResNetDilated8
from a2s_repro.models.resnet import load_resnet34
from caffe_weights import CaffeFileError, read_caffemodel, read_solverstate
from tests.limits import largest_file

META = {
    "pool5a": True,
    "classifier": "fc8_voc12",
    "source": {"file": "x.caffemodel", "kind": "init"},
    "scales": [1, 0.5],
}

both_formats = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


def some_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    return {"conv1_1.weight": weight, "conv1_1.bias": weight[:, 0, 0, 0], "fc8.weight": weight.double()}


@both_formats
def test_round_trip_keeps_every_bit_and_the_meta(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    save_weights(path, some_weights(), META)
    loaded = load_weights(path)
    assert loaded.meta == META
    assert loaded.state_dict.keys() == some_weights().keys()
    for name, expected in some_weights().items():
        assert loaded.state_dict[name].dtype == expected.dtype
        assert torch.equal(loaded.state_dict[name], expected)
    assert os.listdir(tmp_path) == [path.name]


@both_formats
def test_a_view_is_saved_without_its_whole_storage(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    save_weights(path, {"fc8.bias": torch.zeros(1_000_000)[:10]}, {})
    assert path.stat().st_size < 10_000


@both_formats
def test_tuples_in_the_meta_become_lists_in_both_formats(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    save_weights(path, {}, {"scales": (1, 0.5)})
    assert load_weights(path).meta == {"scales": [1, 0.5]}


@both_formats
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_a_damaged_file_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"net{suffix}"
    save_weights(path, some_weights(), META)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": b"\xff" * 200}[damage])
    with pytest.raises(InputError, match=f"net{suffix} cannot be read") as error:
        load_weights(path)
    assert "\n" not in str(error.value)


def test_a_state_dict_of_another_program_is_refused_with_the_remedy(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    with pytest.raises(InputError, match=r"vgg16\.pth is not a weights file .*a2s convert"):
        load_weights(tmp_path / "vgg16.pth")


@pytest.mark.parametrize("use", [lambda path: save_weights(path, {}, {}), load_weights])
def test_another_suffix_is_refused(tmp_path, use):
    with pytest.raises(InputError, match=r"net\.bin is not a weights file: give a \.pth or \.safetensors"):
        use(tmp_path / "net.bin")


FOREIGN = {
    "is a Git LFS pointer, .* `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n",
    "is a web page: download": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "is an HDF5 file: .*snapshot_format": b"\x89HDF\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        *(("model.pth", load_weights), ("model.safetensors", load_weights), ("snapshot_iter_2.pth", load_snapshot)),
        *(("vgg16.pth", net_from_torchvision), ("train_iter_2.solverstate.h5", load_snapshot)),
        *(("train.caffemodel", read_caffemodel), ("train.solverstate", read_solverstate)),
        ("resnet34.pth", lambda path: load_resnet34(ResNetDilated8(2, width=1 / 32), path)),
    ],
)
@pytest.mark.parametrize("sentence", FOREIGN)
def test_files_that_are_mistaken_for_a_model_are_named_for_what_they_are(tmp_path, name, reader, sentence):
    (tmp_path / name).write_bytes(FOREIGN[sentence])
    with pytest.raises((InputError, CaffeFileError), match=f"{name} {sentence}"):
        reader(tmp_path / name)


def test_weights_are_no_snapshot_and_caffe_files_are_no_weights(tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(b"\x0a\x01a")
    with pytest.raises(InputError, match=r"a.caffemodel is a Caffe file: .*`a2s convert .*a.caffemodel model.pth`"):
        load_weights(tmp_path / "a.caffemodel")
    with pytest.raises(InputError, match=r"a.caffemodel holds weights alone: resume from the .solverstate"):
        load_snapshot(tmp_path / "a.caffemodel")
    save_weights(tmp_path / "a.pth", some_weights(), META)
    with pytest.raises(InputError, match=r"a.pth is not a training snapshot .*--init"):
        load_snapshot(tmp_path / "a.pth")


@both_formats
def test_a_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(FileNotFoundError) as error:
        load_weights(tmp_path / f"absent{suffix}")
    assert error.value.filename == str(tmp_path / f"absent{suffix}")


@both_formats
def test_a_full_disk_leaves_the_old_file_unchanged(tmp_path, suffix):
    """Either way a write fails halfway, and one line says so."""
    path = tmp_path / f"net{suffix}"
    save_weights(path, some_weights(), META)
    before = path.read_bytes()
    with largest_file(100_000), pytest.raises(InputError, match="cannot be written") as error:
        save_weights(path, {"fc6.weight": torch.zeros(1_000_000)}, {})
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("place", ["header", "data"])
def test_a_flipped_bit_in_safetensors_is_noticed(tmp_path, place):
    """The format itself has no checksum; version 0.1 loaded other weights, or another meta."""
    path = tmp_path / "net.safetensors"
    save_weights(path, some_weights() | {"steps": torch.tensor(3)}, META)
    content = bytearray(path.read_bytes())
    content[content.index(b"0.5") + 2 if place == "header" else -5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"net.safetensors cannot be read \(its checksum is wrong\)"):
        load_weights(path)


def test_safetensors_of_version_0_1_have_no_checksum_and_load(tmp_path):
    path = tmp_path / "net.safetensors"
    metadata = {"format": "a2s_repro.weights/1", "meta": json.dumps(META)}
    save_file({"conv1_1.weight": some_weights()["conv1_1.weight"]}, path, metadata=metadata)
    assert load_weights(path).meta == META
