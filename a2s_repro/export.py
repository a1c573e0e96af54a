"""Exports a net as a torch.export program, as ONNX, as Caffe's files, or as safetensors.

Programs and ONNX files take normalised images and return labels at the size of the images, the score map and the
attention weights; their description (see `describe`) specifies the input. Both accept any batch size, and any image
size that fits the net's grids.
"""

import contextlib
import io
import json
import logging
import math
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from a2s_repro import ops
from a2s_repro.caffe.conversion import load_net
from a2s_repro.caffe.export import export_caffemodel
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.normalization import NORMALIZATIONS
from a2s_repro.errors import InputError, first_line, not_written
from a2s_repro.files import replacing
from a2s_repro.inference.exported import DESCRIPTION, IMAGE, Outputs
from a2s_repro.inference.segmenter import Segmenter, class_names, load_model
from a2s_repro.runtime.devices import is_out_of_memory
from a2s_repro.runtime.precision import float32_products

SUFFIXES = {
    ".pt2": "a torch.export program",
    ".onnx": "ONNX",
    ".caffemodel": "Caffe's weights and deploy prototxt",
    ".safetensors": "weights and their meta",
}

TOLERANCE = 1e-4
"""Largest allowed deviation of an exported net, relative to the largest score; onnxruntime's is up to 3e-5."""


class Exported(NamedTuple):
    """The files written, and their deviation from the net."""

    files: list[Path]
    deviation: float | None
    """Deviation of the exported net, relative to the largest score; None if only weights were written."""


