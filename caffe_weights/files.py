"""Reading and writing `.caffemodel` and `.solverstate` files.

A `.caffemodel` is a binary NetParameter: the layers of a net in order, each with a name, a type and its blobs. Both
containers are supported: `layer` (new, types by name) and `layers` (V1, types by number). So are both encodings of a
blob's shape: `shape` (any number of axes) and num/channels/height/width (always four: a bias of N values is 1x1x1xN).
"""

import itertools
import math
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from caffe_weights.errors import CaffeFileError
from caffe_weights.foreign import foreign_kind
from caffe_weights.messages import V1_TYPES, BlobProto, NetParameter, SolverStateParameter, UnpackedBlobProto

_LEGACY_AXES = ("num", "channels", "height", "width")
_MAX_AXES = 32  # Caffe's kMaxBlobAxes
_MAX_BYTES = 2**31 - 1  # protobuf's own limit
_DTYPES = {"data": np.dtype("<f4"), "double_data": np.dtype("<f8")}
_DTYPES |= {"diff": _DTYPES["data"], "double_diff": _DTYPES["double_data"]}
_RAW_DTYPES = {0: np.dtype("<f8"), 1: np.dtype("<f4"), 2: np.dtype("<f2")}
"""Types of raw data in NVIDIA's fork of Caffe."""
_FIELDS = ("double_data", "data", "raw_data", "double_diff", "diff", "raw_diff")
"""Fields that can hold a blob's values: the first one that is not empty does. A blob may hold only its gradient."""

AnyMessage = TypeVar("AnyMessage", bound=Message)


@dataclass(frozen=True)
class Layer:
    """A layer: its name, its type in the new format's spelling, and its blobs (weight, bias, ...).

    Blobs are float32 or float64 arrays; blobs read from a file have the file's shapes and are read-only views, or
    float32 copies of float16 values. A V1 type
    number that only a fork defines is kept as a string of digits. The type is informative; layers are identified by
    name and blobs.
    """

    name: str
    type: str
    blobs: list[np.ndarray]


@dataclass(frozen=True)
class CaffeNet:
    """A net's name and all its layers in file order, including layers without blobs."""

    name: str
    layers: list[Layer]


@dataclass(frozen=True)
class SolverState:
    """The state of Caffe's solver that belongs to a snapshot.

    `iter` counts the updates made, `current_step` the learning-rate drops passed. `learned_net` is the path of the
    `.caffemodel` as the solver recorded it. `history` holds the momentum: one array per parameter blob in net order,
    including the blobs of layers that share parameters.
    """

    iter: int
    current_step: int
    learned_net: str
    history: list[np.ndarray]


def read_caffemodel(path: str | os.PathLike) -> CaffeNet:
    """Reads a `.caffemodel` of either container.

    Raises CaffeFileError if the file is empty, damaged, of another kind or in the V0 format, if the number of a blob's
    values does not match its shape, or if a value is not finite; OSError if the file cannot be opened.
    """
    message = _parse(path, NetParameter)
    if message.layer and message.layers:
        raise CaffeFileError(f"{path} holds both `layer` and `layers` entries, which Caffe refuses too.")
    if not message.layer and not message.layers:
        raise CaffeFileError(f"{path} holds no layers: it is no .caffemodel, or it is damaged.")
    layers = []
    for entry in message.layers or message.layer:
        name = _text(entry.name)
        if message.layers and entry.HasField("layer"):
            raise CaffeFileError(
                f"{path} is in the V0 format of 2013: convert it with Caffe's upgrade_net_proto_binary first."
            )
        kind = _v1_type_name(entry.type) if message.layers else _text(entry.type)
        blobs = [_array(blob, f"{path}: blob {i} of layer {name!r}") for i, blob in enumerate(entry.blobs)]
        layers.append(Layer(name, kind, blobs))
    return CaffeNet(_text(message.name), layers)


def write_caffemodel(path: str | os.PathLike, net: CaffeNet, v1: bool = False) -> None:
    """Writes `net` as a `.caffemodel`, in the new container or, with `v1`, in the V1 one.

    V1 blobs have four axes: shorter shapes are padded with leading ones (a bias becomes 1x1x1xN). The file is written
    atomically. Raises CaffeFileError for blobs that are neither float32 nor float64, and in V1 for more than four axes
    and for types without a number.
    """
    _write(path, [NetParameter(name=net.name.encode())], (_net_of_one_layer(layer, v1, path) for layer in net.layers))


def read_solverstate(path: str | os.PathLike) -> SolverState:
    """Reads a `.solverstate`.

    Raises CaffeFileError if the file is empty, damaged or of another kind, and OSError if it cannot be opened.
    """
    message = _parse(path, SolverStateParameter)
    if not message.HasField("iter"):
        raise CaffeFileError(f"{path} holds no iteration: it is no .solverstate, or it is damaged.")
    history = [_array(blob, f"{path}: history blob {i}") for i, blob in enumerate(message.history)]
    return SolverState(message.iter, message.current_step, _text(message.learned_net), history)


def write_solverstate(path: str | os.PathLike, state: SolverState) -> None:
    """Writes `state` as a `.solverstate`; the authors' Caffe reads float32 histories only.

    The file is written atomically. Raises CaffeFileError for histories that are neither float32 nor float64.
    """
    head = SolverStateParameter(iter=state.iter, learned_net=os.fsencode(state.learned_net))
    tail = SolverStateParameter(current_step=state.current_step)
    history = (
        SolverStateParameter(history=[_blob(array, False, f"{path}: history blob {i}")])
        for i, array in enumerate(state.history)
    )
    _write(path, [head], history, [tail])


