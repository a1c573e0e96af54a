"""Files on disk: weights, snapshots of a training run, and initial weights."""

from a2s_repro.checkpoint.snapshots import Snapshot, load_snapshot, save_snapshot
from a2s_repro.checkpoint.weights import Weights, load_weights, save_weights

__all__ = ["Snapshot", "Weights", "load_snapshot", "load_weights", "save_snapshot", "save_weights"]
