"""Caffe's binary files: Caffe's own files are read bit for bit, ours are readable by others, bad files are refused."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_weights import (
    CaffeFileError,
    CaffeNet,
    Layer,
    SolverState,
    read_caffemodel,
    read_solverstate,
    write_caffemodel,
    write_solverstate,
)
from caffe_weights.messages import BlobProto, NetParameter, UnpackedBlobProto
from tests.limits import largest_file
from tests.paths import GOLDEN

NEW, V1 = GOLDEN / "nets/init_single.caffemodel", GOLDEN / "caffemodel/legacy_v1.caffemodel"


def blobs(net: CaffeNet) -> dict[str, list[np.ndarray]]:
    return {layer.name: layer.blobs for layer in net.layers if layer.blobs}


def content(net: CaffeNet) -> list[tuple]:
    """A net's content in a form that compares bit for bit."""
    return [
        (layer.name, layer.type, [(blob.dtype, blob.shape, blob.tobytes()) for blob in layer.blobs])
        for layer in net.layers
    ]


def small_net(*arrays: np.ndarray, kind: str = "Convolution") -> CaffeNet:
    return CaffeNet("small", [Layer("data", "Data", []), Layer("conv", kind, list(arrays))])


def test_both_containers_hold_the_same_weights():
    new, old = blobs(read_caffemodel(NEW)), blobs(read_caffemodel(V1))
    assert list(new) == list(old) and len(new) == 16
    for name in new:
        assert [blob.tobytes() for blob in new[name]] == [blob.tobytes() for blob in old[name]]


def test_names_are_escaped_to_printable_text(tmp_path):
    (tmp_path / "net.caffemodel").write_bytes(
        NetParameter(layer=[{"name": "fc\n8é".encode() + b"\xff"}]).SerializeToString()
    )
    assert read_caffemodel(tmp_path / "net.caffemodel").layers[0].name == r"fc\n8é\xff"


def test_shapes_are_the_files_own():
    assert [blob.shape for blob in blobs(read_caffemodel(NEW))["fc8_voc12"]] == [(5, 64, 1, 1), (5,)]
    assert [blob.shape for blob in blobs(read_caffemodel(V1))["fc8_voc12"]] == [(5, 64, 1, 1), (1, 1, 1, 5)]


def test_half_precision_models_are_read(tmp_path):
    """OpenCV writes them in the fields of NVIDIA's Caffe; float16 values are exact in float32."""
    cv2.dnn.shrinkCaffeModel(str(NEW), str(tmp_path / "half.caffemodel"))
    whole, half = blobs(read_caffemodel(NEW)), blobs(read_caffemodel(tmp_path / "half.caffemodel"))
    assert (tmp_path / "half.caffemodel").stat().st_size < 0.6 * NEW.stat().st_size
    assert list(half) == list(whole)
    for name, arrays in whole.items():
        for array, read in zip(arrays, half[name], strict=True):
            assert read.dtype == np.float32 and np.array_equal(read, array.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("number", "dtype"), [(0, "<f8"), (1, "<f4"), (2, "<f2")])
@pytest.mark.parametrize("field", ["raw_data", "raw_diff"])
def test_raw_values_have_the_type_that_the_blob_names(tmp_path, field, number, dtype):
    values = np.array([1.5, -2.25, 0.125, 3], dtype)
    blob = {"shape": {"dim": (2, 2)}, field: [values.tobytes()], f"{field}_type": number}
    path = tmp_path / "raw.caffemodel"
    path.write_bytes(NetParameter(layer=[{"name": b"fc6", "blobs": [blob]}]).SerializeToString())
    assert np.array_equal(read_caffemodel(path).layers[0].blobs[0], values.reshape(2, 2))


def test_raw_values_of_another_type_are_refused(tmp_path):
    blob = {"shape": {"dim": (2,)}, "raw_data": [bytes(8)], "raw_data_type": 3}
    path = tmp_path / "raw.caffemodel"
    path.write_bytes(NetParameter(layer=[{"name": b"fc6", "blobs": [blob]}]).SerializeToString())
    with pytest.raises(CaffeFileError, match="blob 0 of layer 'fc6' holds values of type 3, which is none of"):
        read_caffemodel(path)