def _parse(path: str | os.PathLike, kind: type[AnyMessage]) -> AnyMessage:
    if kind_of_file := foreign_kind(path):
        raise CaffeFileError(f"{path} {kind_of_file}.")
    size = os.stat(path).st_size
    if size > _MAX_BYTES:
        raise CaffeFileError(f"{path} has {size} bytes, more than the 2 GiB that a binary Caffe file can have.")
    with open(path, "rb") as file:
        head = file.read(4)
        if head.startswith((b"PK", b"\x1f\x8b")):
            raise CaffeFileError(f"{path} is an archive or a PyTorch file, no binary Caffe file: unpack or convert it.")
        if head[:1] == b"\0":  # no message begins with 0; a file of zeros is rejected before it is read
            raise CaffeFileError(f"{path} begins with a zero byte: it is damaged or no binary Caffe file.")
        file.seek(0)
        content = file.read()
    if not content:
        raise CaffeFileError(f"{path} is empty.")
    try:
        return kind.FromString(content)
    except DecodeError:
        raise CaffeFileError(f"{path} cannot be parsed: it is truncated, damaged or no binary Caffe file.") from None


def _write(path: str | os.PathLike, *parts: Iterable[Message]) -> None:
    """Writes messages one after the other, which protobuf reads as their union.

    Only the message being written is held in memory twice.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".a2s_part.", suffix=path.suffix, dir=path.parent)
    except FileNotFoundError as error:  # nothing can be made there, as in /proc
        raise CaffeFileError(f"{path} cannot be written ({error.strerror}): give another path.") from error
    try:
        with open(handle, "wb") as file:
            for message in itertools.chain(*parts):
                file.write(message.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(file.fileno(), 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = os.fspath(path)  # a failed write names no file
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _array(blob: Message, where: str) -> np.ndarray:
    values = _values(blob, where)
    legacy = any(blob.HasField(axis) for axis in _LEGACY_AXES)
    shape = tuple(getattr(blob, axis) for axis in _LEGACY_AXES) if legacy else tuple(blob.shape.dim)
    if len(shape) > _MAX_AXES or any(n < 1 for n in shape) or math.prod(shape) != values.size:
        spelled = "x".join(map(str, shape[: _MAX_AXES + 1])) or "nothing"
        raise CaffeFileError(f"{where} has {values.size} values for the shape {spelled}: the file is damaged.")
    if not np.isfinite(values).all():
        raise CaffeFileError(f"{where} holds NaN or infinite values: the file is damaged or its training diverged.")
    return values.reshape(shape)


def _values(blob: Message, where: str) -> np.ndarray:
    field = next((field for field in _FIELDS if any(getattr(blob, field))), None)
    if field is None:
        return _unpacked(blob)
    dtype = _RAW_DTYPES.get(getattr(blob, f"{field}_type")) if field.startswith("raw") else _DTYPES[field]
    if dtype is None:
        kind = getattr(blob, f"{field}_type")
        raise CaffeFileError(f"{where} holds values of type {kind}, which is none of double, float and float16.")
    raw = b"".join(getattr(blob, field))
    if len(raw) % dtype.itemsize:
        raise CaffeFileError(f"{where} has {len(raw)} bytes of {dtype.name} values: the file is damaged.")
    values = np.frombuffer(raw, dtype)
    return values.astype(np.float32) if dtype.itemsize == 2 else values


def _unpacked(blob: Message) -> np.ndarray:
    """The values of the rare blobs that are not packed; empty if it has none."""
    unpacked = UnpackedBlobProto.FromString(blob.SerializeToString())
    for field in _FIELDS:
        if field in _DTYPES and (values := getattr(unpacked, field)):
            return np.array(values, _DTYPES[field])
    return np.empty(0, np.float32)


def _net_of_one_layer(layer: Layer, v1: bool, path: str | os.PathLike) -> Message:
    blobs = [_blob(array, v1, f"{path}: blob {i} of layer {layer.name!r}") for i, array in enumerate(layer.blobs)]
    if not v1:
        return NetParameter(layer=[{"name": layer.name.encode(), "type": layer.type.encode(), "blobs": blobs}])
    number = _v1_type_number(layer.type)
    if number is None:
        raise CaffeFileError(
            f"{path}: the V1 format has no number for type {layer.type!r} of layer {layer.name!r}: use the new format."
        )
    return NetParameter(layers=[{"name": layer.name.encode(), "type": number, "blobs": blobs}])


def _blob(array: np.ndarray, v1: bool, where: str) -> Message:
    field = {4: "data", 8: "double_data"}.get(array.dtype.itemsize) if array.dtype.kind == "f" else None
    if field is None:
        raise CaffeFileError(f"{where} is {array.dtype}: Caffe stores float32 and float64.")
    blob = BlobProto(**{field: [array.astype(_DTYPES[field], copy=False).tobytes()]})
    if not v1:
        blob.shape.dim.extend(array.shape)
        blob.shape.SetInParent()  # also writes the empty shape of a scalar
    elif array.ndim <= len(_LEGACY_AXES):
        for axis, n in zip(_LEGACY_AXES, (1,) * (len(_LEGACY_AXES) - array.ndim) + array.shape, strict=True):
            setattr(blob, axis, n)
    else:
        raise CaffeFileError(f"{where} has {array.ndim} axes: the V1 format has four.")
    return blob


def _v1_type_name(number: int) -> str:
    return V1_TYPES[number] if 0 <= number < len(V1_TYPES) else str(number)


def _v1_type_number(name: str) -> int | None:
    if name in V1_TYPES:
        return V1_TYPES.index(name)
    return int(name) if name.isdecimal() else None


def _text(raw: bytes) -> str:
    """A name as printable text: invalid UTF-8 and unprintable characters are escaped."""
    text = raw.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
