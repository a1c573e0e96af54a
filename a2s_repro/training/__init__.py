"""Training: the loop, the trainer that it drives, the log of a run, and signals."""

from a2s_repro.training.loop import Outcome, Run, train
from a2s_repro.training.trainer import Trainer

__all__ = ["Outcome", "Run", "Trainer", "train"]
