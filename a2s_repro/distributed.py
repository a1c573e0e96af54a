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
        try:
            torch.cuda.set_device(device)
        except (RuntimeError, AssertionError):  # torch without CUDA asserts
            raise InputError(f"there is no {device} for each process: start one process for every GPU.") from None
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
    """The gradients of some parameters in one flat buffer, summed over the passes of an update and over all processes.

    Every parameter's `grad` is a view of the buffer, so nothing is copied to be sent. The passes are summed in double
    and rounded once, so that it matters next to nothing which process makes which of them. The buffer is cut into
    buckets in the order in which a backward pass completes them, the last layers first; each is summed over the
    processes as soon as the last pass has completed it, while that pass goes on.

    Args:
        parameters: those that require no gradient are left out.
        bucket_size: about as many values are summed at a time.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], bucket_size: int = 2**22) -> None:
        parameters = [parameter for parameter in parameters if parameter.requires_grad][::-1]
        self._gradients = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
        self._sums = torch.zeros_like(self._gradients, dtype=torch.float64)
        self._buckets: list[slice] = []
        self._members: list[int] = []
        start = end = members = 0
        for parameter in parameters:
            view = self._gradients[end : end + parameter.numel()]
            parameter.grad = view.as_strided(parameter.shape, parameter.stride(), view.storage_offset())
            parameter.register_post_accumulate_grad_hook(self._completer(len(self._buckets)))
            end, members = end + parameter.numel(), members + 1
            if end - start >= bucket_size or parameter is parameters[-1]:
                self._buckets.append(slice(start, end))
                self._members.append(members)
                start, members = end, 0
        self._missing: list[int] = []
        self._passes: list[int] = []
        self._works: list[dist.Work | None] = []

    @contextmanager
    def over(self, passes: int) -> Iterator[None]:
        """This process makes that many backward passes in the block; the gradients are 0 at its start.

        At its end they are the sums over all passes of all processes, each of which must come there, by an InputError
        if need be.
        """
        self._gradients.zero_()
        self._sums.zero_()
        self._missing, self._passes = list(self._members), [passes] * len(self._buckets)
        self._works = []
        try:
            yield
        except InputError:
            self._finish()
            raise
        self._finish()

    def _completer(self, bucket: int) -> Callable[[nn.Parameter], None]:
        def completed(_: nn.Parameter) -> None:
            self._missing[bucket] -= 1
            if self._missing[bucket] == 0:
                self._missing[bucket] = self._members[bucket]
                self._passes[bucket] -= 1
                self._take(bucket)
                while len(self._works) < len(self._buckets) and self._passes[len(self._works)] == 0:
                    self._send_next()

        return completed

    def _take(self, bucket: int) -> None:
        """Adds what the last pass left to the sums."""
        gradients = self._gradients[self._buckets[bucket]]
        self._sums[self._buckets[bucket]] += gradients
        gradients.zero_()

    def _send_next(self) -> None:
        sums = self._sums[self._buckets[len(self._works)]]
        with _noticing_deaths():
            self._works.append(dist.all_reduce(sums, async_op=True) if world_size() > 1 else None)

    def _finish(self) -> None:
        for bucket in range(len(self._works), len(self._buckets)):  # of parameters that not every pass reached
            self._take(bucket)
            self._send_next()
        with _noticing_deaths():
            for work in filter(None, self._works):
                work.wait()
        self._gradients.copy_(self._sums)


@contextmanager
def _noticing_deaths() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _error()("another process of the run has died: go on with --resume auto.") from error


def _error() -> type[InputError]:
    return InputError if is_main() else ToldElsewhere