@pytest.mark.parametrize(("field", "dtype"), [("diff", "<f4"), ("double_diff", "<f8")])
@pytest.mark.parametrize("packed", [True, False])
def test_blobs_that_hold_only_their_gradient_are_read(tmp_path, field, dtype, packed):
    values = np.array([1.5, -2, 3], dtype)
    blob = BlobProto(shape={"dim": (3,)})
    if packed:
        blob.MergeFrom(BlobProto(**{field: [values.tobytes()]}))
    else:
        blob.MergeFromString(UnpackedBlobProto(**{field: values}).SerializeToString())
    path = tmp_path / "diff.caffemodel"
    path.write_bytes(NetParameter(layer=[{"name": b"fc6", "blobs": [blob]}]).SerializeToString())
    (read,) = read_caffemodel(path).layers[0].blobs
    assert read.dtype == np.dtype(dtype) and np.array_equal(read, values)


def test_layers_without_blobs_have_names_and_types():
    new = [(layer.name, layer.type) for layer in read_caffemodel(NEW).layers]
    assert new[:4] == [
        ("data", "ImageSegData"),
        ("conv1_1", "Convolution"),
        ("relu1_1", "ReLU"),
        ("conv1_2", "Convolution"),
    ]
    old = {layer.name: layer.type for layer in read_caffemodel(V1).layers}
    assert (old["conv1_1"], old["pool1"], old["drop6"]) == ("Convolution", "Pooling", "Dropout")


@pytest.mark.parametrize("iteration", [10, 20])
def test_snapshot_and_solverstate_equal_the_recorded_values(iteration):
    record = np.load(GOLDEN / "sgd/sgd.npz")
    weights = blobs(read_caffemodel(GOLDEN / f"sgd/sgd_iter_{iteration}.caffemodel"))
    for key in (key for key in record if key.startswith("w|")):
        layer, index = key.removeprefix("w|").split("/")
        assert np.array_equal(weights[layer][int(index)], record[key][iteration - 1])

    state = read_solverstate(GOLDEN / f"sgd/sgd_iter_{iteration}.solverstate")
    assert (state.iter, state.current_step) == (iteration, (iteration - 1) // 8)
    assert state.learned_net == f"sgd_iter_{iteration}.caffemodel"
    for name, history in zip(json.loads(str(record["info_json"]))["params"], state.history, strict=True):
        assert np.array_equal(history, record[f"hist|{name}"][iteration - 1])


def test_solverstate_has_a_history_for_every_copy_of_a_shared_layer():
    state = read_solverstate(GOLDEN / "nets/iv_att2_esupv_B_iter_20.solverstate")
    snapshot = read_caffemodel(GOLDEN / "nets/iv_att2_esupv_B_iter_20.caffemodel")
    parameters = [blob for layer in snapshot.layers for blob in layer.blobs]
    assert [history.shape for history in state.history] == [parameter.shape for parameter in parameters]


@pytest.mark.parametrize("name", ["nets/iv_att2_esupv_B_iter_20", "sgd/sgd_iter_10", "sgd/sgd_iter_20"])
def test_a_solverstate_round_trips_byte_for_byte(tmp_path, name):
    path = tmp_path / "copy.solverstate"
    write_solverstate(path, read_solverstate(GOLDEN / f"{name}.solverstate"))
    assert path.read_bytes() == (GOLDEN / f"{name}.solverstate").read_bytes()


def test_an_integer_history_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(CaffeFileError, match="history blob 0 is int64"):
        write_solverstate(tmp_path / "x.solverstate", SolverState(1, 0, "x.caffemodel", [np.zeros(3, np.int64)]))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "source", [NEW, V1, GOLDEN / "nets/iv_att2_esupv_B_iter_20.caffemodel", GOLDEN / "sgd/sgd_iter_20.caffemodel"]
)
def test_the_new_format_round_trips(tmp_path, source):
    net = read_caffemodel(source)
    write_caffemodel(tmp_path / "copy.caffemodel", net)
    copy = read_caffemodel(tmp_path / "copy.caffemodel")
    assert copy.name == net.name and content(copy) == content(net)


def test_the_v1_format_round_trips(tmp_path):
    net = read_caffemodel(V1)
    write_caffemodel(tmp_path / "copy.caffemodel", net, v1=True)
    assert content(read_caffemodel(tmp_path / "copy.caffemodel")) == content(net)


