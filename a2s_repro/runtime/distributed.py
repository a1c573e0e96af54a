"""Many processes at one task, as torchrun starts them. In a single process all of this does nothing."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from a2s_repro.errors import InputError, ToldElsewhere

LONGEST_WAIT = timedelta(days=1)
"""For the other processes, as at the end of a folder whose long video one has. One that died is noticed at once."""

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
            backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, timeout=LONGEST_WAIT)
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(f"the processes of the run do not find each other ({reason}).") from None
    return device


def leave() -> None:
    """Waits for the other processes to come to the end, and leaves them; gloo's threads abort one that just exits.

    torchrun ends the others as soon as one of them has a status other than 0, so that all must have printed before.
    """
    if dist.is_initialized():
        max_(0)
        dist.destroy_process_group()


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
    """The gradients of some parameters, summed over the passes of an update and over all processes.

    The passes are summed in double and rounded once, so that it matters next to nothing which process makes which of
    them. The sums are one flat buffer, which a gradient joins as soon as a pass has completed it. It is cut into
    buckets in the order in which a backward pass completes them, the last layers first; each is summed over the
    processes as soon as the last pass has completed it, while that pass goes on. The only pass of an only process is
    summed with nothing: its gradients stay where autograd has put them.

    Args:
        parameters: those that require no gradient are left out.
        bucket_size: about as many values are summed at a time.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], bucket_size: int = 2**22) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad][::-1]
        self._starts: list[int] = []
        self._buckets: list[slice] = []
        self._members: list[int] = []
        start = end = members = 0
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._completer(end, len(self._buckets)))
            self._starts.append(end)
            end, members = end + parameter.numel(), members + 1
            if end - start >= bucket_size or parameter is self._parameters[-1]:
                self._buckets.append(slice(start, end))
                self._members.append(members)
                start, members = end, 0
        self._summing = False
        self._missing: list[int] = []
        self._passes: list[int] = []
        self._works: list[dist.Work | None] = []

    @cached_property
    def _sums(self) -> Tensor:
        return self._parameters[0].new_empty(self._buckets[-1].stop, dtype=torch.float64)

    @cached_property
    def _gradients(self) -> Tensor:
        return self._parameters[0].new_empty(self._buckets[-1].stop)

    @contextmanager
    def over(self, passes: int) -> Iterator[None]:
        """This process makes that many backward passes in the block.

        At its end the gradients are the sums over all passes of all processes, each of which must come there, by an
        InputError if need be.
        """
        for parameter in self._parameters:
            parameter.grad = None
        self._summing = passes > 1 or world_size() > 1
        if self._summing:
            self._sums.zero_()
            self._missing, self._passes = list(self._members), [passes] * len(self._buckets)
            self._works = []
        try:
            yield
        except InputError:
            self._finish()
            raise
        self._finish()

    def _completer(self, start: int, bucket: int) -> Callable[[nn.Parameter], None]:
        def completed(parameter: nn.Parameter) -> None:
            if not self._summing:
                return
            _part(self._sums, start, parameter).add_(parameter.grad)
            parameter.grad = None
            self._missing[bucket] -= 1
            if self._missing[bucket] == 0:
                self._missing[bucket] = self._members[bucket]
                self._passes[bucket] -= 1
                while len(self._works) < len(self._buckets) and self._passes[len(self._works)] == 0:
                    self._send_next()

        return completed

    def _send_next(self) -> None:
        sums = self._sums[self._buckets[len(self._works)]]
        with _noticing_deaths():
            self._works.append(dist.all_reduce(sums, async_op=True) if world_size() > 1 else None)

    def _finish(self) -> None:
        if self._summing:
            while len(self._works) < len(self._buckets):  # of parameters that not every pass reached
                self._send_next()
            with _noticing_deaths():
                for work in filter(None, self._works):
                    work.wait()
            self._gradients.copy_(self._sums)
            for parameter, start in zip(self._parameters, self._starts, strict=True):
                parameter.grad = _part(self._gradients, start, parameter)
            self._summing = False
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _part(flat: Tensor, start: int, parameter: nn.Parameter) -> Tensor:
    """The part of a flat buffer that belongs to a parameter, laid out as it is."""
    return flat.as_strided(parameter.shape, parameter.stride(), start)


@contextmanager
def _noticing_deaths() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _error()("another process of the run has died: go on with --resume auto.") from error


def _error() -> type[InputError]:
    return InputError if is_main() else ToldElsewhere
