"""Everything that needs a GPU, in one go: build, tests, figures, compute-sanitizer, Nsight Compute.

    make gpu-report
    python tools/dev/gpu_report.py --only build memcheck
    python tools/dev/gpu_report.py --dry-run          what would run, for how long at most
    python tools/dev/gpu_report.py --check            whether the figures in benchmarks/results/ are of this csrc/

Needs nvcc and a Python with a CUDA torch and pytest; nothing is downloaded, and libraries that were built elsewhere are
used if they run here. Every step has a limit, all together stay within nine minutes, and a step that fails does not
stop the others. Writes benchmarks/results/DATE_GPU_report.jsonl, a line as soon as it is known. Exit status 1 where a
step failed.
"""

import argparse
import re
import sys
from typing import Any

import torch

from a2s_repro.bench.gpu_report import BUDGET, RESULTS, execute, freshness, run_steps, steps, write_line
from a2s_repro.bench.provenance import provenance
from a2s_repro.commands.run import run
from a2s_repro.errors import InputError


def main() -> int:
    facts = provenance()
    report = RESULTS / f"{facts['date'][:10]}_{re.sub(r'[^A-Za-z0-9]+', '-', str(facts['gpu']))}_report.jsonl"
    todo = steps(report)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [step.name for step in todo]
    parser.add_argument("--only", nargs="+", choices=names, help="these steps alone")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="for all steps together (default %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="list the steps and stop")
    parser.add_argument("--check", action="store_true", help="print in one line how fresh the committed figures are")
    options = parser.parse_args()
    todo = [step for step in todo if options.only is None or step.name in options.only]

    if options.check:
        print(freshness())
        return 0
    if options.dry_run:
        for step in todo:
            print(f"{step.name:<13} at most {step.limit:>3} s   {step.line().splitlines()[0]}")
        print(f"{'all':<13} at most {options.seconds:>3.0f} s")
        return 0
    if not torch.cuda.is_available():
        raise InputError(
            f"torch {torch.__version__} of {sys.executable} sees no GPU: run `make gpu-report PYTHON=...` on a machine "
            "with one, with a Python whose torch has CUDA."
        )

    def show(result: dict[str, Any]) -> None:
        print(f"{result['step']:<13} {result.get('seconds', 0):6.1f} s   {result['outcome']}", flush=True)

    report.parent.mkdir(parents=True, exist_ok=True)
    write_line(report, {"provenance": facts})
    passed = run_steps(todo, report, execute, budget=options.seconds, on_result=show)
    print(report)
    return 0 if passed else 1


if __name__ == "__main__":
    run(main)
