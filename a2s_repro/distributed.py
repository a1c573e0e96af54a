"""Many processes at one task, as torchrun starts them. In a single process all of this does nothing."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from a2s_repro.errors import InputError, ToldElsewhere

LONGEST_SENTENCE = 2000
"""Bytes of an error that the processes tell each other."""


def initialise(device: str = "cpu") -> str:
    """Joins the processes that torchrun started; returns the device of this one, of which each has its own GPU.

    Sums go over NCCL where the tensors are on GPUs, over gloo where they are not. Raises InputError if the others do
    not answer.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(f"the processes of the run do not find each other ({reason}).") from None
    return device


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def tell(sentence: str) -> None:
    """Prints a sentence beside progress bars, once for all processes."""
    if is_main():
        tqdm.write(sentence)


def sum_(tensor: Tensor) -> Tensor:
    """Sums a tensor over the processes, in place, and returns it; all must call it with the same shape and dtype.

    Raises InputError if one of them has died.
    """
    if world_size() > 1:
        with _noticing_deaths():
            dist.all_reduce(tensor)
    return tensor


def max_(value: int) -> int:
    """The largest of the values that the processes give."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value)
    with _noticing_deaths():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


@contextmanager
def failing_together() -> Iterator[None]:
    """An InputError of one process in the block is raised by all at its end, so that none waits for another.

    They get the sentence of the first in rank that has one; the first process is to print it, and those after it raise
    it as ToldElsewhere.
    """
    failure = None
    try:
        yield
    except InputError as error:
        if world_size() == 1:
            raise
        failure = error
    if not max_(failure is not None):
        return
    sentences = torch.zeros(world_size(), LONGEST_SENTENCE, dtype=torch.uint8)
    encoded = str(failure or "").encode()[:LONGEST_SENTENCE]
    sentences[rank(), : len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else 0
    told = (bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore") for row in sum_(sentences))
    raise _error()(next(filter(None, told))) from failure


class GradientSum:
    """The gradients of some parameters in one flat buffer, which all processes sum.

    Every parameter's `grad` is a view of the buffer, so nothing is copied. The buffer is cut into buckets in the order
    in which a backward pass completes them, the last layers first; each is summed as soon as the last pass has
    completed it, while the pass goes on.

    Args:
        parameters: those that require no gradient are left out.
        bucket_bytes: about as much is summed at a time.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], bucket_bytes: int = 2**24) -> None:
        parameters = [parameter for parameter in parameters if parameter.requires_grad][::-1]
        self._flat = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
        self._buckets: list[Tensor] = []
        self._sizes: list[int] = []
        start = end = members = 0
        for parameter in parameters:
            view = self._flat[end : end + parameter.numel()]
            parameter.grad = view.as_strided(parameter.shape, parameter.stride(), view.storage_offset())
            if world_size() > 1:
                parameter.register_post_accumulate_grad_hook(self._completer(len(self._buckets)))
            end, members = end + parameter.numel(), members + 1
            if (end - start) * self._flat.element_size() >= bucket_bytes or parameter is parameters[-1]:
                self._buckets.append(self._flat[start:end])
                self._sizes.append(members)
                start, members = end, 0
        self._missing: list[int] = []
        self._works: list[dist.Work] = []

    @contextmanager
    def over(self, passes: int) -> Iterator[None]:
        """The gradients are 0 at the start of the block; this process makes that many backward passes in it.

        At its end they are the sums over all passes of all processes, each of which must come there, by an InputError
        if need be.
        """
        self._flat.zero_()
        self._missing, self._works = [passes * size for size in self._sizes], []
        try:
            yield
        except InputError:
            self._finish()
            raise
        self._finish()

    def _completer(self, bucket: int) -> Callable[[nn.Parameter], None]:
        def completed(_: nn.Parameter) -> None:
            self._missing[bucket] -= 1
            while len(self._works) < len(self._buckets) and self._missing[len(self._works)] == 0:
                self._sum_next()

        return completed

    def _sum_next(self) -> None:
        with _noticing_deaths():
            self._works.append(dist.all_reduce(self._buckets[len(self._works)], async_op=True))

    def _finish(self) -> None:
        if world_size() == 1:
            return
        while len(self._works) < len(self._buckets):
            self._sum_next()
        with _noticing_deaths():
            for work in self._works:
                work.wait()


@contextmanager
def _noticing_deaths() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _error()("another process of the run has died: go on with --resume auto.") from error


def _error() -> type[InputError]:
    return InputError if is_main() else ToldElsewhere