def test_v1_keeps_type_numbers_of_forks(tmp_path):
    net = CaffeNet("deeplab", [Layer("interp", "41", []), Layer("conv", "Convolution", [np.ones(1, np.float32)])])
    write_caffemodel(tmp_path / "net.caffemodel", net, v1=True)
    assert NetParameter.FromString((tmp_path / "net.caffemodel").read_bytes()).layers[0].type == 41
    assert read_caffemodel(tmp_path / "net.caffemodel").layers[0].type == "41"


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 1, 1), (2, 1, 3, 2, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_shape_and_both_dtypes_round_trip(tmp_path, shape, dtype):
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    write_caffemodel(tmp_path / "net.caffemodel", small_net(array))
    (read,) = blobs(read_caffemodel(tmp_path / "net.caffemodel"))["conv"]
    assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_v1_pads_shapes_with_leading_ones(tmp_path):
    write_caffemodel(
        tmp_path / "net.caffemodel", small_net(np.ones((4, 6), np.float32), np.ones(4, np.float32)), v1=True
    )
    assert [blob.shape for blob in blobs(read_caffemodel(tmp_path / "net.caffemodel"))["conv"]] == [
        (1, 1, 4, 6),
        (1, 1, 1, 4),
    ]


def test_strided_and_big_endian_arrays_are_written_by_value(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_caffemodel(tmp_path / "net.caffemodel", small_net(array.T, array.astype(">f4")))
    transposed, swapped = blobs(read_caffemodel(tmp_path / "net.caffemodel"))["conv"]
    assert np.array_equal(transposed, array.T) and np.array_equal(swapped, array)


@pytest.mark.parametrize("field, dtype", [("data", np.float32), ("double_data", np.float64)])
def test_unpacked_and_chunked_values_are_read(tmp_path, field, dtype):
    values = np.random.default_rng(0).standard_normal(6).astype(dtype)
    shape = BlobProto(shape={"dim": [2, 3]}).SerializeToString()
    unpacked = shape + UnpackedBlobProto(**{field: values}).SerializeToString()
    chunked = shape + BlobProto(**{field: [values[:2].tobytes(), values[2:].tobytes()]}).SerializeToString()
    layer = {"name": b"conv", "blobs": [BlobProto.FromString(unpacked), BlobProto.FromString(chunked)]}
    (tmp_path / "net.caffemodel").write_bytes(NetParameter(layer=[layer]).SerializeToString())
    for read in blobs(read_caffemodel(tmp_path / "net.caffemodel"))["conv"]:
        assert read.dtype == dtype and np.array_equal(read, values.reshape(2, 3))


@pytest.mark.skipif(not hasattr(cv2.dnn, "readNetFromCaffe"), reason=f"OpenCV {cv2.__version__} reads no Caffe nets")
@pytest.mark.parametrize("v1", [False, True], ids=["new", "v1"])
def test_opencv_reads_our_files(tmp_path, v1):
    """OpenCV's importer is an independent reader of both containers."""
    first, second = read_caffemodel(V1).layers[0], read_caffemodel(V1).layers[2]
    net = CaffeNet("peer", [first, second])
    write_caffemodel(tmp_path / "net.caffemodel", net, v1=v1)
    prototxt = 'name: "peer" input: "data" input_shape { dim: 1 dim: 3 dim: 9 dim: 9 }'
    for layer, bottom in ((first, "data"), (second, first.name)):
        prototxt += (
            f' layer {{ name: "{layer.name}" type: "Convolution" bottom: "{bottom}" top: "{layer.name}" '
            f"convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 }} }}"
        )
    (tmp_path / "net.prototxt").write_text(prototxt)
    peer = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"))
    for layer in net.layers:
        for i, blob in enumerate(layer.blobs):
            assert peer.getParam(layer.name, i).tobytes() == blob.tobytes()


def with_blob(values: bytes = np.ones(6, np.float32).tobytes(), dim: tuple[int, ...] = (2, 3)) -> bytes:
    blob = {"shape": {"dim": dim}, "data": [values]}
    return NetParameter(layer=[{"name": b"fc6", "blobs": [blob]}]).SerializeToString()


REFUSED = {
    "empty": (b"", "is empty"),
    "truncated": (NEW.read_bytes()[:100_000], "is truncated"),
    "garbage": (np.random.default_rng(0).bytes(5000), "no binary Caffe file"),
    "text": ((GOLDEN / "nets/i_single.prototxt").read_bytes(), "no binary Caffe file"),
    "solverstate": ((GOLDEN / "sgd/sgd_iter_10.solverstate").read_bytes(), "no binary Caffe file"),
    "other shape": (with_blob(dim=(2, 4)), "'fc6' has 6 values for the shape 2x4"),
    "absurd shape": (with_blob(dim=(2**62, 2**62)), "'fc6' has 6 values for the shape 4611686018427387904x"),
    "negative shape": (with_blob(dim=(-2, -3)), "'fc6' has 6 values for the shape -2x-3"),
    "too many axes": (with_blob(dim=(2, 3) + (1,) * 60), "'fc6' has 6 values for the shape 2x3x1"),
    "part of a value": (with_blob(b"12345"), "'fc6' has 5 bytes of float32"),
    "NaN": (with_blob(np.full(6, np.nan, np.float32).tobytes()), "'fc6' holds NaN"),
    "V0": (NetParameter(layers=[{"layer": b"conv"}]).SerializeToString(), "upgrade_net_proto_binary"),
    "both containers": (NetParameter(layers=[{}], layer=[{}]).SerializeToString(), "both `layer` and `layers`"),
    "no layers": (NetParameter(name=b"net").SerializeToString(), "holds no layers"),
}


@pytest.mark.parametrize("damaged, words", REFUSED.values(), ids=REFUSED)
def test_damaged_and_foreign_files_are_refused_by_name(tmp_path, damaged, words):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(damaged)
    with pytest.raises(CaffeFileError) as error:
        read_caffemodel(path)
    assert str(error.value).startswith(str(path)) and words in str(error.value) and "\n" not in str(error.value)


def test_a_caffemodel_is_no_solverstate():
    with pytest.raises(CaffeFileError, match=r"no \.solverstate"):
        read_solverstate(NEW)


@settings(max_examples=300, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1) | st.just(1.0),
    solverstate=st.booleans(),
)
def test_a_mutated_file_is_read_or_refused(tmp_path_factory, flips, keep, solverstate):
    """Changed bytes and truncation cause no other exception, no hang and no blob with too few values."""
    kind, read = ("solverstate", read_solverstate) if solverstate else ("caffemodel", read_caffemodel)
    damaged = bytearray((GOLDEN / f"sgd/sgd_iter_10.{kind}").read_bytes())
    for place, byte in flips:
        damaged[place % len(damaged)] = byte
    path = tmp_path_factory.getbasetemp() / f"mutated.{kind}"
    path.write_bytes(damaged[: int(keep * len(damaged))])
    try:
        result = read(path)
    except CaffeFileError:
        return
    arrays = result.history if solverstate else [blob for layer in result.layers for blob in layer.blobs]
    assert all(np.isfinite(array).all() for array in arrays)


@pytest.mark.parametrize(
    "net, v1, words",
    [
        (small_net(np.ones(3, np.int32)), False, "is int32"),
        (small_net(np.ones(3, np.float16)), False, "is float16"),
        (small_net(np.ones((1,) * 5, np.float32)), True, "has 5 axes"),
        (small_net(np.ones(3, np.float32), kind="Interp"), True, "no number for type 'Interp'"),
    ],
)
def test_unsupported_blobs_are_refused_and_nothing_is_written(tmp_path, net, v1, words):
    with pytest.raises(CaffeFileError, match=words):
        write_caffemodel(tmp_path / "net.caffemodel", net, v1=v1)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_unchanged(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(NEW.read_bytes())
    net = CaffeNet("big", [Layer("fc6", "Convolution", [np.ones(10**6, np.float32)])])
    with largest_file(100_000), pytest.raises(OSError, match="File too large"):
        write_caffemodel(path, net)
    assert path.read_bytes() == NEW.read_bytes() and os.listdir(tmp_path) == [path.name]


def test_the_package_needs_no_torch():
    script = "import sys, caffe_weights; sys.exit('torch' in sys.modules or 'a2s_repro' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_planted_link_is_not_followed(tmp_path):
    """A temporary file of a known name would be written through the link."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".net.caffemodel.part").symlink_to(tmp_path / "victim")
    write_caffemodel(tmp_path / "net.caffemodel", read_caffemodel(NEW))
    assert (tmp_path / "victim").read_text() == "mine"
    assert content(read_caffemodel(tmp_path / "net.caffemodel")) == content(read_caffemodel(NEW))


def test_a_failed_write_names_the_file(tmp_path):
    path = tmp_path / "net.caffemodel"
    net = CaffeNet("", [Layer("fc6", "", [np.zeros(100_000, np.float32)])])
    with largest_file(1000), pytest.raises(OSError) as error:
        write_caffemodel(path, net)
    assert error.value.filename == str(path)
    assert os.listdir(tmp_path) == []
