"""Repeats a recorded run and compares every number with the recorded one."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.caffe.streams import CaffeStreams
from a2s_repro.data.image_seg import transform
from a2s_repro.data.normalization import Normalization
from a2s_repro.models import DeepLab, build_model
from a2s_repro.models.layers import take_masks_from
from a2s_repro.models.losses import training_loss
from a2s_repro.replay.blobs import accuracies, blobs_of_test_net, first_blobs
from a2s_repro.replay.flips import Flip, first_flip, recorded_decisions
from a2s_repro.replay.gates import GATES, Comparison, Report, compare, gates_of
from a2s_repro.replay.recording import Arrays, Recording, copy_name
from a2s_repro.runtime.precision import float32_products
from a2s_repro.solver import CaffeSGD, parameter_groups

TEST_ROW = 5
"""Row of a blob that a record of the TEST phase stores as BLOB_row0."""


def replay(
    recording: Recording,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    rtol: float | None = None,
    progress: Callable[[], Any] = lambda: None,
) -> Report:
    """Compares the whole record: random draws, the first pass, the first gradients, every run, and the TEST phase.

    `rtol` replaces all gates by one on the relative deviation. `progress` is called after every training iteration.
    """
    comparisons, flips = compare_streams(recording) + compare_first_pass(recording, dtype, device), {}
    comparisons += compare_gradients(recording, dtype, device)
    for run in recording.runs:
        of_run, flip = compare_run(recording, run, dtype, device, progress)
        comparisons += of_run
        if flip:
            flips[run] = flip
    comparisons += compare_test_phase(recording, dtype, device)
    if rtol is not None:
        comparisons = [comparison.held_to(rtol) for comparison in comparisons]
    return Report(recording.name, str(dtype).removeprefix("torch."), comparisons, flips)


def compare_streams(recording: Recording) -> list[Comparison]:
    """The draws of the run from its seed, bit for bit: fillers, transformer seeds, cropped and mirrored images."""
    if recording.streams is None:
        return []
    recorded = recording.streams
    net = build_model(recording.config)
    streams = _streams(recording, net)
    parameters = net.keyed_parameters()
    ours = {name: parameters[name].detach() for name in recorded.fillers}
    data, seeds = streams.data(), [streams.transformer_seed]
    for number in range(len(recorded.draws)):
        ours[f"images of pass {number}"], _ = recorded.batch(data.batch(number))
        streams.next_pass()
        seeds.append(streams.transformer_seed)
    ours |= {"transformer seeds": torch.tensor(seeds), "next word": torch.tensor(streams.words.word())}
    theirs = recorded.fillers | {
        f"images of pass {number}": recorded.batch(draws)[0].numpy() for number, draws in enumerate(recorded.draws)
    }
    theirs |= {"transformer seeds": recorded.transformer_seeds, "next word": np.array(recorded.next_word)}
    return _compared("stream", ours, theirs, GATES)


@float32_products("ieee")
def compare_first_pass(recording: Recording, dtype: torch.dtype, device: str | torch.device) -> list[Comparison]:
    """All recorded blobs of the first forward pass."""
    if not recording.blobs:
        return []
    stored, recomputed = first_blobs(recording, dtype, device)
    return _compared("blob", stored | recomputed, recording.blobs, gates_of(dtype), recomputed=recomputed.keys())


@float32_products("ieee")
def compare_gradients(recording: Recording, dtype: torch.dtype, device: str | torch.device) -> list[Comparison]:
    """The gradients of the first iteration; without a gate if float32 flipped a unit."""
    if not recording.gradients and not recording.copy_gradients:
        return []
    training = Training(recording, next(iter(recording.runs)), dtype, device)
    _, flip = training.passes(0)
    summed, copies = training.by_parameter_and_copy(lambda parameter: parameter.grad)
    gates = gates_of(dtype, flip is not None)
    comparisons = _compared("gradient", summed, recording.gradients, gates)
    return comparisons + _compared("gradient", copies, recording.copy_gradients, gates)


@float32_products("ieee")
def compare_run(
    recording: Recording,
    run: str,
    dtype: torch.dtype,
    device: str | torch.device,
    progress: Callable[[], Any] = lambda: None,
) -> tuple[list[Comparison], tuple[int, Flip] | None]:
    """The losses and accuracies of every iteration, the final weights and the histories of one run.

    In float32 the net also runs in float64; the second result is the iteration and the first unit that float32 flipped.
    After a flip only the losses are checked, with a wider gate. On a GPU a run is reported without gates.
    """
    recorded = recording.runs[run]
    training = Training(recording, run, dtype, device)
    comparisons, flipped = [], None

    def gates() -> dict[str, float | None]:
        return gates_of(dtype, flipped is not None) if torch.device(device).type == "cpu" else dict.fromkeys(GATES)

    for iteration in range(recording.iterations):
        tops, flip = training.passes(iteration)
        training.update(iteration)
        if flip and not flipped:
            flipped = iteration, flip
        for top, values in recorded.tops.items():
            kind = "accuracy" if top.startswith("accuracy") else "loss"
            theirs = {top: values[iteration]}
            comparisons += _compared(kind, tops, theirs, gates(), run=run, iteration=iteration)
        progress()
    weights = {name: parameter.detach() for name, parameter in training.net.keyed_parameters().items()}
    histories, of_copies = training.by_parameter_and_copy(lambda p: training.solver.state[p].get("history"))
    comparisons += _compared("weight", weights, recorded.weights, gates(), run=run)
    comparisons += _compared("history", histories, recorded.history, gates(), run=run)
    comparisons += _compared("history", of_copies, recorded.copy_history, gates(), run=run)
    return comparisons, flipped


@float32_products("ieee")
def compare_test_phase(recording: Recording, dtype: torch.dtype, device: str | torch.device) -> list[Comparison]:
    """The TEST phase on the record's test image, padded or centre-cropped: maps, or rows of them, and labels."""
    if recording.test_image is None:
        return []
    theirs = dict(recording.test)
    (argmax,) = (name for name in theirs if name.endswith("_argmax"))
    labels, rows = {argmax: theirs.pop(argmax)}, theirs.pop("rows", None)
    side = labels[argmax].shape[-1]
    no_label = np.zeros(recording.test_image.shape[:2], np.uint8)
    pixels, _ = transform(recording.test_image, no_label, side, Normalization(recording.mean), None)
    image = torch.from_numpy(pixels)[None].to(device, dtype)
    prediction, blobs = blobs_of_test_net(recording, image)
    for name, blob in list(blobs.items()):
        blobs[f"{name}_row0"] = blob[0, :, TEST_ROW : TEST_ROW + 1]
        if rows is not None and blob.shape[2] > rows.max():
            blobs[f"{name}_rows"] = blob[0, :, rows]
    comparisons = _compared("test map", blobs, theirs, gates_of(dtype))
    segmented = {argmax: ops.segment(prediction.scores, (side, side))}
    return comparisons + _compared("test label", segmented, labels, gates_of(dtype))


