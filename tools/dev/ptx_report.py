"""Counts what an operator's CUDA kernels do, in the PTX interpreter of tests/ptx, and bounds their time from below.

    python tools/dev/ptx_report.py --op scale_merge --maps 8x150x65 8x150x49 8x150x33 --dtype bfloat16 \
        --layout channels_last --backward
    python tools/dev/ptx_report.py --op interp --maps 8x21x65 --size 513 513 --json
    python tools/dev/ptx_report.py --table --update      # tests/ptx/budgets.csv, measured anew

Needs nvcc, no GPU. A large launch is run on a sample of its blocks, one at random from each of `--blocks` equal parts
of the grid, and its counts are scaled. The prediction is no measurement: tests/ptx/predict.py tells what bounds it and
what it leaves out. The floor beside it is the time to read every argument and write every result once.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.ptx.report import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
