"""That `make sanitize` would report: a read past the end of a map ends the process."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="runs in `make sanitize`")

PROGRAM = """
import torch
from a2s_repro import ops
x = torch.ones(1, 1, 64, 64)
x.untyped_storage().resize_(64 * 63 * 4)
ops.interp(x, (64, 33))
"""


def test_a_read_past_the_end_is_reported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr and "a2s::" in done.stderr
