"""The training loop: where the nets meet the data."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from a2s_repro.checkpoint.initialisation import load_init
from a2s_repro.checkpoint.snapshots import load_newest, load_snapshot, newest_snapshot, save_snapshot, snapshot_path
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.files import remove_leftovers
from a2s_repro.inference.evaluation import Result, evaluate
from a2s_repro.inference.segmenter import class_names
from a2s_repro.recipes import Recipe
from a2s_repro.runtime import distributed
from a2s_repro.runtime.devices import peak_memory, usable_device
from a2s_repro.runtime.distributed import failing_together, is_main, tell, world_size
from a2s_repro.runtime.precision import check_precision, products_of
from a2s_repro.training.run_log import RunLog, write_config
from a2s_repro.training.signals import deferred_signals
from a2s_repro.training.trainer import Trainer, fitting

CAFFE_SUFFIX = ".solverstate"


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
    """One of precision.PRECISIONS; the losses are float32 in all of them."""
    compile: bool = False
    """Whether torch.compile makes kernels of the net's operations, which round differently and draw other masks."""
    cuda_graph: bool = False
    """Whether the net's passes are replayed as CUDA graphs."""
    seed: int = 0
    caffe_streams: str | None = None
    """The gaussian filler of data.caffe_rng.GAUSSIANS, if the run is to draw what Caffe's CPU build with this
    random_seed draws: images, crops, mirrors, dropout masks and fillers."""
    workers: int = 2
    """Decoding processes, for each of the training processes."""
    cache: bool = False
    """Whether all training images and labels are decoded at the start and stay in memory, once in each process of the
    run."""
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

    Whatever else ends a run that is under way, the state before the failed update is saved first, and the decoding
    processes end with it.

    Raises:
        InputError: settings, files or labels that do not fit, each in a sentence; too little memory; a loss that is no
            number any more.
    """
    device = usable_device(distributed.initialise(run.device))
    with failing_together(), fitting(recipe):
        check_precision(run.precision, device)
        if run.keep is not None and run.keep < 1:
            raise InputError(f"keeping {run.keep} snapshots is not possible: a run goes on from at least one.")
        items = read_list(run.train_list or run.data_root / recipe.training_set, run.data_root)
        val_items = read_list(run.val_list, run.data_root) if run.val_list else None
        classes = class_names(recipe.num_classes, {}, run.classes)

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        torch.manual_seed(run.seed)
        how = {"caffe_streams": run.caffe_streams, "compile": run.compile, "cuda_graph": run.cuda_graph}
        trainer = Trainer(recipe, items, device, run.precision, run.seed, **how)
        origin = _start(trainer, run)
        if run.cache:
            trainer.dataset.cache(threads=max(run.workers, 1))
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
    with products_of(run.precision):
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
        closing(trainer.batches(run.workers)) as batches,
    ):
        since, shown = time.monotonic(), trainer.iteration - 1
        while trainer.iteration < recipe.max_iter:
            iteration = trainer.iteration
            last = iteration + 1 == recipe.max_iter
            with _state_saved_on_failure(trainer, run):
                if interrupted := stop.agreed():
                    break
                trainer.backward(batches)
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
            if trainer.iteration % recipe.snapshot == 0 or last:
                _snapshot(trainer, run, must=last)
        if interrupted:
            _snapshot(trainer, run, must=True)
    return interrupted


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


@contextmanager
def _state_saved_on_failure(trainer: Trainer, run: Run) -> Iterator[None]:
    """Saves the state before an update if the block, which makes it, ends by an exception of any kind."""
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
    """Saves the state before an update that failed, and returns a sentence on that.

    together: whether the other processes come here too, which then wait until it is saved.
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
