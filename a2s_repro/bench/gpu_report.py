"""GPU report: correctness, benchmarks and sanitizers in one run, with a time limit for every step.

A report is a file of JSON lines, each written immediately: the provenance, then for every step a line at its start and
one at its end, with the measured rows between them. Rows remain in the report even if the step or the report fails.
"""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from a2s_repro.bench.provenance import sources_hash

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BUDGET = 540
"""Time limit of the whole report in seconds."""
LEAST = 10
"""Minimum remaining time to start a step, in seconds."""


@dataclass(frozen=True)
class Step:
    """One command of the report."""

    name: str
    limit: int
    """Time limit in seconds, after which the step is killed."""
    command: tuple[str, ...]
    needless_if: tuple[str, ...] = ()
    """Command whose success makes the step unnecessary."""

    def line(self) -> str:
        return shlex.join("python" if part == sys.executable else part for part in self.command)


Execute = Callable[[Sequence[str], float], tuple[str, int | None]]
"""Function that runs a command with a time limit in seconds; returns output and exit status (None if killed)."""

# Checks that the existing libraries run on this GPU.
PROBE = """
import torch
from a2s_repro import ops
from a2s_repro.ops import _native
assert "cuda" in _native.loaded_devices()
x = torch.randn(1, 3, 9, 9)
assert torch.allclose(ops.interp(x.cuda(), (17, 17)).cpu(), ops.interp(x, (17, 17)), atol=1e-5)
"""

# Runs every operator forward and backward at the sizes of inference: 8 images, 21 classes, scales 1, 0.75 and 0.5.
OPERATORS_ONCE = """
import torch
from a2s_repro import ops

def maps(*sides, channels=21):
    return [torch.randn(8, channels, side, side, device="cuda", requires_grad=True) for side in sides]

scores, size = maps(65, 49, 33), (513, 513)
(logits,) = maps(513, channels=3)
for outputs in (
    [ops.interp(scores[0], size)],
    [ops.interp_concat(scores, (65, 65))],
    [ops.interp_shift_add(*maps(49, channels=9 * 21), scores[0])],
    [ops.scale_softmax(logits)],
    ops.scale_merge(scores, logits),
    ops.scale_merge(scores, *maps(65, channels=3), size),
    [ops.scale_average(scores, size)],
    [ops.scale_max(scores, size)],
):
    torch.autograd.backward(outputs, [torch.randn_like(y) for y in outputs])
ops.segment(scores[0], size)
torch.cuda.synchronize()
"""
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)
OURS = ("--kernel-name", "kns=a2s")
"""Option of compute-sanitizer that selects kernels in the namespace a2s by their mangled names."""


def steps(report: Path) -> tuple[Step, ...]:
    """The steps in order of importance: correctness, ten operators, the whole net, sanitizers, the rest."""

    def python(*arguments: object) -> tuple[str, ...]:
        return (sys.executable, *map(str, arguments))

    def bench(tool: str, *arguments: object) -> tuple[str, ...]:
        return python(f"tools/dev/{tool}.py", "--device", "cuda", "--log", report, *arguments)

    def sanitizer(tool: str, limit: int, tests: str, *options: str) -> Step:
        pytest = python("-m", "pytest", "-q", "-m", "cuda", "tests/ops/test_operators.py", "-k", tests)
        return Step(tool, limit, ("compute-sanitizer", "--tool", tool, "--show-backtrace", "no", *options, *pytest))

    ncu = ("ncu", "--csv", "--clock-control", "none", "--metrics", ",".join(METRICS))
    ncu += ("--kernel-name-base", "demangled", "--kernel-name", "regex:a2s::")
    return (
        Step("build", 100, python("setup.py", "build_ext", "--inplace"), needless_if=python("-c", PROBE)),
        Step("tests", 120, python("-m", "pytest", "-q", "-m", "cuda", "--continue-on-collection-errors")),
        Step("ten operators", 60, bench("bench_kernels", "--cases", "ten", "--no-compile", "--seconds", 45)),
        Step("whole net", 90, bench("bench_model", "--quick")),
        # initcheck must observe all kernels; otherwise memory written by other kernels appears uninitialised.
        sanitizer("memcheck", 60, "equals or layouts or strides", "--report-api-errors", "no", *OURS),
        sanitizer("racecheck", 45, "equals", *OURS),
        sanitizer("initcheck", 60, "equals"),
        Step("all operators", 120, bench("bench_kernels", "--cases", "quick", "--seconds", 90)),
        Step("ncu", 45, (*ncu, *python("-c", OPERATORS_ONCE))),
    )


