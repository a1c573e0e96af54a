"""Tables of a Caffe file's contents, as text."""

import numpy as np

from caffe_weights.files import CaffeNet, Layer, SolverState
from caffe_weights.sharing import same_blobs, stream_of


def net_table(net: CaffeNet) -> str:
    """One row per blob: layer, type, shape, dtype, sum and l2 norm (in float64), and its relation to a shared layer.

    A stream's layer is marked `copy of` the first stream's layer or `differs from` it. A layer without blobs has one
    row with its name and type.
    """
    by_name = {layer.name: layer for layer in net.layers if layer.blobs}
    owners: dict[str, Layer] = {}
    rows = [("layer", "type", "shape", "dtype", "sum", "l2", "")]
    for layer in net.layers:
        owner = owners.setdefault(stream_of(layer.name)[0], layer) if layer.blobs else layer
        note = ""
        if owner is not layer:
            note = f"{'copy of' if same_blobs(layer, owner) else 'differs from'} {owner.name}"
        rows += [(layer.name, layer.type, *_figures(blob), note) for blob in layer.blobs]
        if not layer.blobs:
            rows.append((layer.name, layer.type, "", "", "", "", ""))
    values = sum(blob.size for layer in by_name.values() for blob in layer.blobs)
    return f"net {net.name!r}: {len(net.layers)} layers, {len(by_name)} with blobs, {values} values\n{_aligned(rows)}"


def solverstate_table(state: SolverState) -> str:
    """The state's scalars, and one row per history blob: index, shape, dtype, sum and l2 norm (in float64)."""
    rows = [("history", "shape", "dtype", "sum", "l2")]
    rows += [(str(i), *_figures(blob)) for i, blob in enumerate(state.history)]
    head = f"iter {state.iter}, current_step {state.current_step}, learned_net {state.learned_net!r}"
    return f"{head}\n{_aligned(rows)}"


def _figures(blob: np.ndarray) -> tuple[str, str, str, str]:
    values = blob.ravel()
    l2 = np.sqrt(np.einsum("i,i->", values, values, dtype=np.float64))
    shape = "x".join(map(str, blob.shape)) or "scalar"
    return shape, blob.dtype.name, f"{values.sum(dtype=np.float64):.7g}", f"{l2:.7g}"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
