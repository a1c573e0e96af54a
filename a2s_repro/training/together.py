"""The number of passes of an update that run together, as one batch."""

import torch
from torch import Tensor, nn

from a2s_repro.models import Net

SHARE_OF_MEMORY = 0.8
"""Share of a GPU's free memory that the passes may take."""


def passes_together(wanted: int | None, net: Net, batch_size: int, crop: int, passes: int, device: torch.device) -> int:
    """At most `wanted` of the `passes` that a process makes in an update; None: as many as fit into a GPU's memory.

    On a CPU None is 1, because a batch of few crops already keeps its cores busy. A net with batch normalisation in
    training runs pass by pass, as each pass is normalised by its own statistics.
    """
    if normalises_batches(net):
        return 1
    if wanted is not None:
        return min(wanted, passes)
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return even_share(passes, int(SHARE_OF_MEMORY * free / (batch_size * training_bytes(net, crop))))


def even_share(passes: int, most: int) -> int:
    """The passes of a batch where the fewest batches of at most `most` share them as evenly as possible."""
    batches = -(-passes // max(most, 1))
    return -(-passes // batches)


def normalises_batches(net: nn.Module) -> bool:
    """Whether a net has batch normalisation in training."""
    kinds = nn.BatchNorm2d, nn.SyncBatchNorm
    return any(isinstance(layer, kinds) and layer.training for layer in net.modules())


def training_bytes(net: Net, crop: int) -> int:
    """Estimated memory of a forward and backward pass for one crop: twice the outputs of all layers, in float32.

    Computed on the meta device.
    """
    total = 0

    def measure(_: nn.Module, __: tuple, output: Tensor) -> None:
        nonlocal total
        total += output.nbytes

    layers = [module for module in net.modules() if not any(module.children())]
    hooks = [layer.register_forward_hook(measure) for layer in layers]
    tensors = (*net.named_parameters(), *net.named_buffers())
    state = {name: tensor.detach().to("meta") for name, tensor in tensors}
    torch.func.functional_call(net, state, torch.empty(1, 3, crop, crop, device="meta"))
    for hook in hooks:
        hook.remove()
    return 2 * total
