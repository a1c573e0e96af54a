"""Batch normalisation whose passes are dealt out to several processes."""

import torch
from torch import nn

from a2s_repro.runtime.distributed import is_main, sum_, world_size


class RunningStatistics:
    """Keeps the running means and variances of a net's BatchNorm2d layers in training as one process would have them.

    A pass replaces them by (1 - momentum) * running + momentum * its own, which is linear. So every process but the
    first begins an update with zeros, decays what it has for each pass that another makes, and the sum over the
    processes at the end is what one process gets. Statistics that SyncBatchNorm takes over all processes agree anyway.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d) and layer.training]
        self._layers = layers if world_size() > 1 else []
        self._running = [buffer for layer in self._layers for buffer in (layer.running_mean, layer.running_var)]
        self._counts = [layer.num_batches_tracked for layer in self._layers]
        self._decays: list[float] = []

    def begin(self) -> None:
        """To be called before the passes of an update."""
        if not is_main():
            for buffer in (*self._running, *self._counts):
                buffer.zero_()
        if not self._decays:
            self._before = [int(count) for count in self._counts]

    def made_pass(self) -> None:
        """To be called after each pass of this process."""
        if not self._decays:  # after the first, which all others equal in this; reading the counts waits for a GPU
            calls = [int(count) - before for count, before in zip(self._counts, self._before, strict=True)]
            per_layer = [(1 - layer.momentum) ** n for layer, n in zip(self._layers, calls, strict=True)]
            self._decays = [decay for decay in per_layer for _ in ("mean", "variance")]

    def skip_pass(self) -> None:
        """To be called where another process makes a pass."""
        if self._decays:  # before its first own pass a process has zeros
            for buffer, decay in zip(self._running, self._decays, strict=True):
                buffer.mul_(decay)

    def finish(self) -> None:
        """To be called after the passes of an update; all processes must."""
        buffers = [*self._running, *self._counts]
        if buffers:
            total = sum_(torch.cat([buffer.double().flatten() for buffer in buffers]))
            for buffer, part in zip(buffers, total.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))
