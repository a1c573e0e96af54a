"""Build VOC 2012's train_aug set from VOC 2012 and SBD.

It has 10582 images for training, and VOC's 1449 for validation. The archives:

  VOC 2012         http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar
  SBD              http://home.bharathh.info/pubs/codes/SBD/download.html (benchmark.tgz)
  its test images  http://host.robots.ox.ac.uk:8080/eval/downloads/VOC2012test.tar (after registration)
"""

import argparse

from a2s_repro.commands.options import add_archive_option, add_preparing_options

EXAMPLES = """\
  a2s prepare-voc --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz --out data/voc12
  a2s prepare-voc --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz --voc-test VOC2012test.tar"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_archive_option(parser, "--voc", "PASCAL VOC")
    add_archive_option(parser, "--sbd", "SBD")
    add_archive_option(parser, "--voc-test", "test images of VOC", required=False)
    add_preparing_options(parser, out="data/voc12")


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.data.voc import prepare_voc
    from a2s_repro.runtime.folder_lock import FolderLock

    with FolderLock(arguments.out):
        prepared = prepare_voc(
            arguments.voc,
            arguments.sbd,
            arguments.out,
            voc_test=arguments.voc_test,
            check_counts=not arguments.allow_other_counts,
            workers=arguments.workers,
        )
    print(prepared.summary())
