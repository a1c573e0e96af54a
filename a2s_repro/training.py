"""The training loop: where the nets meet the data."""

import dataclasses
import hashlib
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from a2s_repro import distributed
from a2s_repro.caffe.state import load_caffe_state
from a2s_repro.caffe.streams import CaffeStreams
from a2s_repro.checkpoint import save_weights
from a2s_repro.data.image_seg import NORMALIZATIONS, RandomStream, Sample, SegmentationDataset, loader
from a2s_repro.data.lists import Item, read_list
from a2s_repro.devices import peak_memory, usable_device
from a2s_repro.distributed import GradientSum, failing_together, is_main, rank, sum_, tell, world_size
from a2s_repro.errors import InputError
from a2s_repro.evaluation import Result, class_names, evaluate
from a2s_repro.files import remove_leftovers
from a2s_repro.initialisation import load_init
from a2s_repro.losses import training_loss
from a2s_repro.models import ShareNet
from a2s_repro.precision import float32_products
from a2s_repro.recipes import Recipe
from a2s_repro.run_log import RunLog, write_config
from a2s_repro.snapshots import Snapshot, load_newest, load_snapshot, newest_snapshot, save_snapshot, snapshot_path
from a2s_repro.stopping import deferred_signals

PRECISIONS = ("caffe", "tf32", "bf16")
CAFFE_SUFFIX = ".solverstate"

