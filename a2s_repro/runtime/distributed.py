"""Distributed processes started by torchrun. In a single process all functions are no-ops."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import IO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from a2s_repro.errors import InputError, ToldElsewhere, first_line, printable
from a2s_repro.runtime.folder_lock import FolderLock

LONGEST_WAIT = timedelta(days=1)
"""Collective timeout: must outlast the slowest rank, such as one with a long video. A dead rank is detected at once."""

LONGEST_SENTENCE = 2000
"""Maximum length of an exchanged error message, in bytes."""


def initialise(device: str = "cpu") -> str:
    """Initialises the process group of torchrun; returns this process's device, with one GPU per process.

    Collectives use NCCL for tensors on GPUs and gloo on the CPU. Raises InputError if the processes cannot connect.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if device.startswith("cuda"):
        try:
            torch.cuda.set_device(device)
        except (RuntimeError, AssertionError):  # torch without CUDA asserts
            raise InputError(f"{device} does not exist: start at most one process per GPU.") from None
    if not dist.is_initialized():
        try:
            backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, timeout=LONGEST_WAIT)
        except RuntimeError as error:
            raise InputError(
                f"the processes of the run cannot connect ({first_line(error)}): check torchrun's address."
            ) from None
    return device


def leave() -> None:
    """Synchronises with the other processes and destroys the process group.

    Without this, gloo's threads abort a process at exit. Also, torchrun kills the others as soon as one exits with a
    status other than 0, so all must have printed their messages first.
    """
    if dist.is_initialized():
        max_(0)
        dist.destroy_process_group()


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes."""
    return rank() == 0


def tell(sentence: str, file: IO[str] | None = None) -> None:
    """Prints a message on rank 0, by default to stdout, without disturbing progress bars."""
    if is_main():
        tqdm.write(printable(sentence), file)


def sum_(tensor: Tensor) -> Tensor:
    """Sums a tensor over all processes in place and returns it; all must call it with the same shape and dtype.

    Raises InputError if a process has died.
    """
    if world_size() > 1:
        with _noticing_deaths():
            dist.all_reduce(tensor)
    return tensor


def max_(value: int) -> int:
    """The maximum of the value over all processes."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value)
    with _noticing_deaths():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


@contextmanager
def failing_together() -> Iterator[None]:
    """Propagates an exception: if a process raises one in the block, all raise at its end, so that none deadlocks.

    All raise the message of the lowest failing rank: rank 0 as InputError, to be printed, the others as ToldElsewhere.
    An exception other than InputError stays what it is in its own process. KeyboardInterrupt and SystemExit are not
    propagated.
    """
    failure = None
    try:
        yield
    except Exception as error:
        if world_size() == 1:
            raise
        failure = error
    try:
        message = _common_message(failure)
    finally:
        if failure is not None and not isinstance(failure, InputError):
            raise failure
    if message:
        raise _error()(message) from failure


@contextmanager
def using_alone(folder: str | os.PathLike) -> Iterator[FolderLock]:
    """Locks a folder for the block, in the first process for all of them.

    Raises InputError if another run uses the folder, and at the end of the block if the folder was removed meanwhile.
    """
    lock = FolderLock(folder)
    with failing_together():
        if is_main():
            lock.acquire()
    try:
        yield lock
        with failing_together():
            lock.check()
    finally:
        lock.release()


def _common_message(failure: Exception | None) -> str:
    """The message of the lowest failing rank; empty if none failed. All processes must call it."""
    if not max_(failure is not None):
        return ""
    sentences = torch.zeros(world_size(), LONGEST_SENTENCE, dtype=torch.uint8)
    encoded = _message(failure).encode()[:LONGEST_SENTENCE] if failure else b""
    sentences[rank(), : len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else 0
    messages = (bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore") for row in sum_(sentences))
    return next(filter(None, messages))


def _message(failure: Exception) -> str:
    if isinstance(failure, InputError):
        return str(failure)
    return f"process {rank()} ended with {type(failure).__name__} ({first_line(failure)})."


class GradientSum:
    """Sums gradients over the passes of an update and over all processes, overlapped with the backward pass.

    Passes are summed in float64 and rounded once, so that the assignment of passes to processes has next to no effect.
    The sums are one flat buffer; a hook adds a gradient as soon as a pass has computed it. The buffer is divided into
    buckets in the order of the backward pass, last layers first. A bucket is all-reduced as soon as the last pass has
    completed it, while that pass continues. With one process and one pass there is nothing to reduce; gradients stay
    in `.grad`.

    Args:
        parameters: parameters without requires_grad are left out.
        bucket_size: approximate number of values per all-reduce.
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
        """Sums over the block, in which this process must run `passes` backward passes.

        At its end every `.grad` is the sum over all passes of all processes. All processes must reach the end, which
        they also do if an Exception is raised in the block.
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
        except Exception:
            if world_size() > 1:  # whose other processes wait for these sums
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
            while len(self._works) < len(self._buckets):  # buckets with parameters that some pass did not reach
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
    """The view of a flat buffer for a parameter, with the parameter's shape and strides."""
    return flat.as_strided(parameter.shape, parameter.stride(), start)


@contextmanager
def _noticing_deaths() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _error()("another process of the run has died: continue with --resume auto.") from error


def _error() -> type[InputError]:
    return InputError if is_main() else ToldElsewhere
