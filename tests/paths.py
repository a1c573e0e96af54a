"""Paths in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
GOLDEN = ROOT / "tests" / "golden"
"""Recordings from the authors' Caffe; INDEX.md describes them."""
