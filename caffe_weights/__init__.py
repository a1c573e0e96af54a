"""Caffe files to numpy and back."""

from caffe_weights.errors import CaffeFileError
from caffe_weights.files import (
    Layer,
    Net,
    SolverState,
    read_caffemodel,
    read_solverstate,
    write_caffemodel,
    write_solverstate,
)
from caffe_weights.sharing import SCALE_OF_SUFFIX, same_blobs, shared_base
from caffe_weights.tables import net_table, solverstate_table

__all__ = [
    "SCALE_OF_SUFFIX",
    "CaffeFileError",
    "Layer",
    "Net",
    "SolverState",
    "net_table",
    "read_caffemodel",
    "read_solverstate",
    "same_blobs",
    "shared_base",
    "solverstate_table",
    "write_caffemodel",
    "write_solverstate",
]
