"""The training loop, and a run around it from its settings to final.pth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import torch

from a2s_repro.checkpoint.initialisation import load_init
from a2s_repro.checkpoint.snapshots import (
    Snapshot,
    load_newest,
    load_snapshot,
    newest_snapshot,
    save_snapshot,
    snapshot_path,
)
from a2s_repro.checkpoint.trained import FINAL
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.lists import read_list
from a2s_repro.data.survey import survey
from a2s_repro.errors import InputError
from a2s_repro.files import remove_leftovers
from a2s_repro.inference.evaluation import Result
from a2s_repro.inference.segmenter import class_names
from a2s_repro.models import BackboneNet
from a2s_repro.recipes import Recipe
from a2s_repro.recipes.recipe import BALANCED
from a2s_repro.runtime import distributed
from a2s_repro.runtime.devices import usable_device
from a2s_repro.runtime.distributed import failing_together, is_main, tell, world_size
from a2s_repro.runtime.pools import usual_workers
from a2s_repro.runtime.precision import check_precision, kernels_chosen_by_trial, precision_on, products_of
from a2s_repro.training.config import write_config
from a2s_repro.training.display import Display
from a2s_repro.training.run_log import OnEvent
from a2s_repro.training.signals import deferred_signals
from a2s_repro.training.together import normalises_batches
from a2s_repro.training.trainer import Trainer, fitting
from a2s_repro.training.validation import Validation

CAFFE_SUFFIX = ".solverstate"


def training_loop(
    trainer: Trainer, run: Run, validation: Validation | None = None, on_event: OnEvent | None = None
) -> int:
    """Trains to the recipe's last iteration, or until validations get no better for `run.patience`, or until Ctrl-C or
    SIGTERM; returns the signal's number, 0 without one.

    An iteration is `iter_size` forward and backward passes, whose gradients are summed, and one update by the solver.
    The validation between two iterations comes after the snapshot, from which a run killed meanwhile goes on.
    """
    recipe, interrupted = trainer.recipe, 0
    with (
        deferred_signals() as stop,
        Display(trainer, run.out, on_event) as display,
        closing(trainer.batches(run.workers)) as batches,
        kernels_chosen_by_trial(run.precision != "fp32"),
    ):
        while True:
            with _state_saved_on_failure(trainer, run):
                is_validated = validation is None or validation.follow(display, stop)
                if trainer.iteration >= recipe.max_iter and is_validated:
                    break
                if is_validated and validation and validation.is_hopeless(display):
                    tell(f"ended after iteration {trainer.iteration}: {run.patience} validations were no better.")
                    _save_snapshot(trainer, run, required=True)
                    break
                if interrupted := stop.agreed():
                    break
                trainer.backward(batches)
                if display.is_due:
                    with failing_together():
                        display.show()
                trainer.update()
            display.advance()
            last = trainer.iteration == recipe.max_iter
            if trainer.iteration % recipe.snapshot == 0 or last:
                _save_snapshot(trainer, run, required=last)
        if interrupted:
            _save_snapshot(trainer, run, required=True)
    return interrupted


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings of a training run in addition to its recipe."""

    data_root: Path
    out: Path
    """Folder of the run: config.json, log.jsonl, tensorboard/, snapshots, final.pth."""
    init: Path | None = None
    """Weights file to start from, or "pretrained", those that timm or torchvision publishes; required unless the run is
    resumed or its backbone is of one of these."""
    resume: str | None = None
    """Path of a snapshot, or "auto" for the newest complete snapshot in `out`, or `init` if there is none. Also a
    `.solverstate` of Caffe's, to resume from it and its `.caffemodel`; as in Caffe, data and random numbers restart."""
    train_list: Path | None = None
    """Default: the recipe's list, in the data root."""
    val_list: Path | None = None
    """List of images to validate the net on; none by default. Adds val.json and best.pth to `out`."""
    validate_every: int | None = None
    """Iterations between two validations; None: as between two snapshots. There is one after the last, too."""
    patience: int | None = None
    """Number of validations in a row without a better mIoU that end the training; None: it is never ended."""
    classes: Path | None = None
    """File of class names, one per line."""
    device: str = "cpu"
    precision: str = "fp32"
    """One of precision.PRECISIONS; the losses are float32 in all of them."""
    compile: bool = False
    """Whether torch.compile generates kernels for the net; they round differently and draw other dropout masks."""
    cuda_graph: bool = False
    """Whether the compiled net's passes are replayed as CUDA graphs; needs `compile`."""
    together: int | None = None
    """Number of passes of an update that run as one batch; None: on a GPU as many as fit into its memory, on a CPU 1.
    Losses and masks are those of single passes, and gradients differ only in the order of sums."""
    seed: int = 0
    caffe_streams: str | None = None
    """One of data.caffe_rng.GAUSSIANS: the run draws images, crops, mirrors, dropout masks and fillers as Caffe's CPU
    build does with this random_seed and gaussian filler. None: torch's random numbers."""
    workers: int | None = None
    """Number of decoding processes per training process; None: by cores and device (`pools.usual_workers`)."""
    cache: bool = False
    """Whether all training images and labels are decoded at the start and kept in memory, once per training process."""
    keep: int | None = None
    """Number of snapshots to keep; all by default."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a run."""

    iterations: int
    interrupted: int
    """Number of the signal that interrupted the run; 0 without one."""
    file: Path
    """final.pth, or the snapshot of an interrupted run."""
    validation: Result | None
    """Scores of the final weights; None without a validation list, or if an earlier session validated them."""
    classes: list[str]