NO_EFFECT_ON_TRAINING = (
    *("name", "published", "ours", "dataset", "training_set", "evaluation_set", "hidden_labels"),
    *("init", "test_crop", "crf", "short_sides", "display", "snapshot"),
)
"""Fields of a recipe that may change when a run is resumed; so may max_iter where the rate does not depend on it."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run needs beside its recipe."""

    data_root: Path
    out: Path
    """The run's folder: config.json, log.jsonl, tensorboard/, snapshots and final.pth."""
    init: Path | None = None
    """Weights file to start from; needed unless the run is resumed."""
    resume: str | None = None
    """A snapshot's path, or "auto": the newest one in `out` that is whole, or from the start if there is none. A
    `.solverstate` of Caffe's: go on from it and the `.caffemodel` that it names. As in Caffe, data and random streams
    begin anew then."""
    train_list: Path | None = None
    """Default: the recipe's, in the data root."""
    val_list: Path | None = None
    """Evaluated at the end if given."""
    classes: Path | None = None
    """Class names, one a line."""
    device: str = "cpu"
    precision: str = "caffe"
    """caffe: float32 throughout. tf32: its products in TensorFloat-32. bf16: autocast; the losses stay float32."""
    seed: int = 0
    caffe_streams: str | None = None
    """The gaussian filler of data.caffe_rng.GAUSSIANS, if the run is to draw what Caffe's CPU build with this
    random_seed draws: images, crops, mirrors, dropout masks and fillers."""
    workers: int = 2
    """Decoding processes, for each of the training processes."""
    keep: int | None = None
    """How many snapshots stay; all of them by default."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    iterations: int
    interrupted: int
    """The signal that ended it before its time; 0 if none did."""
    file: Path
    """final.pth, or the snapshot of an interrupted run."""
    validation: Result | None
    classes: list[str]


def train(recipe: Recipe, run: Run) -> Outcome:
    """Trains the recipe's net under a progress bar; Ctrl-C or SIGTERM finishes the update, writes a snapshot, returns.

    As one of several processes that torchrun started, it makes its share of every update's passes; the first one writes
    and prints. A snapshot that cannot be written is told, and the next one tried.

    Raises:
        InputError: settings, files or labels that do not fit, each in a sentence; a loss that is no number any more. A
            run that is under way saves its state first.
    """
    device = usable_device(distributed.initialise(run.device))
    with failing_together():
        if run.precision not in PRECISIONS:
            raise InputError(f"precision '{run.precision}' is not known; it is one of {', '.join(PRECISIONS)}.")
        if run.keep is not None and run.keep < 1:
            raise InputError(f"keeping {run.keep} snapshots is not possible: a run goes on from at least one.")
        items = read_list(run.train_list or run.data_root / recipe.training_set, run.data_root)
        val_items = read_list(run.val_list, run.data_root) if run.val_list else None
        classes = class_names(recipe.num_classes, {}, run.classes)

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        torch.manual_seed(run.seed)
        trainer = Trainer(recipe, items, device, run.precision, run.seed, run.caffe_streams)
        origin = _start(trainer, run)
    with failing_together():
        if distributed.max_(trainer.iteration) != -distributed.max_(-trainer.iteration):
            raise InputError(f"the processes do not all see the same snapshots in {run.out}: give a folder they share.")

    tell(origin)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(run).items()}
    described = {"recipe": recipe.config(), "model": trainer.model.config(), "classes": classes}
    if is_main():
        remove_leftovers(run.out)
        processes = {"processes": world_size()}
        write_config(run.out, {**described, "run": settings | processes, "origin": origin})
    with float32_products("ieee" if run.precision == "caffe" else "tf32"):
        if interrupted := _interrupted(trainer, run):
            return Outcome(trainer.iteration, interrupted, snapshot_path(run.out, trainer.iteration), None, classes)
        meta = {
            "pool5a": recipe.pool5a,
            "classifier": recipe.classifier,
            "scales": list(recipe.scales),
            "source": {"file": str(run.out), "kind": "trained"},
            **described,
        }
        final = run.out / "final.pth"
        with failing_together():
            if is_main():
                save_weights(final, trainer.model.state_dict(), meta)
        validation = None
        if val_items:
            validation = evaluate(trainer.model, val_items, classes=classes, **recipe.evaluation())
    return Outcome(trainer.iteration, 0, final, validation, classes)


class Trainer:
    """A net, its solver and its place in the data.

    An update is `trainer.backward(batches)` and then `trainer.update()`. Several processes make one update together.
    Raises InputError if the passes of an update cannot be dealt out evenly.
    """

    def __init__(
        self,
        recipe: Recipe,
        items: list[Item],
        device: torch.device,
        precision: str,
        seed: int,
        caffe_streams: str | None = None,
    ) -> None:
        if recipe.iter_size % world_size():
            raise InputError(
                f"the {recipe.iter_size} passes of an update (--iter-size) cannot be dealt out to {world_size()} "
                "processes evenly: start a number of processes that divides them."
            )
        self.recipe, self.items, self.device, self.precision = recipe, items, device, precision
        self.model = recipe.net().to(device, memory_format=torch.channels_last).train()
        self.solver = recipe.optimizer(self.model)
        self.rate = recipe.learning_rate()
        self.stream = RandomStream(len(items), recipe.batch_size, seed)
        self.caffe = None
        if caffe_streams:
            if not recipe.is_caffes:
                raise InputError(f"{recipe.name or 'the recipe'} is no net of Caffe's: leave out --caffe-streams.")
            self.caffe = CaffeStreams(self.model, len(items), recipe.batch_size, recipe.crop, seed, caffe_streams)
        self.iteration = self.start = 0
        self.recent: deque[dict[str, float]] = deque(maxlen=recipe.average_loss)
        ids = hashlib.sha256("\n".join(item.id for item in items).encode())
        self.config = {
            "seed": seed,
            "caffe_streams": caffe_streams,
            "precision": precision,
            "training list": ids.hexdigest(),
            **recipe.config(),
        }
        for name in NO_EFFECT_ON_TRAINING + (("max_iter",) if recipe.lr_policy != "poly" else ()):
            del self.config[name]

    def batches(self, workers: int) -> Iterator[Sample]:
        """The batches of the remaining iterations that this process will see: every world_size-th, from `rank`."""
        recipe = self.recipe
        dataset = SegmentationDataset(
            self.items,
            recipe.num_classes,
            recipe.crop,
            NORMALIZATIONS[self.model.normalization],
            recipe.scale_augmentation,
            recipe.fill_crop,
        )
        passes = recipe.iter_size
        stream, start = self.stream, (self.iteration - self.start) * passes
        if self.caffe:
            stream, start = self.caffe.data(), self.caffe.passes
        remaining = max(recipe.max_iter - self.iteration, 0) * passes // world_size()
        pin_memory = self.device.type == "cuda"
        return loader(dataset, stream, start + rank(), remaining, workers, pin_memory, world_size())

    @cached_property
    def gradients(self) -> GradientSum:
        """Of the solver's parameters, whose sharing copies a snapshot may bring."""
        return GradientSum(parameter for group in self.solver.param_groups for parameter in group["params"])

    def backward(self, batches: Iterator[Sample]) -> None:
        """iter_size forward and backward passes; their mean losses join the recent ones.

        Raises:
            InputError: a file that cannot be read, a process that died, a loss that is infinite or not a number, naming
                the images; nothing was updated, and `snapshot` gives the state before.
        """
        before = self.caffe and self.caffe.state(), [buffer.clone() for buffer in self.model.buffers()]
        first = (self.iteration - self.start) * self.recipe.iter_size
        mine = self.recipe.iter_size // world_size()
        losses: list[dict[str, Tensor]] = []
        images: list[str] = []
        try:
            with self.gradients.over(mine), failing_together():
                for number in range(first, first + self.recipe.iter_size):
                    if number % world_size() == rank():
                        batch = next(batches)
                        images.append(", ".join(self.items[i].id for i in batch.index.tolist()))
                        losses.append(self._pass(batch, number))
                    elif self.caffe:
                        self.caffe.skip_pass()
                values = torch.stack([torch.stack(list(row.values())) for row in losses]).double().cpu()
                _check_finite(values, list(losses[0]), images)
        except InputError:
            if self.caffe:
                self.caffe.restore(before[0])
            for buffer, value in zip(self.model.buffers(), before[1], strict=True):
                buffer.copy_(value)
            raise
        means = (sum_(values.sum(0)) / self.recipe.iter_size).tolist()
        self.recent.append(dict(zip(losses[0], means, strict=True)))

    def _pass(self, batch: Sample, number: int) -> dict[str, Tensor]:
        """Forward and backward; dropout depends on the seed and the number of the pass alone."""
        image = batch.image.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        label = batch.label.to(self.device, non_blocking=True)
        if self.caffe:
            self.caffe.begin_pass()
        else:
            torch.manual_seed(int(np.random.SeedSequence((self.config["seed"], 2, number)).generate_state(1)[0]))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            prediction = self.model(image)
        losses = training_loss(prediction, label, self.recipe.extra_supervision)
        sum(losses.values()).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def smoothed(self) -> dict[str, float]:
        """The losses averaged over the recent iterations, as Caffe displays them."""
        return {name: sum(losses[name] for losses in self.recent) / len(self.recent) for name in self.recent[-1]}

    def update(self) -> None:
        """Applies the gradients at the rate of this iteration."""
        self.solver.set_lr(self.rate(self.iteration))
        self.solver.step()
        self.iteration += 1

    def snapshot(self) -> Snapshot:
        """The state to go on from. Raises InputError if the last update left weights that are no numbers."""
        broken = [name for name, tensor in self.model.state_dict().items() if not tensor.isfinite().all()]
        if broken:
            raise InputError(
                f"iteration {self.iteration - 1}: the update left {', '.join(broken[:3])} without finite values; "
                "lower --base-lr (earlier snapshots are untouched)."
            )
        return Snapshot(
            iteration=self.iteration,
            model=self.model.state_dict(),
            solver=self.solver.state_dict(),
            random={"caffe": self.caffe.state()} if self.caffe else {},
            losses=list(self.recent),
            config=self.config,
            start=self.start,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot. Raises InputError, naming the settings, if it is of another run."""
        theirs = {**Recipe.of_config(snapshot.config).config(), **snapshot.config}
        changed = [
            f"{name} {theirs.get(name)} instead of {value}"
            for name, value in self.config.items()
            if theirs.get(name) != value
        ]
        if changed:
            raise InputError(f"the snapshot belongs to a run with {', '.join(changed)}: resume with the same settings.")
        if snapshot.has_slots:
            self._give_slots()
        self.model.load_state_dict(snapshot.model)
        self.solver.load_state_dict(snapshot.solver)
        self.recent.extend(snapshot.losses)
        self.iteration, self.start = snapshot.iteration, snapshot.start
        if self.caffe:
            self.caffe.restore(snapshot.random["caffe"])

    def take_over(self, path: Path) -> None:
        """Goes on from a `.solverstate`, with a slot for every sharing copy.

        Raises InputError, naming the difference, if it is of another net or of another schedule.
        """
        if not self.recipe.is_caffes or self.recipe.solver != "caffe":
            raise InputError(f"{path} is of a run of Caffe's, but the recipe is of another net or solver.")
        self._give_slots()
        state = load_caffe_state(path, self.model, self.solver, self.recipe.classifier)
        drops = self.rate.drops(max(state.iter - 1, 0))
        if state.current_step != drops:
            raise InputError(
                f"{path}: the rate had dropped {state.current_step} times in {state.iter} iterations, but by these "
                f"settings {drops} times: give the --lr-policy and --stepsize of that run."
            )
        self.iteration = self.start = state.iter

    def _give_slots(self) -> None:
        if isinstance(self.model, ShareNet):
            self.model.copy_per_branch()
        self.solver = self.recipe.optimizer(self.model)


def _interrupted(trainer: Trainer, run: Run) -> int:
    """Trains to the end, or until a signal; returns the signal's number, 0 at the end."""
    recipe = trainer.recipe
    if trainer.iteration >= recipe.max_iter:
        return 0
    with (
        deferred_signals() as stop,
        RunLog(run.out, trainer.iteration) if is_main() else nullcontext() as log,
        tqdm(
            total=recipe.max_iter, initial=trainer.iteration, unit="it", desc=run.out.name, disable=not is_main()
        ) as bar,
    ):
        batches = trainer.batches(run.workers)
        since, shown = time.monotonic(), trainer.iteration - 1
        while trainer.iteration < recipe.max_iter:
            iteration = trainer.iteration
            last = iteration + 1 == recipe.max_iter
            try:
                trainer.backward(batches)
            except InputError as error:
                raise type(error)(f"iteration {iteration}: {error} {_saved_before_failure(trainer, run)}") from None
            if log and (iteration % recipe.display == 0 or last):
                seconds = time.monotonic() - since
                images_per_second = (iteration - shown) * recipe.batch_size * recipe.iter_size / seconds
                since, shown = time.monotonic(), iteration
                losses, lr = trainer.smoothed(), trainer.rate(iteration)
                log.write(iteration, losses, lr, images_per_second, seconds, peak_memory(trainer.device))
                terms = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
                bar.set_postfix_str(f"{terms}, lr {lr:.1e}, {images_per_second:.1f} images/s", refresh=False)
            trainer.update()
            bar.update()
            interrupted = stop.agreed()
            if trainer.iteration % recipe.snapshot == 0 or last or interrupted:
                _snapshot(trainer, run, must=last or interrupted > 0)
            if interrupted and not last:
                return interrupted
    return 0


def _snapshot(trainer: Trainer, run: Run, must: bool) -> None:
    """Saves a snapshot if this is the first process. Where it cannot be written, that is an error only if it `must`."""
    with failing_together():
        snapshot = trainer.snapshot()
        if is_main():
            try:
                save_snapshot(snapshot_path(run.out, trainer.iteration), snapshot, run.keep)
            except InputError as error:
                if must:
                    raise
                tell(f"{error} Training goes on, and the next snapshot is tried.")


def _saved_before_failure(trainer: Trainer, run: Run) -> str:
    """Saves the state before an update that failed, and returns a sentence on that."""
    path = snapshot_path(run.out, trainer.iteration)
    try:
        if is_main():
            save_snapshot(path, trainer.snapshot(), run.keep)
        return f"The state before it is in {path}."
    except InputError:
        return "Earlier snapshots are untouched."
    finally:
        with suppress(InputError):  # the others wait here until it is saved
            distributed.max_(0)


def _check_finite(values: Tensor, names: list[str], images: list[str]) -> None:
    """Raises InputError for a loss, of (passes, losses), that is no finite number."""
    for row, seen in zip(values.tolist(), images, strict=True):
        for name, value in zip(names, row, strict=True):
            if not math.isfinite(value):
                raise InputError(f"{name} is {value} on the images {seen}; lower --base-lr or look at them.")


def _start(trainer: Trainer, run: Run) -> str:
    """Gives the net its weights, and the trainer its place; a sentence on where they are from."""
    given = None if run.resume in (None, "auto") else Path(run.resume)
    from_caffe = given is not None and given.suffix == CAFFE_SUFFIX
    if (run.resume is None or from_caffe) and (newest_snapshot(run.out) or (run.out / "log.jsonl").exists()):
        raise InputError(f"{run.out} already holds a run: go on with it by --resume auto, or give another --out.")
    if from_caffe:
        trainer.take_over(given)
    elif given is not None:
        trainer.restore(load_snapshot(given))
    elif found := load_newest(run.out):
        given, snapshot, refused = found
        for sentence in refused:
            tell(sentence)
        trainer.restore(snapshot)
    elif run.init is None:
        raise InputError("the net cannot start without --init: its trunk is that of a trained classifier.")
    else:
        return f"{run.init}: {load_init(trainer.model, run.init, trainer.recipe.classifier)}"
    return f"resumed from {given} at iteration {trainer.iteration}"
