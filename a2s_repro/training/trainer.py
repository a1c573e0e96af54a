"""A net in training: forward and backward passes, updates, snapshots."""

import hashlib
import itertools
import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from a2s_repro.caffe.state import load_caffe_state
from a2s_repro.caffe.streams import CaffeStreams
from a2s_repro.checkpoint.snapshots import Snapshot, load_into
from a2s_repro.data.image_seg import RandomStream, Sample, SegmentationDataset, loader
from a2s_repro.data.lists import Item
from a2s_repro.data.normalization import NORMALIZATIONS
from a2s_repro.errors import InputError
from a2s_repro.models import ShareNet
from a2s_repro.models.base import check_image
from a2s_repro.models.layers import Masks, SeededMasks, take_masks_from
from a2s_repro.models.losses import training_loss
from a2s_repro.recipes import Recipe
from a2s_repro.runtime.compilation import compiled
from a2s_repro.runtime.devices import fitting_in_memory, phase
from a2s_repro.runtime.distributed import GradientSum, failing_together, rank, sum_, world_size
from a2s_repro.runtime.precision import autocast_of, precision_named
from a2s_repro.training.batch_norm import RunningStatistics
from a2s_repro.training.together import passes_together

NO_EFFECT_ON_TRAINING = (
    *("name", "published", "ours", "dataset", "training_set", "evaluation_set", "hidden_labels"),
    *("init", "test_crop", "crf", "short_sides", "factors", "display", "snapshot"),
)
"""Fields of a recipe that may change when a run is resumed; max_iter may, too, unless the rate depends on it (poly)."""


class Pass(NamedTuple):
    """A forward and backward pass of an update."""

    number: int
    """Counted from 0 over the whole run."""
    batch: Sample
    masks: Masks
    """Of its dropout layers."""


