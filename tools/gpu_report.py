"""Everything that needs a GPU, in one go: build, tests, compute-sanitizer, benchmarks, Nsight Compute's figures.

    make gpu-report
    python tools/gpu_report.py --only build memcheck
    python tools/gpu_report.py --dry-run          what would run, for how long at most
    python tools/gpu_report.py --check            whether the figures in benchmarks/results/ are of this csrc/

Needs nvcc and a Python with a CUDA torch and pytest; nothing is downloaded. Every step has a limit, all together stay
under nine minutes, and a step that fails does not stop the others. Writes benchmarks/results/DATE_GPU_report.json after
each step. Exit status 1 where a step failed.
"""

from _run import run

import argparse
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
from dataclasses import dataclass
from pathlib import Path

import torch

from a2s_repro.bench.provenance import provenance, sources_hash
from a2s_repro.errors import InputError
from a2s_repro.files import replacing

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# Each operator forward and backward at the sizes of inference: 8 images, 21 classes, scales 1, 0.75 and 0.5.
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


@dataclass(frozen=True)
class Step:
    name: str
    limit: int  # seconds
    command: tuple[str, ...]

    def line(self) -> str:
        return shlex.join("python" if part == sys.executable else part for part in self.command)


def sanitizer(tool: str, limit: int, tests: str, *options: str) -> Step:
    pytest = (sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests/ops/test_operators.py", "-k", tests)
    return Step(tool, limit, ("compute-sanitizer", "--tool", tool, "--show-backtrace", "no", *options, *pytest))


OURS = ("--kernel-name", "kns=a2s")  # kernels whose mangled name holds our namespace
# initcheck watches every kernel, or what another kernel has written would pass for uninitialised.
STEPS = (
    Step("build", 90, (sys.executable, "setup.py", "build_ext", "--inplace")),
    Step("tests", 120, (sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--continue-on-collection-errors")),
    sanitizer("memcheck", 60, "equals or layouts or strides", "--report-api-errors", "no", *OURS),
    sanitizer("racecheck", 45, "equals", *OURS),
    sanitizer("initcheck", 60, "equals"),
    Step(
        "benchmarks",
        105,
        (sys.executable, "tools/bench_kernels.py", "--device", "cuda", "--quick", "--out", "benchmarks/results"),
    ),
    Step(
        "ncu",
        45,
        (
            *("ncu", "--csv", "--clock-control", "none", "--metrics", ",".join(METRICS)),
            *("--kernel-name-base", "demangled", "--kernel-name", "regex:a2s::"),
            *(sys.executable, "-c", OPERATORS_ONCE),
        ),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, help="these steps alone; the report then holds no others")
    parser.add_argument("--dry-run", action="store_true", help="list the steps and stop")
    parser.add_argument("--check", action="store_true", help="say in one line how fresh the committed figures are")
    options = parser.parse_args()
    steps = [step for step in STEPS if options.only is None or step.name in options.only]

    if options.check:
        print(freshness())
        return 0
    if options.dry_run:
        for step in steps:
            print(f"{step.name:<11} at most {step.limit:>3} s   {step.line().splitlines()[0]}")
        print(f"{'all':<11} at most {sum(step.limit for step in steps):>3} s")
        return 0
    if not torch.cuda.is_available():
        raise InputError(
            f"torch {torch.__version__} of {sys.executable} sees no GPU: run `make gpu-report PYTHON=...` on a machine "
            "with one, with a Python whose torch has CUDA."
        )

    facts = provenance()
    report = {"provenance": facts, "steps": []}
    path = RESULTS / f"{facts['date'][:10]}_{re.sub(r'[^A-Za-z0-9]+', '-', facts['gpu'])}_report.json"
    for step in steps:
        result = perform(step)
        report["steps"].append(result)
        print(f"{step.name:<11} {result['seconds']:6.1f} s   {result['outcome']}", flush=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")
    print(path)
    return 0 if all(result["outcome"] == "passed" for result in report["steps"]) else 1


def perform(step: Step) -> dict:
    """Runs the step; its result as plain values, `outcome` being "passed" or one sentence."""
    result = {"name": step.name, "command": step.line(), "seconds": 0.0}
    if shutil.which(step.command[0]) is None:
        return result | {"outcome": f"{step.command[0]} is not on PATH: install it with the CUDA toolkit."}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "A2S_CUDA": "ON",
        "A2S_REQUIRE_NATIVE": "1",
        "TORCH_CUDA_ARCH_LIST": "{}.{}".format(*torch.cuda.get_device_capability()),
    }
    if step.command[0] == "compute-sanitizer":
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # each tensor an allocation with bounds of its own
    started = time.monotonic()
    output, status = limited(step.command, step.limit, environment)
    output = output.replace(f"{ROOT}/", "")
    result["seconds"] = round(time.monotonic() - started, 1)
    if status is None:
        outcome = f"stopped at its limit of {step.limit} s"
    elif status != 0:
        outcome = f"failed with exit status {status}; the report holds the end of its output"
    elif step.command[0] == "compute-sanitizer":
        outcome = sanitizer_outcome(output)
    elif step.name == "ncu":
        result["kernels"] = ncu_kernels(output)
        outcome = "passed" if result["kernels"] else "no kernel of ours was profiled; the report holds the output's end"
    else:
        outcome = "passed"
    return result | {"outcome": outcome, "output": output[-400 if outcome == "passed" else -8000 :]}


def limited(command: tuple[str, ...], seconds: int, environment: dict[str, str]) -> tuple[str, int | None]:
    """stdout with stderr, and the exit status, None if the command and all it started were killed at the limit."""
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
        return process.communicate(timeout=seconds)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0], None


def sanitizer_outcome(output: str) -> str:
    """Judges what compute-sanitizer reported by the kernels that it names."""
    if "ERROR SUMMARY" not in output and "RACECHECK SUMMARY" not in output:
        return "compute-sanitizer printed no summary; the report holds the end of its output"
    reports = re.findall(r"^=+.*\bat .*a2s::", output, re.MULTILINE)
    return (
        f"reports in kernels of ours: {len(reports)}; the report holds the end of its output" if reports else "passed"
    )


def ncu_kernels(output: str) -> list[dict[str, str]]:
    """One row for each launch: the kernel's name and, with their units, its metrics."""
    lines = output.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines[header:]):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        launch[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(launches.values())


def freshness() -> str:
    """One line on the newest figures from a GPU in benchmarks/results/."""
    measured = [json.loads(path.read_text()).get("provenance", {}) for path in RESULTS.glob("*.json")]
    measured = [facts for facts in measured if facts.get("gpu", "none") != "none"]
    if not measured:
        return "GPU figures: none in benchmarks/results/; run `make gpu-report` on a machine with a GPU."
    newest = max(measured, key=lambda facts: facts["date"])
    origin = f"{newest['date'][:10]}, {newest['gpu']}"
    if newest["csrc"] == sources_hash():
        return f"GPU figures: of this csrc/ ({origin})."
    return f"GPU figures: stale ({origin}): csrc/ has changed since; run `make gpu-report` on a machine with a GPU."


if __name__ == "__main__":
    run(main)
