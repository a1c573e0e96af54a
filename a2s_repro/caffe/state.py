"""Solver state in Caffe's `.solverstate`, which holds a history for every copy of every parameter."""

import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
from torch import nn

from a2s_repro.caffe.conversion import from_caffe
from a2s_repro.caffe.layers import RESNET, kinds_of, system_of
from a2s_repro.checkpoint.initialisation import load_layers
from a2s_repro.errors import InputError
from a2s_repro.models import DeepLab
from a2s_repro.solver import CaffeSGD
from caffe_weights import CaffeNet, SolverState, read_caffemodel, read_solverstate, stream_of


def caffe_histories(net: CaffeNet, model: DeepLab, solver: CaffeSGD) -> list[np.ndarray]:
    """The solver's histories in float32, one per blob of `net`, the Caffe net converted from `model`.

    If the copies of a parameter share one slot, its history is written for the first copy and zeros for the others.
    Because the solver is linear, Caffe resumes with the same updates.
    """
    histories = []
    for parameter, blob in _slots(net, model):
        state = solver.state.get(parameter, {}) if parameter is not None else {}
        if "history" in state:
            histories.append(state["history"].float().cpu().contiguous().numpy())
        else:
            histories.append(np.zeros(blob.shape, np.float32))
    return histories


def load_caffe_state(path: str | os.PathLike, model: DeepLab, solver: CaffeSGD, classifier: str) -> SolverState:
    """Loads weights and histories of a Caffe snapshot into `model` and `solver`, and returns the solver's state.

    Args:
        path: the `.solverstate`; its `.caffemodel` is at the path recorded there, relative to the working directory,
            or else in the folder of the `.solverstate`.
        model: the same net; a share-net must have a copy per stream (`ShareNet.copy_per_stream`).
        solver: a solver over the parameter groups of `model`.
        classifier: Caffe's name of layer fc8.

    Raises:
        InputError: the `.caffemodel` is missing, or one of the files is of another net; names the difference.
        CaffeFileError: a damaged file.
    """
    path = Path(path)
    state = read_solverstate(path)
    weights_path = _weights_of(path, state)
    net = read_caffemodel(weights_path)
    weights = from_caffe(net, weights_path.name).weights
    _check_same_net(weights.meta, model, weights_path)
    loaded = load_layers(model, weights, weights_path, classifier)
    if loaded.fresh or loaded.ignored:
        raise InputError(f"{weights_path} is of another net than the recipe ({loaded}): give its --classifier.")

    slots = list(_slots(net, model))
    if [history.size for history in state.history] != [blob.size for _, blob in slots]:
        raise InputError(
            f"the histories of {path} do not fit the parameters of {weights_path}: give two files of the same run."
        )
    for (parameter, _), history in zip(slots, state.history, strict=True):
        values = torch.from_numpy(history.copy()).reshape(parameter.shape)
        solver.state[parameter]["history"] = torch.zeros_like(parameter).copy_(values)
    return state


def _slots(net: CaffeNet, model: DeepLab) -> Iterator[tuple[nn.Parameter | None, np.ndarray]]:
    """Pairs of parameter and blob for every blob of `net`; the parameter is None for a copy without its own history."""
    streams = dict(zip(model.scales, (model, *model.copies), strict=False))
    system = system_of({stream_of(layer.name)[0] for layer in net.layers})
    seen = set()
    for layer in net.layers:
        base, scale = stream_of(layer.name)
        module = system.module_of(base)
        if system is RESNET and module in seen:  # the Caffe of DeepLab v2 has one history for all copies
            continue
        stream = streams[scale] if model.copies and module not in model.unshared_layers else model
        for kind, blob in zip(kinds_of(module), layer.blobs, strict=False):
            parameter = dict(stream.layer(module).named_parameters()).get(kind)  # BatchNorm has none
            yield (None if parameter in seen else parameter), blob
            seen.add(parameter)
        seen.add(module)


def _weights_of(path: Path, state: SolverState) -> Path:
    name = PureWindowsPath(state.learned_net).name  # splits at / as well as at \\
    for candidate in (state.learned_net, path.parent / Path(state.learned_net).name, path.parent / name):
        if os.path.isfile(candidate):
            return Path(candidate)
    raise InputError(
        f"the weights of {path} are missing: put {name or 'the .caffemodel (which it does not name)'} next to it."
    )


def _check_same_net(meta: dict, model: DeepLab, path: Path) -> None:
    theirs, ours = {"scales": meta["scales"], **meta.get("model", {})}, {"scales": list(model.scales), **model.config()}
    for name in ("net", "scales", "merge", "skip_net", "head", "num_classes", "pool5a"):
        if name in theirs and theirs[name] != ours.get(name):
            raise InputError(f"{path} is of a net with {name} {theirs[name]}, the recipe's has {ours.get(name)}.")
