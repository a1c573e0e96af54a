"""Reads and writes Caffe's files: binary ones as numpy arrays, text ones as fields."""

from caffe_weights.errors import CaffeFileError
from caffe_weights.files import (
    CaffeNet,
    Layer,
    SolverState,
    read_caffemodel,
    read_solverstate,
    write_caffemodel,
    write_solverstate,
)
from caffe_weights.prototxt import Fields, Word, layers_of_phase, parse_prototxt, prototxt, read_prototxt
from caffe_weights.sharing import SUFFIX_OF_SCALE, same_blobs, stream_of
from caffe_weights.tables import net_table, solverstate_table

__all__ = [
    "SUFFIX_OF_SCALE",
    "CaffeFileError",
    "CaffeNet",
    "Fields",
    "Layer",
    "SolverState",
    "Word",
    "layers_of_phase",
    "net_table",
    "parse_prototxt",
    "prototxt",
    "read_caffemodel",
    "read_prototxt",
    "read_solverstate",
    "same_blobs",
    "solverstate_table",
    "stream_of",
    "write_caffemodel",
    "write_solverstate",
]