class Deployed(nn.Module):
    """A net with its inference tail, as in exported programs and ONNX files."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Outputs:
        """Normalised images (N, 3, H, W) -> `labels` (N, H, W) uint8, `scores` (N, C, h, w), the merged score map on
        its own grid, and `weights` (N, S, h, w) if the net merges by attention."""
        prediction = self.net(image)
        outputs = {"labels": ops.segment(prediction.scores, image.shape[2:]), "scores": prediction.scores}
        if prediction.weights is not None:
            outputs["weights"] = prediction.weights
        return outputs


def export(
    path: str | os.PathLike,
    output: str | os.PathLike,
    *,
    device: str = "cpu",
    native: bool = False,
    deploy_size: tuple[int, int] = (513, 513),
    scales: Sequence[float] | None = None,
    backbone: nn.Module | None = None,
) -> Exported:
    """Exports the net of a weights file to `output`; the suffix selects the format (see `SUFFIXES`).

    Programs and ONNX files are verified after writing, on batches of several sizes: `output` is created only if its
    results agree with the net's within `TOLERANCE`.

    Args:
        path: a complete net as a weights file, a snapshot, a run or a .caffemodel (`load_net`); for Caffe also initial
            weights, but no .caffemodel.
        device: device on which a torch.export program will run.
        native: keep the fused operators in a torch.export program; `import a2s_repro.ops` before loading it.
        deploy_size: (height, width) of the images for Caffe's deploy prototxt.
        scales, backbone: as for `load_model`.

    Raises:
        InputError: another suffix, a file without a complete net, a net that the format cannot represent, a missing
            package, an exported file that fails verification, or a full disk.
    """
    output = Path(output)
    if output.suffix not in SUFFIXES:
        known = ", ".join(f"{suffix} ({form})" for suffix, form in SUFFIXES.items())
        raise InputError(f"{output}: the suffix selects the format of an exported net: give one of {known}.")
    if native and output.suffix != ".pt2":
        raise InputError(f"{output}: only a .pt2 program can keep the native operators: leave out native.")
    if output.suffix == ".caffemodel":
        if scales is not None:
            raise InputError(
                f"{output} has the scales of the training: leave out the scales, or export with them to .safetensors, "
                "and that to .caffemodel."
            )
        return Exported(export_caffemodel(path, output, deploy_size=deploy_size), None)
    trained = load_net(path)
    net, meta = load_model(trained, device, scales, backbone)
    net.to(memory_format=torch.contiguous_format)  # the layout that other programs expect
    if output.suffix == ".safetensors":
        at_scales = {} if scales is None else {"model": net.config(), "scales": list(net.scales)}
        named = meta | {"classes": class_names(net.num_classes, meta)} | at_scales
        save_weights(output, trained.weights.state_dict, named)
        return Exported([output], None)
    description = describe(net, meta)
    if output.suffix == ".onnx":
        return Exported([output], export_onnx(net, description, output))
    return Exported([output], export_program(net, description, output, native=native))


def describe(net: nn.Module, meta: dict[str, Any]) -> dict[str, Any]:
    """The description of an exported net for its users, as JSON values.

    `classes`: names of the labels. `image`: normalisation of grey levels 0..255 (see `IMAGE`); pad with 0 after it, at
    the bottom and right. `pad_to`: smallest side to which the Segmenter pads. `grid_step`: valid sides are
    k * grid_step + 1 for k >= 1. `scales`: scales of the attention weights. `bytes_per_pixel`: estimated memory of a
    forward pass. `net`: arguments of the constructor. `recipe`: recipe of the training, if known.
    """
    described = {
        "classes": class_names(net.num_classes, meta),
        "image": IMAGE[net.normalization],
        "pad_to": Segmenter.pad_to,
        "grid_step": net.grid_step,
        "scales": list(net.scales),
        "bytes_per_pixel": net.bytes_per_pixel(),
        "net": net.config(),
    }
    return described | ({"recipe": meta["recipe"]} if "recipe" in meta else {})


def program(net: nn.Module, *, native: bool = False) -> ExportedProgram:
    """`Deployed(net)` as a torch.export program for any batch size and any image size that fits the net's grids.

    The program contains only PyTorch's operators, so it runs without this package; with `native` it contains the fused
    operators.
    """
    step = net.grid_step
    image = torch.zeros(2, 3, 3 * step + 1, 2 * step + 1, device=next(net.parameters()).device)
    with ops.use_backend("native" if native else "reference"), torch.no_grad():
        exported = torch.export.export(Deployed(net.eval()), (image,), dynamic_shapes=_dynamic_shapes(step))
    _round_sizes_in_integers(exported.graph)
    return exported


def _round_sizes_in_integers(graph: torch.fx.Graph) -> None:
    """Replaces ceil(a / b) of sizes by -(-a // b): backbones compute it, but a .pt2 has no such operation."""
    for node in [node for node in graph.nodes if node.target is math.ceil]:
        quotient = node.args[0]
        if quotient.target is not operator.truediv:
            continue
        rounded, divisor = quotient.args
        for operation, operands in ((operator.neg, ()), (operator.floordiv, (divisor,)), (operator.neg, ())):
            values = [each.meta["val"] if isinstance(each, torch.fx.Node) else each for each in (rounded, *operands)]
            with graph.inserting_before(node):
                rounded = graph.call_function(operation, (rounded, *operands))
            rounded.meta["val"] = operation(*values)
        node.replace_all_uses_with(rounded)
        graph.erase_node(node)
        if not quotient.users:
            graph.erase_node(quotient)


def _dynamic_shapes(step: int) -> dict[str, dict[int, Any]]:
    return {"image": {0: Dim("batch", min=1), 2: step * Dim("rows", min=1) + 1, 3: step * Dim("columns", min=1) + 1}}


def export_program(
    net: nn.Module, description: dict[str, Any], output: str | os.PathLike, *, native: bool = False
) -> float:
    """Writes `program(net)` and its description as a .pt2 archive; returns its deviation (see `Exported`).

    Raises InputError if the reloaded program deviates by more than `TOLERANCE`, or the disk is full.
    """
    content = io.BytesIO()  # torch's own writer aborts the process on a full disk
    with _representing(output):
        exported = program(net, native=native)
        torch.export.save(exported, content, extra_files={DESCRIPTION: json.dumps(description, indent=1)})
    with replacing(output) as temporary:
        with _writing(output):
            temporary.write_bytes(content.getbuffer())
        return _checked(net, torch.export.load(temporary).module(), output)


def export_onnx(net: nn.Module, description: dict[str, Any], output: str | os.PathLike) -> float:
    """Writes `program(net)` as ONNX with the description as JSON values in metadata_props; returns its deviation.

    Raises InputError if the result of onnxruntime deviates by more than `TOLERANCE`, if ONNX's packages are missing, or
    the disk is full.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx.export needs it)
    except ImportError as missing:
        raise InputError(
            f"ONNX needs the package {missing.name}: pip install onnx onnxscript onnxruntime (a2s_repro[export])."
        ) from None
    with _quiet(), _representing(output):
        exported = program(net)
        outputs = exported.call_spec.out_spec
        names = list(outputs.unflatten(range(outputs.num_leaves)))
        graph = torch.onnx.export(
            exported,
            dynamic_shapes=_dynamic_shapes(net.grid_step),
            input_names=["image"],
            output_names=names,
            dynamo=True,
            verbose=False,
        )
    graph.model.metadata_props.update({key: json.dumps(value) for key, value in description.items()})

    with replacing(output) as temporary:
        with _writing(output):
            graph.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])

        def run(image: Tensor) -> Outputs:
            arrays = session.run(names, {"image": image.cpu().numpy()})
            return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

        return _checked(net, run, output)


def deviation(net: nn.Module, run: Callable[[Tensor], Outputs], *, seed: int = 0) -> float:
    """Deviation of `run` from `Deployed(net)` on noise batches of three sizes, relative to the largest score.

    For `scores` it is their difference. For `labels` it is the difference between the largest score at a pixel and the
    score of the label, because the labels of nearly equal scores depend on rounding. For attention weights it is their
    absolute difference.
    """
    random = np.random.default_rng(seed)
    deviations = []
    for batch, *size in ((1, 65, 97), (3, 97, 65), (2, 161, 161)):
        height, width = (max(round(side / net.grid_step), 1) * net.grid_step + 1 for side in size)
        pictures = random.integers(0, 256, (batch, height, width, 3), np.uint8)
        image = torch.from_numpy(np.stack([NORMALIZATIONS[net.normalization](picture) for picture in pictures]))
        image = image.to(next(net.parameters()).device)
        with torch.inference_mode(), float32_products("ieee"):
            ours, theirs = Deployed(net)(image), {name: value.to(image.device) for name, value in run(image).items()}
            unit = ours["scores"].abs().max()
            at_pixels = ops.interp(ours["scores"], (height, width))
            of_label = at_pixels.gather(1, theirs["labels"].long()[:, None])
            deviations.append((theirs["scores"] - ours["scores"]).abs().max() / unit)
            deviations.append((at_pixels.amax(1, keepdim=True) - of_label).max() / unit)
            if "weights" in ours:
                deviations.append((theirs["weights"] - ours["weights"]).abs().max())
    return torch.stack(deviations).max().item()


def _checked(net: nn.Module, run: Callable[[Tensor], Outputs], output: str | os.PathLike) -> float:
    measured = deviation(net, run)
    if not measured <= TOLERANCE:  # also raises for NaN
        raise InputError(
            f"{output} is not written, because it deviates from the net by {measured:.1e} of the largest score, and at "
            f"most {TOLERANCE:.0e} is allowed; try other releases of torch and onnxruntime."
        )
    return measured


@contextlib.contextmanager
def _writing(output: str | os.PathLike) -> Iterator[None]:
    """Turns failed writes, which torch reports as RuntimeError, into InputErrors."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise not_written(output, error) from error


@contextlib.contextmanager
def _representing(output: str | os.PathLike) -> Iterator[None]:
    """Turns what torch raises where a net has an operation that a format lacks into an InputError."""
    try:
        yield
    except Exception as error:  # of many types
        if is_out_of_memory(error):
            raise
        other = ".onnx" if Path(output).suffix == ".pt2" else ".pt2"
        raise InputError(
            f"{output}: torch cannot write the net in this format ({first_line(error)}): try {other}."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the ONNX exporter's messages about optional packages and deprecations."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(before)