def write_line(report: Path, line: dict[str, Any]) -> None:
    """Appends one JSON line to the report and flushes it to disk."""
    with open(report, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def run_steps(
    todo: Sequence[Step],
    report: Path,
    execute: Execute,
    clock: Callable[[], float] = time.monotonic,
    budget: float = BUDGET,
    on_result: Callable[[dict[str, Any]], None] = lambda result: None,
) -> bool:
    """Runs steps within `budget` seconds in total and writes them to the report; returns whether all passed.

    A failed step, or one with unparsable output, does not affect the others. Steps without enough remaining time are
    skipped and listed in the report.
    """
    start, outcomes = clock(), []
    for step in todo:
        left = budget - (clock() - start)
        result: dict[str, Any] = {"step": step.name, "command": step.line()}
        if left < LEAST:
            result["outcome"] = "left out: no time left"
        else:
            write_line(report, result | {"outcome": "started"})
            began = clock()
            try:
                result |= perform(step, min(step.limit, left), execute)
            except Exception as error:  # unparsable output must not end the report
                result["outcome"] = f"its output was not understood: {type(error).__name__}: {error}"
            result["seconds"] = round(clock() - began, 1)
        write_line(report, result)
        on_result(result)
        outcomes.append(result["outcome"])
    return all(outcome.startswith("passed") for outcome in outcomes)


def perform(step: Step, limit: float, execute: Execute) -> dict[str, Any]:
    """Runs a step; `outcome` is "passed", with a reason if it was not needed, or one sentence about the failure."""
    if shutil.which(step.command[0]) is None:
        return {"outcome": f"{step.command[0]} is not on PATH: install it with the CUDA toolkit."}
    if step.needless_if and execute(step.needless_if, limit)[1] == 0:
        return {"outcome": "passed: not needed, the libraries here run on this GPU"}
    output, status = execute(step.command, limit)
    result: dict[str, Any] = {}
    if status is None:
        outcome = f"stopped at its limit of {limit:.0f} s"
    elif status != 0:
        outcome = f"failed with exit status {status}; the report holds the end of its output"
    elif step.command[0] == "compute-sanitizer":
        outcome = sanitizer_outcome(output)
    elif step.command[0] == "ncu":
        result["kernels"] = ncu_kernels(output)
        outcome = "passed" if result["kernels"] else "no kernel of ours was profiled; the report holds the output's end"
    else:
        outcome = "passed"
    return result | {"outcome": outcome, "output": output[-400 if outcome == "passed" else -8000 :]}


def execute(command: Sequence[str], seconds: float) -> tuple[str, int | None]:
    """Runs a command in the checkout, with stderr in stdout; at the limit its whole process group is killed."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "A2S_CUDA": "ON",
        "A2S_REQUIRE_NATIVE": "1",
        "TORCH_CUDA_ARCH_LIST": "{}.{}".format(*torch.cuda.get_device_capability()),
    }
    if command[0] == "compute-sanitizer":
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # gives every tensor its own allocation
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, status = process.communicate(timeout=seconds)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, status = process.communicate()[0], None
    return output.replace(f"{ROOT}/", ""), status


def sanitizer_outcome(output: str) -> str:
    """The outcome of compute-sanitizer, from the kernels in its report."""
    if "ERROR SUMMARY" not in output and "RACECHECK SUMMARY" not in output:
        return "compute-sanitizer printed no summary; the report holds the end of its output"
    reports = re.findall(r"^=+.*\bat .*a2s::", output, re.MULTILINE)
    return (
        f"reports in kernels of ours: {len(reports)}; the report holds the end of its output" if reports else "passed"
    )


def ncu_kernels(output: str) -> list[dict[str, str]]:
    """One row per launch: the kernel's name and its metrics with units."""
    lines = output.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines[header:]):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        launch[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(launches.values())


def freshness(results: Path = RESULTS) -> str:
    """One line about the newest GPU figures in `results`: current or stale by their hash of csrc/, or missing."""
    firsts = [path.read_text() for path in results.glob("*.json")]
    firsts += [path.read_text().partition("\n")[0] for path in results.glob("*.jsonl")]
    measured = [json.loads(text).get("provenance", {}) for text in firsts if text]
    measured = [facts for facts in measured if facts.get("gpu", "none") != "none"]
    if not measured:
        return "GPU figures: none in benchmarks/results/; run `make gpu-report` on a machine with a GPU."
    newest = max(measured, key=lambda facts: facts["date"])
    origin = f"{newest['date'][:10]}, {newest['gpu']}"
    if newest["csrc"] == sources_hash():
        return f"GPU figures: of this csrc/ ({origin})."
    return f"GPU figures: stale ({origin}): csrc/ has changed since; run `make gpu-report` on a machine with a GPU."
