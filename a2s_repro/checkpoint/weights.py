"""Weights files: a state dict and its meta, as `.pth` or `.safetensors`.

Both formats hold only tensors and plain values, with the same content. A `.pth` file is a dict
{"format", "state_dict", "meta"}, readable with `torch.load(weights_only=True)`, and its parts carry checksums. A
`.safetensors` file, a format without checksums, holds "format", "meta" (as JSON) and "sha256" in its metadata.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from a2s_repro.errors import InputError, first_line, not_written
from a2s_repro.files import check_archive, refuse_foreign, replacing

FORMAT = "a2s_repro.weights/1"


@dataclass(frozen=True)
class Weights:
    """The content of a weights file.

    `state_dict` maps parameter names (`conv1_1.weight`, ...) to CPU tensors. `meta` holds plain JSON values: `pool5a`
    (bool), `classifier` (the Caffe name of layer fc8), `source` ({file, sha256, kind}), and for a trained net `model`
    (the constructor arguments), `classes` (names) and `recipe`.
    """

    state_dict: dict[str, torch.Tensor]
    meta: dict[str, Any]


def save_weights(path: str | os.PathLike, state_dict: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Writes `state_dict` (tensors on any device) and `meta` (JSON values) to `path`, a `.pth` or `.safetensors` file.

    The file is written atomically. Raises InputError for another suffix, or if the file cannot be written.
    """
    save = {".pth": _save_pth, ".safetensors": _save_safetensors}[weights_suffix(path)]
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state_dict.items()
    }
    meta_json = json.dumps(dict(meta))
    with replacing(path) as temporary:
        try:
            save(temporary, tensors, meta_json)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise not_written(path, error) from error


def load_weights(path: str | os.PathLike) -> Weights:
    """Reads a weights file to the CPU.

    Raises InputError if `path` has another suffix, is damaged or was not written by `save_weights`, and
    FileNotFoundError if it is missing.
    """
    load = {".pth": _load_pth, ".safetensors": _load_safetensors}[weights_suffix(path)]
    refuse_foreign(path)
    try:
        weights = load(path)
    except Exception as error:  # the unpicklers raise many types for a damaged file
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): the file is damaged or no weights file."
        ) from error
    if weights is None:
        raise InputError(
            f"{path} is not a weights file of this program (format {FORMAT!r}): "
            "make one with `a2s convert` or by training."
        )
    if not _is_sound(weights):
        raise InputError(f"{path} does not hold named tensors and their meta: the file is damaged.")
    return weights


def stored_format(path: str | os.PathLike) -> str | None:
    """The format of a file that this program wrote, of weights or of snapshots; None for others, and if damaged."""
    try:
        if Path(path).suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                content: Any = file.metadata()
        else:
            check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # the unpicklers raise many types for a damaged file
        return None
    kind = content.get("format") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) and kind.startswith("a2s_repro.") else None


def weights_suffix(path: str | os.PathLike) -> str:
    """The suffix of a weights file, `.pth` or `.safetensors`; raises InputError for any other."""
    suffix = Path(path).suffix
    if suffix == ".caffemodel":
        raise InputError(f"{path} is a Caffe file: make a weights file of it by `a2s convert {path} model.pth`.")
    if suffix in (".onnx", ".pt2"):
        raise InputError(f"{path} is an exported net, which has no layers by name: give the file it was exported from.")
    if suffix not in (".pth", ".safetensors"):
        raise InputError(f"{path} is not a weights file: give a .pth or .safetensors.")
    return suffix


def is_stored(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a dense CPU tensor of floats or int64 whose storage holds every element.

    The check rejects expanded tensors, whose claimed size can exceed the file's. int64 is the dtype of batch norm's
    num_batches_tracked.
    """
    is_number = tensor.is_floating_point() or tensor.dtype == torch.int64
    if not (is_number and tensor.is_cpu and tensor.layout == torch.strided and tensor.numel() > 0):
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _save_pth(path: Path, tensors: dict[str, torch.Tensor], meta_json: str) -> None:
    torch.save({"format": FORMAT, "state_dict": tensors, "meta": json.loads(meta_json)}, path)


def _save_safetensors(path: Path, tensors: dict[str, torch.Tensor], meta_json: str) -> None:
    metadata = {"format": FORMAT, "meta": meta_json, "sha256": _sha256(tensors, meta_json)}
    save_file(tensors, path, metadata=metadata)


def _sha256(tensors: Mapping[str, torch.Tensor], meta_json: str) -> str:
    """The SHA-256 of the meta and of every tensor's name, dtype, shape and bytes, in the order of the names."""
    digest = hashlib.sha256(meta_json.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_pth(path: str | os.PathLike) -> Weights | None:
    check_archive(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    return Weights(content["state_dict"], content["meta"])


def _load_safetensors(path: str | os.PathLike) -> Weights | None:
    with safe_open(path, framework="pt", device="cpu") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            return None
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "sha256" in header and header["sha256"] != _sha256(tensors, header["meta"]):  # files of 0.1 have none
        raise ValueError("its checksum is wrong")
    return Weights(tensors, json.loads(header["meta"]))


def _is_sound(weights: Weights) -> bool:
    return (
        isinstance(weights.meta, dict)
        and isinstance(weights.state_dict, dict)
        and all(isinstance(name, str) for name in weights.state_dict)
        and all(isinstance(tensor, torch.Tensor) and is_stored(tensor) for tensor in weights.state_dict.values())
    )
