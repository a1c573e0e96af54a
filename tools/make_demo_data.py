"""Draws a small data set in VOC layout: textured shapes whose sizes vary tenfold, some pictures crowded."""

from _run import run

import argparse

from a2s_repro.data.demo import CLASSES, make_demo_data


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/make_demo_data.py demo/shapes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", help="data root to make")
    parser.add_argument("--train", type=int, default=60, help="training pictures (default %(default)s)")
    parser.add_argument("--val", type=int, default=20, help="validation pictures (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pictures (default %(default)s)")
    arguments = parser.parse_args()

    root = make_demo_data(arguments.out, num_train=arguments.train, num_val=arguments.val, seed=arguments.seed)
    print(f"{root}: {arguments.train} training and {arguments.val} validation pictures of {len(CLASSES)} classes")


if __name__ == "__main__":
    run(main)
