"""Prepare ADE20K SceneParsing.

It has 150 classes, 20210 images for training and 2000 for validation. The archive:

  ADE20K  http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip
"""

import argparse

from a2s_repro.commands.options import add_archive_option, add_preparing_options

EXAMPLES = """\
  a2s prepare-ade20k --ade ADEChallengeData2016.zip --out data/ade20k"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_archive_option(parser, "--ade", "ADE20K")
    add_preparing_options(parser, out="data/ade20k")


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.data.ade20k import prepare_ade20k
    from a2s_repro.runtime.folder_lock import FolderLock

    with FolderLock(arguments.out):
        prepared = prepare_ade20k(
            arguments.ade, arguments.out, check_counts=not arguments.allow_other_counts, workers=arguments.workers
        )
    print(prepared.summary())