def train(recipe: Recipe, run: Run, on_event: OnEvent | None = None) -> Outcome:
    """Trains the recipe's net with a progress bar. Ctrl-C and SIGTERM finish the update, save a snapshot and return.

    Under torchrun each process computes its share of an update's passes, and the first one writes and prints. A
    snapshot that cannot be written is reported, and training continues. Any other exception in an iteration saves the
    state before it and ends the decoding processes.

    `on_event` is called with every line of log.jsonl, in the first process.

    Raises:
        InputError: unsuitable settings, files or labels; too little memory; a loss that is not finite.
    """
    device = usable_device(distributed.initialise(run.device))
    with distributed.using_alone(run.out):
        return _train(recipe, run, device, on_event)


def _list_of(recipe: Recipe, data_root: Path) -> Path:
    """The recipe's own list of training images."""
    file = data_root / recipe.training_set
    if data_root.is_dir() and not file.exists():
        raise InputError(
            f"{file}, the recipe's list, does not exist: prepare the data set (docs/datasets.md), or give a list of "
            "your own by --train-list."
        )
    return file


def _train(recipe: Recipe, run: Run, device: torch.device, on_event: OnEvent | None) -> Outcome:
    with failing_together(), fitting(recipe):
        run = _settled(run, device)
        items = read_list(run.train_list or _list_of(recipe, run.data_root), run.data_root)
        val_items = read_list(run.val_list, run.data_root) if run.val_list else None
        classes = class_names(recipe.num_classes, {}, run.classes)

    surveyed = None
    if recipe.class_weights == BALANCED:
        surveyed = survey(items, recipe.num_classes, max(run.workers, 1))
        recipe = recipe.changed(class_weights=surveyed.balanced_weights(recipe.num_classes))
    with failing_together(), fitting(recipe):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        torch.manual_seed(run.seed)
        how = {name: getattr(run, name) for name in ("caffe_streams", "compile", "cuda_graph", "together")}
        trainer = Trainer(recipe, items, device, run.precision, run.seed, **how, classes=classes)
        origin = _start(trainer, run)
    if not trainer.iteration:
        surveyed = surveyed or survey(items, recipe.num_classes, max(run.workers, 1))
        if val_items:
            survey(val_items, recipe.num_classes, max(run.workers, 1))
    with failing_together(), fitting(recipe):
        remarks = surveyed.remarks(classes) if surveyed else []
        if run.cache:
            trainer.dataset.cache(threads=max(run.workers, 1))
    with failing_together():
        if distributed.max_(trainer.iteration) != -distributed.max_(-trainer.iteration):
            raise InputError(f"the processes do not all see the same snapshots in {run.out}: give a folder they share.")

    for sentence in (*recipe.summary(len(items), classes), *remarks, origin):
        tell(sentence)
    if trainer.together > 1:
        tell(f"{trainer.together} passes run together, as one batch of {trainer.together * recipe.batch_size} images")
    elif run.together not in (None, 1) and normalises_batches(trainer.model):
        tell("the passes run one by one, because each is normalised by its own statistics (batch normalisation)")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(run).items()}
    described = {name: trainer.meta[name] for name in ("recipe", "model", "classes")}
    if is_main():
        remove_leftovers(run.out)
        processes = {"processes": world_size(), "together": trainer.together}
        write_config(run.out, {**described, "run": settings | processes, "origin": origin})
    with products_of(run.precision):
        every = run.validate_every or recipe.snapshot
        validation = Validation(trainer, run.out, val_items, classes, every, run.patience) if val_items else None
        interrupted = training_loop(trainer, run, validation, on_event)
        if interrupted:
            return Outcome(trainer.iteration, interrupted, snapshot_path(run.out, trainer.iteration), None, classes)
        final = run.out / FINAL
        source = {"file": str(run.out), "kind": "trained"}
        with failing_together():
            if is_main():
                meta = {**trainer.meta, "iteration": trainer.iteration, "source": source}
                save_weights(final, trainer.model.state_dict(), meta)
    return Outcome(trainer.iteration, 0, final, validation and validation.last, classes)


