"""Exports weights and snapshots to Caffe: `.caffemodel`, `.solverstate` and `deploy.prototxt`."""

import os
from pathlib import Path

import torch

from a2s_repro.caffe.conversion import to_caffe
from a2s_repro.caffe.deploy import deploy_prototxt
from a2s_repro.caffe.state import caffe_histories
from a2s_repro.checkpoint.snapshots import Snapshot, is_snapshot, load_into, load_snapshot
from a2s_repro.checkpoint.trained import load_trained
from a2s_repro.checkpoint.weights import Weights
from a2s_repro.errors import InputError
from a2s_repro.files import replacing
from a2s_repro.models import ShareNet, build_model, check_state
from a2s_repro.recipes import Recipe
from caffe_weights import CaffeNet, SolverState, write_caffemodel, write_solverstate


def export_caffemodel(
    path: str | os.PathLike, output: str | os.PathLike, *, v1: bool = False, deploy_size: tuple[int, int] = (513, 513)
) -> list[Path]:
    """Writes a weights file, a snapshot or a run's weights as `output`, a `.caffemodel`; returns all files written.

    For a snapshot a `.solverstate` of the same name is written as well, from which Caffe resumes the run. If the
    weights are a whole net, `<output>_deploy.prototxt` runs it on images of `deploy_size` (height, width). `v1` is
    passed to `write_caffemodel`.

    Raises:
        InputError, CaffeFileError, OSError: before anything is written, except when the disk is full.
    """
    path, output = Path(path), Path(output)
    if is_snapshot(path):
        net, weights, state = snapshot_in_caffe(load_snapshot(path), path.name, str(output))
    else:
        weights = load_trained(path).weights
        net, state = to_caffe(weights, path.name), None
    prototxt = _prototxt(weights, deploy_size)

    written = [output]
    write_caffemodel(output, net, v1=v1)
    if state:
        written.append(output.with_suffix(".solverstate"))
        write_solverstate(written[-1], state)
    if prototxt:
        written.append(output.with_name(f"{output.stem}_deploy.prototxt"))
        with replacing(written[-1]) as temporary:
            temporary.write_text(prototxt)
    return written


def snapshot_in_caffe(snapshot: Snapshot, file: str, learned_net: str) -> tuple[CaffeNet, Weights, SolverState]:
    """Converts a snapshot to Caffe: the Caffe net, its weights as `Weights`, and the solver's state.

    `file` names the snapshot in errors; `learned_net` is the path of the `.caffemodel` to record in the state.

    Raises:
        InputError: as `to_caffe`; also for another solver than Caffe's, and for a share-net with shared_decay once,
            which the authors' Caffe does not support.
    """
    recipe = Recipe.of_config(snapshot.config)
    if recipe.solver != "caffe":
        raise InputError(f"{file} is of a run with PyTorch's solver, from whose state Caffe cannot resume.")
    if recipe.backbone == "vgg16" and recipe.shared_decay == "once" and len(recipe.scales) > 1:
        raise InputError(f"{file} is of a run with shared_decay once, but Caffe decays once for every sharing copy.")
    with torch.device("meta"):
        check_state(recipe.net(), snapshot.model, file)
    model = recipe.net()
    if snapshot.has_slots and isinstance(model, ShareNet):
        model.copy_per_stream()
    solver = recipe.optimizer(model)
    load_into(snapshot, model, solver)
    weights = Weights(snapshot.model, {"model": model.config(), "classifier": recipe.classifier})
    net = to_caffe(weights, file)
    drops = recipe.learning_rate().drops(max(snapshot.iteration - 1, 0))
    return net, weights, SolverState(snapshot.iteration, drops, learned_net, caffe_histories(net, model, solver))


def _prototxt(weights: Weights, size: tuple[int, int]) -> str | None:
    if "model" not in weights.meta:
        return None
    with torch.device("meta"):
        model = build_model(weights.meta["model"])
    return deploy_prototxt(model, weights.meta.get("classifier") or model.classifier_layer, size)
