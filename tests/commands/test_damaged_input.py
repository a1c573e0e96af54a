"""tools/convert_caffe.py on damaged, absurd and foreign files: one sentence, nothing written, little memory."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from a2s_repro import commands
from a2s_repro.caffe.conversion import to_caffe
from a2s_repro.checkpoint.snapshots import Snapshot, save_snapshot
from a2s_repro.checkpoint.weights import Weights, load_weights, save_weights
from a2s_repro.models import ShareNet, Widths
from a2s_repro.recipes import Recipe
from caffe_weights import CaffeNet, SolverState, read_caffemodel, write_caffemodel, write_solverstate
from caffe_weights.messages import NetParameter
from tests.paths import GOLDEN, ROOT

THIN = Widths().scaled(1 / 64)

WAYS = {
    "net.caffemodel": ["out.pth"],
    "v1.caffemodel": ["out.safetensors"],
    "vgg16.pth": ["out.pth", "--subsample"],
    "net.pth": ["out.caffemodel", "--to-caffe"],
    "net.safetensors": ["out.caffemodel", "--to-caffe"],
    "snapshot.pth": ["out.caffemodel", "--to-caffe"],
    "net.solverstate": ["--inspect"],
}
"""Every kind of file that the tool reads, and the arguments that it is read with."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A folder with a sound file of every kind."""
    folder = tmp_path_factory.mktemp("sound")
    torch.manual_seed(0)
    net = ShareNet(3, (1, 0.5), widths=THIN)
    state = {key: torch.randn_like(tensor) for key, tensor in net.state_dict().items()}
    meta = {"model": net.config(), "classifier": "fc8_voc12", "pool5a": False}
    caffe = to_caffe(Weights(state, meta))
    write_caffemodel(folder / "net.caffemodel", caffe)
    layers = [layer for layer in caffe.layers if "_res" not in layer.name and "att" not in layer.name]
    single = CaffeNet("v1", layers[:-1])
    write_caffemodel(folder / "v1.caffemodel", single, v1=True)
    for name in ("net.pth", "net.safetensors"):
        save_weights(folder / name, state, meta)
    torch.save(vgg16(), folder / "vgg16.pth")
    save_snapshot(folder / "snapshot.pth", snapshot())
    history = [blob for layer in caffe.layers for blob in layer.blobs]
    write_solverstate(folder / "net.solverstate", SolverState(20, 2, "net.caffemodel", history))
    return folder


def vgg16(width: int = 4) -> dict[str, torch.Tensor]:
    """A thin state dict of torchvision's."""
    state, channels = {}, 3
    for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        state[f"features.{index}.weight"], channels = torch.randn(width, channels, 3, 3), width
        state[f"features.{index}.bias"] = torch.randn(width)
    for index, shape in {0: (16, 49 * width), 3: (16, 16), 6: (10, 16)}.items():
        state[f"classifier.{index}.weight"] = torch.randn(shape)
        state[f"classifier.{index}.bias"] = torch.randn(shape[0])
    return state


def snapshot() -> Snapshot:
    recipe = Recipe("", width=1 / 64)
    net = recipe.net()
    return Snapshot(0, net.state_dict(), recipe.optimizer(net).state_dict(), {}, [], recipe.config())


def convert(name: str, folder: Path) -> tuple[int, str]:
    """Runs the command in this process on a file of `folder`; its exit status and stderr. A warning is a failure."""
    output = [argument if argument.startswith("--") else str(folder / argument) for argument in WAYS[name]]
    stderr = io.StringIO()
    with (
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(record=True) as warned,
        pytest.raises(SystemExit) as end,
    ):
        warnings.simplefilter("always")
        commands.main(["convert", str(folder / name), *output])
    assert not warned
    return end.value.code, stderr.getvalue()


def check_refused(status: int, stderr: str, folder: Path, name: str) -> None:
    assert status == 2, stderr
    assert stderr.startswith("error: ") and stderr.endswith(".\n") and stderr.count("\n") == 1, stderr
    assert name in stderr
    assert os.listdir(folder) == [name]


