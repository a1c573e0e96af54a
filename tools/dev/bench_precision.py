"""Trains one thin net on drawn pictures in every precision, from the same start with the same draws, and compares.

The net and the kind of pictures are those of `make demo`, the training is another: two scales, attention, extra
supervision, an eighth of the authors' width, crops of 129, batches of 8 and the policy poly. From random weights it
learns little in a few hundred iterations: give it a trained one.
Losses are averaged over 10 iterations, as the log has them; the mIoU is that of other pictures.
"""

import argparse
import tempfile
from pathlib import Path

from a2s_repro.bench.provenance import provenance
from a2s_repro.caffe.conversion import from_caffe, random_init
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.commands.options import add_device_option
from a2s_repro.commands.run import run
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.models import Widths
from a2s_repro.recipes import find_recipe
from a2s_repro.runtime.devices import usable_device
from a2s_repro.runtime.precision import PRECISIONS
from a2s_repro.training import Run, train
from a2s_repro.training.run_log import read_log

from _options import add_results_options, keep_results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  make demo\n"
        "  python tools/dev/bench_precision.py --init demo/run/final.pth --seed 1 \\\n"
        "      --out benchmarks/results --write-docs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_device_option(parser)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="(default: all that the device has)")
    parser.add_argument("--init", type=Path, help="weights file to start from (default: random weights)")
    parser.add_argument("--max-iter", type=int, default=200, help="(default %(default)s)")
    parser.add_argument("--width", type=float, default=1 / 8, help="factor on all layers' widths (default 1/8)")
    parser.add_argument("--train", type=int, default=60, help="training pictures (default %(default)s)")
    parser.add_argument("--val", type=int, default=20, help="validation pictures (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    add_results_options(parser, "precision")
    arguments = parser.parse_args()
    device = usable_device(arguments.device)
    facts = provenance()
    recipe = find_recipe("voc12/attention3_esupv").changed(
        **{"num_classes": len(CLASSES), "scales": (1, 0.5), "width": arguments.width},
        **{"crop": 129, "test_crop": 257, "batch_size": 8, "iter_size": 1},
        **{"lr_policy": "poly", "base_lr": 4e-3, "max_iter": arguments.max_iter, "display": 20},
    )
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        root = make_demo_data(Path(folder) / "shapes", num_train=arguments.train, num_val=arguments.val)
        lists = root / "ImageSets" / "Segmentation"
        if (init := arguments.init) is None:
            start = from_caffe(random_init(Widths().scaled(arguments.width), seed=arguments.seed), "random").weights
            save_weights(init := Path(folder) / "init.pth", start.state_dict, start.meta)
        precisions = [name for name in PRECISIONS if device.type == "cuda" or name != "tf32"]
        for precision in arguments.precisions or precisions:
            out = Path(folder) / precision
            settings = {"train_list": lists / "train.txt", "val_list": lists / "val.txt", "seed": arguments.seed}
            outcome = train(
                recipe, Run(root, out, init, device=arguments.device, precision=precision, workers=1, **settings)
            )
            losses = [{"iteration": line["iteration"], "values": line["losses"]} for line in read_log(out)]
            runs[precision] = {"losses": losses, "mean_iou": outcome.validation.confusion.mean_iou}
    for rows in zip(*(each["losses"] for each in runs.values()), strict=True):
        values = "  ".join(f"{name} {row['values']['loss']:.4f}" for name, row in zip(runs, rows, strict=True))
        print(f"iteration {rows[0]['iteration']:4}  loss: {values}")
    print("mIoU: " + ", ".join(f"{name} {100 * each['mean_iou']:.2f} %" for name, each in runs.items()))
    start = arguments.init or "random weights"
    settings = f"{arguments.max_iter} iterations from {start}, width {arguments.width:g}, seed {arguments.seed}"
    results = {"provenance": facts, "settings": settings, "runs": runs}
    keep_results(arguments, "precision", device.type, results)
    return 0


if __name__ == "__main__":
    run(main)
