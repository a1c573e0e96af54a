"""That `make sanitize` would report: a read past the end of a map ends the process, in both forms of the operators."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="runs in `make sanitize`")

PROGRAM = """
import sys
import torch
from a2s_repro import ops
x = torch.ones(1, 1, 64, 64)
x.untyped_storage().resize_(64 * 63 * 4)
with ops.use_backend(sys.argv[1]):
    ops.interp(x, (64, 33))
"""


@pytest.mark.parametrize("backend", ["native", "emulated"])
def test_a_read_past_the_end_is_reported(backend: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, backend], capture_output=True, text=True)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr and "a2s::" in done.stderr
