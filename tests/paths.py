"""Where things lie in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
GOLDEN = ROOT / "tests" / "golden"
"""Figures recorded from the authors' Caffe; its INDEX.md describes them."""
