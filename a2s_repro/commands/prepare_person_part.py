"""Build PASCAL-Person-Part from PASCAL-Part and VOC 2010.

It has 1716 images for training and 1817 for validation. The archives:

  PASCAL-Part  http://roozbehm.info/pascal-parts/pascal-parts.html (trainval.tar.gz)
  VOC 2010     http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar
"""

import argparse

from a2s_repro.commands.options import add_archive_option, add_preparing_options

EXAMPLES = """\
  a2s prepare-person-part --parts trainval.tar.gz --voc VOCtrainval_03-May-2010.tar --out data/person_part"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_archive_option(parser, "--parts", "PASCAL-Part")
    add_archive_option(parser, "--voc", "PASCAL VOC")
    add_preparing_options(parser, out="data/person_part")


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.data.person_part import prepare_person_part
    from a2s_repro.runtime.folder_lock import FolderLock

    with FolderLock(arguments.out):
        prepared = prepare_person_part(
            arguments.parts,
            arguments.voc,
            arguments.out,
            check_counts=not arguments.allow_other_counts,
            workers=arguments.workers,
        )
    print(prepared.summary())