def _settled(run: Run, device: torch.device) -> Run:
    """The run with its precision and its number of workers. Raises InputError for a setting that is not possible."""
    workers = usual_workers(device) if run.workers is None else run.workers
    run = dataclasses.replace(run, precision=precision_on(run.precision, device), workers=workers)
    check_precision(run.precision, device)
    if run.keep is not None and run.keep < 1:
        raise InputError(f"keeping {run.keep} snapshots is not possible: a run goes on from at least one.")
    if run.together is not None and run.together < 1:
        raise InputError(f"running {run.together} passes together is not possible: give at least 1.")
    validating = {"validating every {} iterations": run.validate_every, "a patience of {}": run.patience}
    for words, number in validating.items():
        if number is not None and (number < 1 or not run.val_list):
            raise InputError(f"{words.format(number)} is not possible: give at least 1 and a --val-list.")
    return run


def _save_snapshot(trainer: Trainer, run: Run, required: bool) -> None:
    """Saves a snapshot, in the first process. Raises InputError if it is `required` and cannot be written."""
    with failing_together():
        snapshot = trainer.snapshot()
        if is_main():
            try:
                save_snapshot(snapshot_path(run.out, trainer.iteration), snapshot, run.keep)
            except InputError as error:
                if required:
                    raise
                tell(f"{error} Training goes on, and the next snapshot is tried.")


@contextmanager
def _state_saved_on_failure(trainer: Trainer, run: Run) -> Iterator[None]:
    """Saves the state before the block, an iteration, if it raises an exception of any kind."""
    iteration = trainer.iteration
    try:
        yield
    except InputError as error:
        raise type(error)(f"iteration {iteration}: {error} {_save_after_failure(trainer, run)}") from None
    except BaseException as error:
        saved = _save_after_failure(trainer, run, together=isinstance(error, Exception))
        tell(f"iteration {iteration} was ended by {type(error).__name__}. {saved}")
        raise


def _save_after_failure(trainer: Trainer, run: Run, together: bool = True) -> str:
    """Saves the state before a failed iteration; returns a sentence about it.

    together: whether the other processes call it, too; they then wait until the state is saved.
    """
    path = snapshot_path(run.out, trainer.iteration)
    try:
        trainer.undo()
        if is_main():
            save_snapshot(path, trainer.snapshot(), run.keep)
        return f"The state before it is in {path}."
    except InputError:
        return "Earlier snapshots are untouched."
    finally:
        if together:
            with suppress(InputError):
                distributed.max_(0)


def _start(trainer: Trainer, run: Run) -> str:
    """Loads the initial weights or the state to resume from; returns a sentence about their origin."""
    given = None if run.resume in (None, "auto") else Path(run.resume)
    from_caffe = given is not None and given.suffix == CAFFE_SUFFIX
    held = newest_snapshot(run.out) or next(filter(Path.exists, (run.out / "final.pth", run.out / "log.jsonl")), None)
    if run.resume == "auto":
        if held == run.out / "final.pth":
            raise InputError(f"{run.out} holds a final.pth, but no snapshot to go on from: give another --out.")
    elif held and not (given and not from_caffe and given.resolve().parent == run.out.resolve()):
        raise InputError(
            f"{run.out} already holds a run: go on with it by --resume auto, or give another --out "
            f"({held.name} is there)."
        )
    if from_caffe:
        trainer.take_over(given)
    elif given is not None:
        _restore(trainer, given, load_snapshot(given))
    elif found := load_newest(run.out):
        given, snapshot, refused = found
        for sentence in refused:
            tell(sentence)
        _restore(trainer, given, snapshot)
    elif run.init is None and isinstance(trainer.model, BackboneNet):
        return f"{trainer.model.backbone_name} starts from random weights, because no --init is given"
    elif run.init is None:
        raise InputError(
            "the net cannot start without --init, because its trunk is that of a trained classifier: give a VGG-16 "
            "converted by `a2s convert`, or for a trial the random weights of `a2s make-init`."
        )
    else:
        return f"{run.init}: {load_init(trainer.model, run.init, trainer.recipe.classifier)}"
    return f"resumed from {given} at iteration {trainer.iteration}"


def _restore(trainer: Trainer, path: Path, snapshot: Snapshot) -> None:
    try:
        trainer.restore(snapshot)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
