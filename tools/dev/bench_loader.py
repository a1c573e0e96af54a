"""Measures how many samples a second the data loader delivers: decoded, checked, cropped and batched.

A run's first batch, which waits for the workers to start, is not counted.
"""

import argparse
import statistics

from a2s_repro.bench.timing import loader_rates
from a2s_repro.commands.options import positive
from a2s_repro.commands.run import run
from a2s_repro.data.lists import read_list


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n"
        "  python tools/dev/bench_loader.py --data-root data/voc12 --list data/voc12/list/train_aug.txt --workers 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--list", required=True, help="list file, two columns or one id a line")
    parser.add_argument("--num-classes", type=positive, default=21, help="(default %(default)s)")
    parser.add_argument("--crop", type=positive, default=321, help="(default %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=10, help="(default %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="0 decodes in the main process (default %(default)s)")
    parser.add_argument("--cache", action="store_true", help="decode everything beforehand, as `a2s train --cache`")
    parser.add_argument("--batches", type=positive, default=50, help="counted batches a repeat (default %(default)s)")
    parser.add_argument("--repeats", type=positive, default=5, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    arguments = parser.parse_args()

    rates = loader_rates(
        read_list(arguments.list, arguments.data_root),
        arguments.num_classes,
        arguments.crop,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        batches=arguments.batches,
        repeats=arguments.repeats,
        seed=arguments.seed,
        cache=arguments.cache,
    )
    print(
        f"{statistics.median(rates):.0f} samples/s (median of {len(rates)}, {min(rates):.0f} to {max(rates):.0f}); "
        f"{arguments.workers} workers, crop {arguments.crop}, batch {arguments.batch_size}"
    )


if __name__ == "__main__":
    run(main)
