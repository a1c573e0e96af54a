"""Attention to Scale and Attention to Refine in PyTorch, faithful to the authors' Caffe."""

__version__ = "0.1.0"
