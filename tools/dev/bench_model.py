"""Measures the whole net of Attention to Scale: segmenting an image of 513 pixels, and an update on crops of 321.

The net has full width, three scales, attention and 21 classes, and random weights. `ours` is what segmenting and
training run, in every precision; on a GPU `one-by-one` runs the passes of an update one after another, `compiled` and
`graphed` with --compile and --cuda-graph. `eager` is the same net as one would write it from PyTorch's own operations,
in NCHW and float32; `eager-channels_last` has that layout and bfloat16, `eager-compiled` (on a GPU) torch.compile
besides. All run in turns in one process, on tensors that lie on the device. The rows "files" are from image files to
label files and overlays, and from image files to updates. On the CPU an update is of one image, as the authors' Caffe
was measured; on a GPU it is the papers' 10 passes over 3 images, and images are segmented 8 at a time.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from a2s_repro import ops
from a2s_repro.bench.gpu_report import write_line
from a2s_repro.bench.provenance import provenance
from a2s_repro.bench.timing import loader_rates, memory_of_call, paired, spread
from a2s_repro.commands.options import add_device_option, positive
from a2s_repro.commands.run import run
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.image_seg import Sample
from a2s_repro.data.lists import Item, read_list
from a2s_repro.inference.batch_job import Results, Work
from a2s_repro.inference.segmenter import Segmenter
from a2s_repro.inference.sources import find_sources
from a2s_repro.models import ShareNet
from a2s_repro.models.deeplab import TRUNK
from a2s_repro.recipes import Recipe, find_recipe
from a2s_repro.runtime.devices import usable_device
from a2s_repro.runtime.precision import (
    PRECISIONS,
    autocast_of,
    kernels_chosen_by_trial,
    multiplies_bfloat16,
    products_of,
)
from a2s_repro.runtime.progress import Progress
from a2s_repro.training.trainer import Trainer

from _options import add_results_options, keep_results

RECIPE = "voc12/attention3_esupv"
AUTHORS_SECONDS = {"forward": {1: 7.2, 2: 4.9}, "update": {1: 8.2, 2: 5.4}}
"""The authors' Caffe on a CPU machine with 2 cores, by threads: forward of 1x3x513x513, solver step on 1x3x321x321."""


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class EagerNet(nn.Module):
    """The net in PyTorch's own operations, with a copy of another's weights."""

    def __init__(self, net: ShareNet) -> None:
        super().__init__()
        self.scales = net.scales
        for name, layer in (*net.named_children(), *net.head.named_children()):
            if isinstance(layer, nn.Conv2d):
                shape = (layer.in_channels, layer.out_channels, layer.kernel_size)
                self.add_module(name, nn.Conv2d(*shape, padding=layer.padding, dilation=layer.dilation))
        self.load_state_dict(net.state_dict())

    def fc7_features(self, x: Tensor) -> Tensor:
        for pool, convolutions in TRUNK.items():
            for name in convolutions:
                x = F.relu(self.get_submodule(name)(x))
            x = F.max_pool2d(x, 3, stride=1 if pool in ("pool4", "pool5") else 2, padding=1, ceil_mode=True)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x)), 0.5, self.training)
        return x

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The merged scores (N, C, h, w), and those of every scale."""
        features, scores = [], []
        for scale in self.scales:
            height, width = (int((side - 1) * scale) + 1 for side in image.shape[2:])
            features.append(self.fc7_features(resized(image, (height, width))))
            scores.append(self.fc8(features[-1]))
        grid = scores[0].shape[2:]
        x = torch.cat([resized(feature, grid) for feature in features], 1)
        x = F.dropout(F.relu(self.att_conv1(x)), 0.5, self.training)
        weights = self.att_fc(x).softmax(1)
        merged = sum(weights[:, s : s + 1] * resized(score, grid) for s, score in enumerate(scores))
        return merged, scores

    def losses(self, image: Tensor, labels: Tensor) -> Tensor:
        """The sum of the losses of the merged map and of every scale."""
        merged, scores = self(image)
        total = F.cross_entropy(merged, labels[:, ::8, ::8].long(), ignore_index=255)
        for scale, score in zip(self.scales, scores, strict=True):
            step = 8 if scale == 0.75 else int(8 / scale)
            target = labels[:, ::step, ::step].long()
            total = total + F.cross_entropy(resized(score, target.shape[1:]), target, ignore_index=255)
        return total


class EagerTrainer:
    """Updates of an EagerNet by torch.optim.SGD."""

    def __init__(self, net: EagerNet, recipe: Recipe) -> None:
        self.net, self.passes = net, recipe.iter_size
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in net.named_parameters():
            rate = recipe.base_lr * (10 if name.startswith(("fc8", "att")) else 1) * (2 if name.endswith("bias") else 1)
            groups.setdefault(rate, []).append(parameter)
        self.solver = torch.optim.SGD(
            [{"params": parameters, "lr": rate} for rate, parameters in groups.items()], momentum=0.9, weight_decay=5e-4
        )

    def update(self, image: Tensor, labels: Tensor, losses: Callable[[Tensor, Tensor], Tensor], precision: str) -> None:
        self.solver.zero_grad()
        for _ in range(self.passes):
            with autocast_of(precision, image.device):
                loss = losses(image, labels) / self.passes
            loss.backward()
        self.solver.step()


class Eager(NamedTuple):
    """A version of the eager net."""

    layout: torch.memory_format
    precision: str
    compiled: bool = False

    def of(self, function: Callable) -> Callable:
        return torch.compile(function, dynamic=False) if self.compiled else function

    @contextmanager
    def settings(self) -> Iterator[None]:
        with products_of(self.precision), kernels_chosen_by_trial(self.precision != "fp32"):
            yield


def eager_versions(precisions: Sequence[str], device: torch.device) -> dict[str, Eager]:
    """By name and precision; the first is the one to which all others are compared."""
    versions = {"eager float32": Eager(torch.contiguous_format, "fp32")}
    if "bf16" in precisions:
        versions["eager-channels_last bf16"] = Eager(torch.channels_last, "bf16")
        if device.type == "cuda":
            versions["eager-compiled bf16"] = Eager(torch.channels_last, "bf16", compiled=True)
    return versions


def forward_calls(arguments: argparse.Namespace, recipe: Recipe, device: torch.device) -> dict[str, Callable]:
    """By version, what segments a batch of images."""
    ours = filled(recipe.net()).to(device, memory_format=torch.channels_last).eval()
    size = (arguments.test_crop, arguments.test_crop)
    image = torch.randn(batch_sizes(device)["forward"], 3, *size, device=device)

    def segment(precision: str) -> Tensor:
        fast = kernels_chosen_by_trial(precision != "fp32")
        with torch.inference_mode(), products_of(precision), fast, autocast_of(precision, device):
            return ops.segment(ours(image).scores, size)

    def eagerly(version: Eager) -> Callable[[int], Tensor]:
        net = EagerNet(ours).to(device, memory_format=version.layout).eval()
        labels = version.of(lambda x: resized(net(x)[0], size).argmax(1))

        def segment_eagerly(_: int) -> Tensor:
            with torch.inference_mode(), version.settings(), autocast_of(version.precision, device):
                return labels(image.to(memory_format=version.layout))

        return segment_eagerly

    calls = {f"ours {precision}": lambda _, p=precision: segment(p) for precision in arguments.precisions}
    return calls | {name: eagerly(each) for name, each in eager_versions(arguments.precisions, device).items()}


def update_calls(arguments: argparse.Namespace, recipe: Recipe, device: torch.device) -> dict[str, Callable]:
    """By version, what makes an update."""
    size, items = (arguments.crop, arguments.crop), [Item("random", Path("none"), None)]
    batch = Sample(
        torch.randn(recipe.batch_size, 3, *size),
        torch.randint(recipe.num_classes, (recipe.batch_size, *size), dtype=torch.uint8),
        torch.zeros(recipe.batch_size, dtype=torch.int64),
    )
    variants: dict[str, dict] = {"ours": {}}
    if device.type == "cuda":
        variants |= {"one-by-one": {"together": 1}, "compiled": {"compile": True}}
        variants |= {"graphed": {"compile": True, "cuda_graph": True}}
    trainers = {
        f"{version} {precision}": Trainer(recipe, items, device, precision, seed=0, **switches)
        for version, switches in variants.items()
        for precision in arguments.precisions
    }
    for trainer in trainers.values():
        filled(trainer.model)
    batch = batch._replace(image=batch.image.to(device), label=batch.label.to(device))

    def update(trainer: Trainer) -> None:
        with products_of(trainer.precision), kernels_chosen_by_trial(trainer.precision != "fp32"):
            trainer.backward(iter([batch] * recipe.iter_size))
            trainer.update()

    def eagerly(version: Eager) -> Callable[[int], None]:
        net = EagerNet(trainer.model).to(device, memory_format=version.layout).train()
        eager, losses = EagerTrainer(net, recipe), version.of(net.losses)
        image = batch.image.to(memory_format=version.layout)

        def update_eagerly(_: int) -> None:
            with version.settings():
                eager.update(image, batch.label, losses, version.precision)

        return update_eagerly

    calls = {name: lambda _, t=trainer: update(t) for name, trainer in trainers.items()}
    return calls | {name: eagerly(each) for name, each in eager_versions(arguments.precisions, device).items()}


def files_calls(arguments: argparse.Namespace, recipe: Recipe, device: torch.device, root: Path) -> dict[str, Callable]:
    """By work and precision, what segments a folder of pictures, or updates on a list of them; returns the images.

    The pictures are drawn, as large as the images that are segmented.
    """
    items = read_list(root / "ImageSets/Segmentation/train.txt", root)
    segmented = filled(recipe.net()).to(device, memory_format=torch.channels_last).eval()
    batch_size, numbers = batch_sizes(device)["forward"], itertools.count()

    def segment(precision: str) -> int:
        segmenter = Segmenter(segmented, pad_to=arguments.test_crop, precision=precision)
        work = Work(segmenter, Results(root / f"segmented{next(numbers)}"), batch_size=batch_size)
        return work.run(find_sources([item.image for item in items])).done

    def updates(precision: str) -> int:
        count = max(1, len(items) // (recipe.batch_size * recipe.iter_size))
        trainer = Trainer(recipe.changed(max_iter=count), items, device, precision, seed=0)
        filled(trainer.model)
        fast = kernels_chosen_by_trial(precision != "fp32")
        with closing(trainer.batches(arguments.workers)) as batches, products_of(precision), fast:
            for _ in range(count):
                trainer.backward(batches)
                trainer.update()
        return count * recipe.batch_size * recipe.iter_size

    precisions = arguments.precisions
    calls: dict[str, Callable] = {f"forward {name}": lambda name=name: segment(name) for name in precisions}
    return calls | {f"update {name}": lambda name=name: updates(name) for name in precisions}


def measure_files(calls: dict[str, Callable], threads: int, device: torch.device, rounds: int) -> list[dict]:
    """A row for each call; the first round, with everything that is made once, is not counted."""
    torch.set_num_threads(threads)
    rows = []
    for name, call in calls.items():
        call()
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            images = call()
            seconds.append(time.perf_counter() - start)
        work, precision = name.split()
        rows.append({"work": work, "threads": threads, "version": "ours, files", "precision": precision})
        rows[-1] |= {"images": images, "seconds": spread(seconds)}
    return rows


def filled(net: ShareNet) -> ShareNet:
    """The net with random weights in its trunk."""
    for name, layer in net.named_children():
        if isinstance(layer, nn.Conv2d) and name not in net.new_layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return net


def batch_sizes(device: torch.device) -> dict[str, int]:
    return {"forward": 8, "update": 30} if device.type == "cuda" else {"forward": 1, "update": 1}


def measure(calls: dict[str, Callable], work: str, threads: int, device: torch.device, rounds: float) -> list[dict]:
    torch.set_num_threads(threads)
    times = paired(calls, 1, device, budget=rounds)
    images = batch_sizes(device)[work]
    rows = []
    for name, seconds in times.items():
        version, precision = name.split()
        row = {"work": work, "threads": threads, "version": version, "precision": precision, "images": images}
        row["seconds"] = spread(seconds)
        row["eager_ratio"] = spread(
            [theirs / mine for theirs, mine in zip(times["eager float32"], seconds, strict=True)]
        )
        if device.type == "cuda":
            row["peak_bytes"] = memory_of_call(calls[name], device)
        rows.append(row)
    return rows


def described(row: dict, device_type: str) -> str:
    seconds = row["seconds"]["median"] / row["images"]
    text = f"{row['work']:8} {row['threads']} threads  {row['version']:19} {row['precision']:8}"
    text += f"{1e3 * seconds:9.1f} ms an image {1 / seconds:8.2f} images/s"
    if "eager_ratio" in row:
        text += f"  eager x{row['eager_ratio']['median']:.2f}"
    if row["work"] == "update" and device_type == "cuda":
        text += f"  6000 x 30 images {6000 * 30 * seconds / 60:.1f} minutes"
    if "peak_bytes" in row:
        text += f"  peak {row['peak_bytes'] / 2**30:.2f} GiB"
    if row.get("authors_seconds"):
        text += f"  the authors' Caffe x{row['authors_seconds'] / row['seconds']['median']:.2f}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/dev/bench_model.py --device cpu --out benchmarks/results --write-docs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_device_option(parser)
    parser.add_argument("--work", nargs="+", choices=AUTHORS_SECONDS, default=list(AUTHORS_SECONDS), help="only this")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="(default: all that the device has)")
    parser.add_argument("--threads", type=positive, nargs="+", help="on the CPU (default: 1 and 2)")
    parser.add_argument("--width", type=float, default=1, help="factor on all layers' widths (default 1)")
    parser.add_argument("--crop", type=positive, default=321, help="side of the crops (default %(default)s)")
    parser.add_argument(
        "--test-crop", type=positive, default=513, help="side of segmented images (default %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="three rounds; else about 20 seconds of rounds a row")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append each row to FILE, a JSON line, once measured")
    parser.add_argument("--workers", type=int, default=2, help="of the loader (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (default %(default)s)")
    add_results_options(parser, "model")
    arguments = parser.parse_args()
    device = usable_device(arguments.device)
    gpu = device.type == "cuda"
    if not arguments.precisions:
        arguments.precisions = [name for name in PRECISIONS if gpu or name != "tf32"]
        if not gpu and not multiplies_bfloat16():
            arguments.precisions.remove("bf16")
            print("bf16 is left out: this processor has no units for products of bfloat16 (--precisions bf16 takes it)")
    threads = [torch.get_num_threads()] if gpu else arguments.threads or [1, 2]
    torch.manual_seed(arguments.seed)

    facts = provenance()
    recipe = find_recipe(RECIPE).changed(width=arguments.width, crop=arguments.crop, base_lr=1e-6)
    if not gpu:
        recipe = recipe.changed(batch_size=1, iter_size=1)
    full = (arguments.width, arguments.crop, arguments.test_crop) == (1, 321, 513)
    authors = AUTHORS_SECONDS if full and not gpu else {}
    rows = []
    for work in arguments.work:
        calls = {"forward": forward_calls, "update": update_calls}[work](arguments, recipe, device)
        for count in Progress(threads, work, "thread setting"):
            rows += measure(calls, work, count, device, rounds=0 if arguments.quick else 20)
            for row in rows[-len(calls) :]:
                row["authors_seconds"] = authors.get(work, {}).get(count)
                tqdm.write(described(row, device.type))
                if arguments.log:
                    write_line(arguments.log, {"model": row})
    counts = {"batches": 5, "repeats": 3} if arguments.quick else {}
    with tempfile.TemporaryDirectory() as folder:
        root = make_demo_data(folder, num_train=120 if gpu else 4, num_val=1)
        items = read_list(root / "ImageSets/Segmentation/train.txt", root)
        for row in measure_files(
            files_calls(arguments, recipe, device, root), threads[-1], device, rounds=1 if arguments.quick else 3
        ):
            rows.append(row)
            print(described(row, device.type))
            if arguments.log:
                write_line(arguments.log, {"model": row})
        rates = loader_rates(items, len(CLASSES), arguments.crop, workers=arguments.workers, **counts)
    print(f"loader alone: {spread(rates)['median']:.0f} samples/s with {arguments.workers} workers")
    sizes = {"width": arguments.width, "crop": arguments.crop, "test_crop": arguments.test_crop}
    loader = {"workers": arguments.workers, "samples_per_second": spread(rates)}
    results = {"provenance": facts, **sizes, "loader": loader, "rows": rows}
    keep_results(arguments, "model", device.type, results)
    return 0


if __name__ == "__main__":
    run(main)
