"""Runs a command of `a2s`, or tells how to install it."""

import sys

try:
    from a2s_repro import commands
except ImportError:
    command = " ".join(sys.argv)
    sys.exit(f"a2s_repro is not installed for {sys.executable}: run `make setup`, then `.venv/bin/python {command}`.")


def main(command: str) -> None:
    commands.main([command, *sys.argv[1:]])
