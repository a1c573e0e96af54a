"""Paired measurement of speed and memory: functions alternate in one process, on inputs outside the caches."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from a2s_repro.data.image_seg import RandomStream, SegmentationDataset, loader
from a2s_repro.data.lists import Item
from a2s_repro.runtime.progress import Progress

COLD_BYTES = 128 << 20
"""Approximate total size, in bytes, of the input sets that a measurement rotates over: larger than any cache (an H200's
L2 has 50 MB)."""
MAX_SETS = 512


def warm_memory(most: int = 4 << 30) -> None:
    """Touches half of the free memory once, at most `most` bytes, so that the hypervisor backs it before timing.

    In a virtual machine the first touch of a page takes longer than any operator.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch.empty(min(free // 2, most), dtype=torch.uint8)[:: os.sysconf("SC_PAGE_SIZE")].fill_(0)


def rotation(set_bytes: int) -> int:
    """Number of input sets of `set_bytes` to rotate over: 2 to 512."""
    return min(max(2, COLD_BYTES // max(set_bytes, 1)), MAX_SETS)


def copy_bandwidth(device: torch.device) -> float:
    """Bandwidth of a 128 MB copy on the device, in bytes per second, read and written: the bound for moving data."""
    source = torch.empty(COLD_BYTES // 4, device=device).fill_(1)
    target = torch.empty_like(source)
    (times,) = paired({"copy": lambda _: target.copy_(source)}, 2, device, budget=1.0).values()
    return 2 * COLD_BYTES / statistics.median(times)


def paired(
    functions: Mapping[str, Callable[[int], Any]], sets: int, device: torch.device, budget: float = 1.0
) -> dict[str, list[float]]:
    """Seconds per call of each function, one value per round.

    In each round all functions run in turn, each for several calls function(i) on input sets i = 0, 1, ... of `sets`;
    the order reverses every round. There are 3 to 25 rounds, for about `budget` seconds.
    """
    names = list(functions)
    calls = {}
    for name in names:
        _run(functions[name], 0, 1, sets, device)
        calls[name] = max(1, min(200, round(0.01 / max(_run(functions[name], 1, 1, sets, device), 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in names}
    start, done = time.perf_counter(), 0
    while done < 3 or (done < 25 and time.perf_counter() - start < budget):
        for name in names if done % 2 == 0 else reversed(names):
            times[name].append(_run(functions[name], done * calls[name], calls[name], sets, device))
        done += 1
    return times


def _run(function: Callable[[int], Any], first: int, calls: int, sets: int, device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    for i in range(first, first + calls):
        function(i % sets)
    _finish(device)
    return (time.perf_counter() - start) / calls


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def graph_time(function: Callable[[int], Any], sets: int, replays: int = 5) -> float:
    """Device seconds per call on a GPU, without host time: a CUDA graph holds a call on every input set."""
    calls = max(20, sets)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(3):
            function(i % sets)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            function(i % sets)
    seconds = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3 / calls)
    return statistics.median(seconds)


def loader_rates(
    items: list[Item],
    num_classes: int,
    crop: int,
    *,
    batch_size: int = 10,
    workers: int,
    batches: int = 50,
    repeats: int = 5,
    seed: int = 0,
    cache: bool = False,
) -> list[float]:
    """Throughput of the data loader alone (decode, check, crop, batch) in samples per second, one value per repeat.

    The first batch of a repeat is not timed, because it includes the start of the workers. With `cache` all images are
    decoded before the first repeat.
    """
    dataset = SegmentationDataset(items, num_classes, crop)
    if cache:
        dataset.cache(threads=max(workers, 1))
    stream = RandomStream(len(items), batch_size, seed)
    rates = []
    for _ in Progress(range(repeats), "loader", "round", total=repeats):
        with contextlib.closing(loader(dataset, stream, 0, batches + 1, workers)) as loaded:
            next(loaded)
            start = time.perf_counter()
            for _ in loaded:
                pass
        rates.append(batches * batch_size / (time.perf_counter() - start))
    return rates


def memory_of_call(function: Callable[[int], Any], device: torch.device) -> int:
    """Peak memory of a call in bytes, in addition to memory allocated before: results and intermediates."""
    function(0)
    if device.type == "cuda":
        _finish(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function(0)
        _finish(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # suppresses the profiler's progress on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function(0)
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the values."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}
