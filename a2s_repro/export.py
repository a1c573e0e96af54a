"""From our files to Caffe's: a `.caffemodel`, and what goes with it."""

import os
from pathlib import Path

import torch

from a2s_repro.checkpoint import load_weights
from a2s_repro.conversion import to_caffe
from a2s_repro.deploy import deploy_prototxt
from a2s_repro.files import replacing
from a2s_repro.models import build_model
from caffe_weights import write_caffemodel


def export(
    path: str | os.PathLike, output: str | os.PathLike, *, v1: bool = False, deploy_size: tuple[int, int] = (513, 513)
) -> list[Path]:
    """Writes a weights file as `output`, a `.caffemodel`, and returns all files written.

    Where the weights are a whole net, `<output>_deploy.prototxt` runs it on images of `deploy_size` (height, width).
    `v1` is for `write_caffemodel`. Raises InputError, CaffeFileError or OSError, before anything is written unless the
    disk is full.
    """
    output = Path(output)
    weights = load_weights(path)
    net = to_caffe(weights, Path(path).name)
    texts = {}
    if "model" in weights.meta:
        with torch.device("meta"):
            model = build_model(weights.meta["model"])
        prototxt = deploy_prototxt(model, weights.meta.get("classifier") or "fc8", deploy_size)
        texts[output.with_name(f"{output.stem}_deploy.prototxt")] = prototxt
    write_caffemodel(output, net, v1=v1)
    for file, text in texts.items():
        with replacing(file) as temporary:
            temporary.write_text(text)
    return [output, *texts]
