"""Print versions and which native libraries are loaded.

These are the facts of a bug report.
"""

import argparse

EXAMPLES = """\
  a2s info"""


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.info import main

    main()
