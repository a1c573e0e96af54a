"""Inference: segmentation of images and videos, the dense CRF, and evaluation."""

from a2s_repro.inference.crf import CRF, dense_crf
from a2s_repro.inference.evaluation import evaluate
from a2s_repro.inference.segmenter import Segmenter, load_model

__all__ = ["CRF", "Segmenter", "dense_crf", "evaluate", "load_model"]