class Trainer:
    """A net, its solver and its position in the data.

    An iteration is `trainer.backward(batches)` and then `trainer.update()`; after an exception in either, `undo()`
    restores the state before. The processes of a run share the passes of each iteration.

    Raises:
        InputError: the number of processes does not divide iter_size, the crop does not fit the net's grids, or
            `compile` and `cuda_graph` are not available.

    Attributes:
        together: number of passes that run as one batch; see `passes_together`.
    """

    def __init__(
        self,
        recipe: Recipe,
        items: list[Item],
        device: torch.device,
        precision: str,
        seed: int,
        caffe_streams: str | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
        together: int | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        if recipe.iter_size % world_size():
            raise InputError(
                f"the {recipe.iter_size} passes of an update (--iter-size) cannot be dealt out to {world_size()} "
                "processes evenly: start a number of processes that divides them."
            )
        self.recipe, self.items, self.device, self.precision = recipe, items, device, precision_named(precision)
        self.model = recipe.net().to(device, memory_format=torch.channels_last).train()
        check_image(torch.empty(1, 3, recipe.crop, recipe.crop, device="meta"), self.model.grid_step)
        self.solver = recipe.optimizer(self.model)
        self.statistics = RunningStatistics(self.model)
        self.rate = recipe.learning_rate()
        self.dataset = SegmentationDataset(
            items,
            recipe.num_classes,
            recipe.crop,
            NORMALIZATIONS[self.model.normalization],
            recipe.scale_augmentation,
            recipe.fill_crop,
            recipe.colour_augmentation,
        )
        weights = recipe.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, device=device)
        self.stream = RandomStream(len(items), recipe.batch_size, seed)
        self.caffe = None
        if caffe_streams:
            if not recipe.is_caffes:
                raise InputError(f"{recipe.name or 'the recipe'} is no net of Caffe's: leave out --caffe-streams.")
            if compile or cuda_graph:
                raise InputError("a compiled net cannot take its masks from Caffe's streams: leave out one of the two.")
            self.caffe = CaffeStreams(self.model, len(items), recipe.batch_size, recipe.crop, seed, caffe_streams)
        self.forward = compiled(self.model, device, compile, cuda_graph)
        mine = recipe.iter_size // world_size()
        self.together = passes_together(together, self.model, recipe.batch_size, recipe.crop, mine, device)
        self.iteration = self.start = 0
        self.recent: deque[dict[str, float]] = deque(maxlen=recipe.average_loss)
        self._before: tuple | None = None
        self._half_updated = False
        self._classes = classes
        ids = hashlib.sha256("\n".join(item.id for item in items).encode())
        self.config = {
            "seed": seed,
            "caffe_streams": caffe_streams,
            "precision": self.precision,
            "training list": ids.hexdigest(),
            **recipe.config(),
        }
        for name in NO_EFFECT_ON_TRAINING + (("max_iter",) if recipe.lr_policy != "poly" else ()):
            del self.config[name]

    @property
    def meta(self) -> dict[str, Any]:
        """Description of the net and its training in weights files and snapshots."""
        recipe = self.recipe
        return {
            "pool5a": recipe.pool5a,
            "classifier": recipe.classifier,
            "scales": list(recipe.scales),
            "recipe": recipe.config(),
            "model": self.model.config(),
            **({"classes": list(self._classes)} if self._classes else {}),
        }

    def batches(self, workers: int) -> Generator[Sample, None, None]:
        """The batches of this process in the remaining iterations: every world_size-th, from `rank`.

        Closing the generator ends its workers.
        """
        passes = self.recipe.iter_size
        stream, start = self.stream, (self.iteration - self.start) * passes
        if self.caffe:
            stream, start = self.caffe.data(), self.caffe.passes
        remaining = max(self.recipe.max_iter - self.iteration, 0) * passes // world_size()
        return loader(self.dataset, stream, start + rank(), remaining, workers, self.device, world_size())

    @cached_property
    def gradients(self) -> GradientSum:
        """Gradients of the solver's parameters, to which a snapshot may add sharing copies: made at the first use."""
        return GradientSum(parameter for group in self.solver.param_groups for parameter in group["params"])

    def backward(self, batches: Iterator[Sample]) -> None:
        """Makes iter_size forward and backward passes and adds their mean losses to the recent ones.

        Raises:
            InputError: a file that cannot be read, a process that died, too little memory, a loss that is not finite
                (with the names of the images).
        """
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        self._before = self.caffe and self.caffe.state(), buffers, list(self.recent)
        losses: list[dict[str, Tensor]] = []
        images: list[str] = []
        mine, passes = self.recipe.iter_size // world_size(), self._passes(batches)
        self.statistics.begin()
        with failing_together(), fitting(self.recipe, self.together), self.gradients.over(-(-mine // self.together)):
            while group := list(itertools.islice(passes, self.together)):
                images += [", ".join(self.items[i].id for i in each.batch.index.tolist()) for each in group]
                losses.append(self.backward_passes(group))
                self.statistics.made_pass()
            values = torch.cat([torch.stack(list(row.values()), 1) for row in losses]).double().cpu()
            _check_finite(values, list(losses[0]), images)
        self.statistics.finish()
        means = (sum_(values.sum(0)) / self.recipe.iter_size).tolist()
        self.recent.append(dict(zip(losses[0], means, strict=True)))

    def _passes(self, batches: Iterator[Sample]) -> Iterator[Pass]:
        """The passes of this process in an iteration; advances statistics and masks past those of the others."""
        first = (self.iteration - self.start) * self.recipe.iter_size
        for number in range(first, first + self.recipe.iter_size):
            masks = self.caffe.next_pass() if self.caffe else SeededMasks(self._seed(number), self.device)
            if number % world_size() == rank():
                yield Pass(number, next(batches), masks)
            else:
                self.statistics.skip_pass()

    def _seed(self, number: int) -> int:
        """The seed of the dropout masks of a pass."""
        return int(np.random.SeedSequence((self.config["seed"], 2, number)).generate_state(1)[0])

    def backward_passes(self, group: Sequence[Pass]) -> dict[str, Tensor]:
        """Passes as one batch, forward and backward; returns the losses, (passes,) each.

        As if they ran one after another, the loss is a mean over each pass, and its dropout masks depend on the seed
        and the number of the pass alone. A compiled net draws its own masks, by the number of the first pass.
        """
        image, label = (_joined([getattr(each.batch, name) for each in group]) for name in ("image", "label"))
        image = image.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        label = label.to(self.device, non_blocking=True)
        if self.forward is self.model:
            take_masks_from(self.model, *(each.masks for each in group))
        else:
            torch.manual_seed(self._seed(group[0].number))
        with phase("forward"), autocast_of(self.precision, self.device):
            prediction = self.forward(image)
        with phase("losses"):
            recipe = self.recipe
            how = {"passes": len(group), "class_weights": self.class_weights}
            losses = training_loss(prediction, label, recipe.extra_supervision, recipe.label_stride, **how)
        with phase("backward"):
            sum(losses.values()).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}

    @property
    def epoch(self) -> float:
        """Number of times that the list will have been seen after this iteration."""
        recipe = self.recipe
        seen = (self.iteration + 1 - self.start) * recipe.batch_size * recipe.iter_size
        return seen / len(self.items)

    def smoothed(self) -> dict[str, float]:
        """Losses averaged over the recent iterations, as in Caffe's display."""
        return {name: sum(losses[name] for losses in self.recent) / len(self.recent) for name in self.recent[-1]}

    def update(self) -> None:
        """Applies the gradients at the rate of this iteration. Raises InputError if memory is short."""
        self.solver.set_lr(self.rate(self.iteration))
        self._half_updated = True
        with fitting(self.recipe), phase("solver"):
            self.solver.step()
        self._half_updated, self._before = False, None
        self.iteration += 1

    def undo(self) -> None:
        """Restores the state before `backward`, unless `update` has finished."""
        if self._before is None:
            return
        place, buffers, recent = self._before
        if self.caffe:
            self.caffe.restore(place)
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        self.recent.clear()
        self.recent.extend(recent)
        self._before = None

    def snapshot(self) -> Snapshot:
        """The state between two iterations.

        Raises:
            InputError: the last update did not finish, or left weights that are not finite.
        """
        if self._half_updated:
            raise InputError(f"iteration {self.iteration}: the update was cut short (earlier snapshots are untouched).")
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
            meta=self.meta,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Restores a snapshot. Raises InputError if it belongs to another run, naming the settings, or is damaged."""
        theirs = {**snapshot.config, **Recipe.of_config(snapshot.config).config()}
        if "precision" in theirs:
            theirs["precision"] = precision_named(theirs["precision"])
        changed = [
            f"{name} {theirs.get(name)} instead of {value}"
            for name, value in self.config.items()
            if theirs.get(name) != value
        ]
        if changed:
            raise InputError(f"the snapshot belongs to a run with {', '.join(changed)}: resume with the same settings.")
        if snapshot.has_slots:
            self._give_slots()
        try:
            if self.caffe:
                self.caffe.restore(snapshot.random["caffe"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("the snapshot does not hold what its settings tell: resume from another.") from error
        load_into(snapshot, self.model, self.solver)
        self.recent.extend(snapshot.losses)
        self.iteration, self.start = snapshot.iteration, snapshot.start

    def take_over(self, path: Path) -> None:
        """Resumes from a `.solverstate` of Caffe's, with a slot for every sharing copy.

        Raises InputError, naming the difference, if it belongs to another net or another schedule.
        """
        if not self.recipe.is_caffes or self.recipe.solver != "caffe":
            raise InputError(
                f"{path} is of a run of Caffe's, but the recipe is of another net or solver, which cannot go on from "
                "it: convert its .caffemodel, and start from that by --init."
            )
        self._give_slots()
        state = load_caffe_state(path, self.model, self.solver, self.recipe.classifier)
        drops = self.rate.drops(max(state.iter - 1, 0))
        if state.current_step != drops:
            raise InputError(
                f"{path}: the rate had dropped {state.current_step} times in {state.iter} iterations, but by these "
                f"settings {drops} times: give the --lr-policy and --stepsize or --steps of that run."
            )
        self.iteration = self.start = state.iter

    def _give_slots(self) -> None:
        if isinstance(self.model, ShareNet):
            self.model.copy_per_stream()
        self.solver = self.recipe.optimizer(self.model)


def fitting(recipe: Recipe, together: int = 1) -> AbstractContextManager[None]:
    """Turns a lack of memory in the block into an InputError that names the settings to reduce."""
    batch, crop, width = together * recipe.batch_size, recipe.crop, recipe.width
    return fitting_in_memory(
        f"a batch of {batch} crops of {crop}x{crop} pixels in a net of width {width:g}",
        "lower --together" if together > 1 else "lower --batch-size and raise --iter-size, or lower --crop or --width",
    )


def _joined(batches: list[Tensor]) -> Tensor:
    return torch.cat(batches) if len(batches) > 1 else batches[0]


def _check_finite(values: Tensor, names: list[str], images: list[str]) -> None:
    """Raises InputError if one of the losses (passes, losses) is not finite."""
    for row, seen in zip(values.tolist(), images, strict=True):
        for name, value in zip(names, row, strict=True):
            if not math.isfinite(value):
                raise InputError(f"{name} is {value} on the images {seen}; lower --base-lr or look at them.")
