"""Caffe files to numpy and back."""

from caffe_weights.errors import CaffeFileError
from caffe_weights.files import Layer, Net, SolverState, read_caffemodel, read_solverstate, write_caffemodel

__all__ = ["CaffeFileError", "Layer", "Net", "SolverState", "read_caffemodel", "read_solverstate", "write_caffemodel"]