class Training:
    """A repetition of a recorded run; in float32 with a float64 twin, to distinguish flipped units from errors."""

    def __init__(self, recording: Recording, run: str, dtype: torch.dtype, device: str | torch.device) -> None:
        settings = recording.runs[run]
        self.recording, self.rate, self.device, self.dtype = recording, settings.rate, device, dtype
        self.net = recording.net(dtype, device).train()
        self.streams = None
        if recording.streams:
            self.streams = _streams(recording, self.net)  # fills the new layers; the file may override them
            self.net.load_state_dict(recording.initial)
        if recording.per_copy:
            self.net.copy_per_stream()
        self.solver = CaffeSGD(
            parameter_groups(self.net, settings.shared_decay, settings.lr_mult),
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            iter_size=recording.passes,
        )
        self.exact = None if dtype == torch.float64 else Training(recording, run, torch.float64, device)

    def passes(self, iteration: int) -> tuple[Arrays, Flip | None]:
        """Runs an iteration's forward and backward passes; returns its tops, (passes,) each, and the first flip."""
        tops, flip = [], None
        for training in (self, self.exact):
            if training:
                training.solver.zero_grad()
        for pass_ in range(self.recording.passes):
            image, labels = self.recording.batch(iteration, pass_)
            if not self.exact:
                tops.append(self._pass(image, labels))
                continue
            with recorded_decisions(self.net) as ours, recorded_decisions(self.exact.net) as reference:
                tops.append(self._pass(image, labels))
                self.exact._pass(image, labels)
            flip = flip or first_flip(ours, reference)
        if flip:
            self.exact = None
        return {top: np.array([values[top] for values in tops]) for top in tops[0]}, flip

    def _pass(self, image: Tensor, labels: Tensor) -> dict[str, float]:
        if self.streams:
            take_masks_from(self.net, self.streams.next_pass())
        prediction = self.net(image.to(self.device, self.dtype))
        labels = labels.to(self.device)
        losses = training_loss(prediction, labels, self.recording.extra_supervision)
        sum(losses.values()).backward()
        tops = {name: loss.item() for name, loss in losses.items()}
        for name, values in accuracies(prediction, labels, self.recording.extra_supervision).items():
            tops |= {f"{name}[{index}]": value for index, value in enumerate(values)}
        return tops

    def update(self, iteration: int) -> None:
        for training in (self, self.exact):
            if training:
                training.solver.set_lr(self.rate(iteration))
                training.solver.step()

    def by_parameter_and_copy(self, value: Callable[[nn.Parameter], Tensor | None]) -> tuple[dict, dict]:
        """`value` of all parameters, by name: summed over the copies of a parameter, and per copy."""
        summed, copies = {}, {}
        for stream, scale in zip((self.net, *self.net.copies), self.net.scales, strict=False):
            for name, parameter in stream.keyed_parameters().items():
                tensor = value(parameter)
                if tensor is not None:
                    layer, kind = name.split(".")
                    copies[copy_name(layer, scale, kind)] = tensor
                    summed[name] = summed[name] + tensor if name in summed else tensor
        return summed, copies


def _streams(recording: Recording, net: DeepLab) -> CaffeStreams:
    recorded = recording.streams
    return CaffeStreams(net, len(recorded.dataset), len(recorded.draws[0]), recorded.dataset.crop, recorded.seed)


def _compared(
    kind: str,
    ours: dict[str, Tensor],
    theirs: Arrays,
    gates: dict[str, float | None],
    recomputed: Iterable[str] = (),
    **place: Any,
) -> list[Comparison]:
    """Compares every recorded array with ours; a missing one fails."""
    return [
        compare(kind, name, ours.get(name), values, gates[kind], recomputed=name in recomputed, **place)
        for name, values in theirs.items()
    ]