@pytest.mark.parametrize("name", WAYS)
def test_the_sound_files_are_read(sound, tmp_path, name):
    (tmp_path / name).write_bytes((sound / name).read_bytes())
    assert convert(name, tmp_path) == (0, "")


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "picture", "other"])
@pytest.mark.parametrize("name", WAYS)
def test_files_that_are_cut_or_of_another_kind_are_refused(sound, tmp_path, name, damage):
    other = "net.pth" if name.endswith(("caffemodel", "solverstate")) else "net.caffemodel"
    whole = (sound / name).read_bytes()
    content = {
        "cut": whole[: len(whole) * 2 // 3],
        "empty": b"",
        "zeros": bytes(100_000),
        "picture": (GOLDEN / "data/files/JPEGImages/im00.png").read_bytes(),
        "other": (sound / other).read_bytes(),
    }
    (tmp_path / name).write_bytes(content[damage])
    check_refused(*convert(name, tmp_path), tmp_path, name)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors", "vgg16.pth", "net.caffemodel", "v1.caffemodel"])
def test_nan_weights_are_refused(sound, tmp_path, name):
    path = tmp_path / name
    path.write_bytes((sound / name).read_bytes())
    if name.endswith("caffemodel"):
        net = read_caffemodel(path)
        fc7 = next(layer for layer in net.layers if layer.name == "fc7")
        nan = replace(fc7, blobs=[np.full_like(blob, np.nan) for blob in fc7.blobs])
        write_caffemodel(path, CaffeNet(net.name, [nan if layer is fc7 else layer for layer in net.layers]))
    elif name == "vgg16.pth":
        torch.save(vgg16() | {"features.28.bias": torch.full((4,), torch.nan)}, path)
    else:
        weights = load_weights(path)
        weights.state_dict["fc7.bias"].fill_(torch.nan)
        save_weights(path, *vars(weights).values())
    check_refused(*convert(name, tmp_path), tmp_path, name)


def expanded(*shape: int) -> torch.Tensor:
    """A tensor of absurd size that a file of a few bytes holds."""
    return torch.zeros(1).expand(shape)


@pytest.mark.parametrize("name", ["net.pth", "vgg16.pth"])
def test_tensors_with_fewer_values_than_elements_are_refused(sound, tmp_path, name):
    path = tmp_path / name
    path.write_bytes((sound / name).read_bytes())
    if name == "net.pth":
        content = torch.load(path, weights_only=True)
        content["state_dict"]["fc7.weight"] = expanded(2**20, 2**20, 1, 1)
        torch.save(content, path)
    else:
        torch.save(vgg16() | {"classifier.3.weight": expanded(2**20, 2**20)}, path)
    check_refused(*convert(name, tmp_path), tmp_path, name)


@pytest.mark.parametrize("dim", [(2**62, 2**62), (-1, -1), (0,), (1,) * 33, (2**31,)])
def test_absurd_blob_shapes_are_refused(tmp_path, dim):
    blob = {"shape": {"dim": dim}, "data": [bytes(4)]}
    path = tmp_path / "net.caffemodel"
    path.write_bytes(NetParameter(layer=[{"name": b"fc6", "blobs": [blob]}]).SerializeToString())
    check_refused(*convert(path.name, tmp_path), tmp_path, path.name)


mutations = st.lists(
    st.tuples(st.sampled_from(["set", "flip", "drop", "double"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


def mutated(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    damaged = bytearray(content)
    for what, place, value in changes:
        at = int(place * (len(damaged) - 1)) if damaged else 0
        if what == "set":
            damaged[at : at + 1] = bytes([value])
        elif what == "flip":
            damaged[at : at + 1] = bytes(byte ^ 1 << value % 8 for byte in damaged[at : at + 1])
        elif what == "drop":
            del damaged[at : at + value]
        else:
            damaged[at:at] = damaged[at : at + value]
    return bytes(damaged)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=mutations)
@pytest.mark.parametrize("name", WAYS)
def test_a_mutated_file_is_read_or_refused(sound, tmp_path_factory, name, changes):
    """A change of a value cannot be seen in Caffe's files; then the tool does its work, but never half of it."""
    folder = tmp_path_factory.mktemp("mutated")
    (folder / name).write_bytes(mutated((sound / name).read_bytes(), changes))
    status, stderr = convert(name, folder)
    if status:
        check_refused(status, stderr, folder, name)
    else:
        written = sorted(set(os.listdir(folder)) - {name})
        assert stderr == "" and not any(file.startswith(".") for file in written)
        assert written[:1] == [file for file in WAYS[name][:1] if not file.startswith("--")]


@pytest.mark.parametrize("name", ["net.pth", "snapshot.pth"])
def test_one_flipped_bit_of_our_own_pth_is_noticed(sound, tmp_path, name):
    """torch.load does not compare checksums."""
    damaged = bytearray((sound / name).read_bytes())
    damaged[damaged.index(b"data/24") + 400] ^= 1
    (tmp_path / name).write_bytes(damaged)
    check_refused(*convert(name, tmp_path), tmp_path, name)


ALL_IN_TURN = """
import json, os, sys
from a2s_repro.commands import main
for folder, words in json.loads(sys.argv[1]):
    os.chdir(folder)
    try:
        main(words)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""


@pytest.mark.long
def test_three_gigabytes_of_zeros_take_neither_time_nor_memory(tmp_path):
    """In a process of its own, of whose peak memory importing torch takes most."""
    work = []
    for name, words in WAYS.items():
        (tmp_path / name).mkdir()
        with open(tmp_path / name / name, "wb") as file:
            file.truncate(3 << 30)
        work.append((str(tmp_path / name), ["convert", name, *words]))
    all_in_turn = [sys.executable, "-c", ALL_IN_TURN, json.dumps(work)]
    done = subprocess.run(all_in_turn, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True)
    *lines, peak_kilobytes = done.stderr.splitlines(keepends=True)
    assert len(lines) == 2 * len(WAYS), lines
    for name, sentence, code in zip(WAYS, lines[::2], lines[1::2], strict=True):
        check_refused(int(code), sentence, tmp_path / name, name)
    assert int(peak_kilobytes) * 1024 < 1e9
