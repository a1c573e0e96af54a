"""20 updates of a small smooth net against the authors' Caffe, all weights and histories.

Layers c1 and c1_res05 share their data but have different multipliers. s1 and s2 share data and multipliers, so two
slots are equivalent to one. The weight of `solo` has lr_mult 0. Computed in float64, so that only Caffe's float32
rounding remains.
"""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.models.losses import softmax_with_loss
from a2s_repro.solver import CaffeSGD, LearningRate
from caffe_weights import read_caffemodel, read_solverstate
from tests.paths import GOLDEN

FOLDER = GOLDEN / "sgd"
RECORD = dict(np.load(FOLDER / "sgd.npz"))
INFO = json.loads(str(RECORD["info_json"]))
OWNER = {"c1_res05": "c1", "s2": "s1"}

DEVIATION = 2e-6
"""Tolerance for 20 float32 updates, as relative L2 norm of a tensor; 5e-7 was measured."""


class Net:
    """The recorded net, its solver, and the images in their order.

    one_slot: layers whose copies share one slot, decayed once per copy.
    """

    def __init__(self, weights: str = "init.caffemodel", one_slot: tuple[str, ...] = (), **settings: float) -> None:
        layers = {layer.name: layer.blobs for layer in read_caffemodel(FOLDER / weights).layers}
        self.slots: dict[str, nn.Parameter] = {}
        groups = []
        for name, lr_mult, decay_mult in zip(INFO["params"], INFO["lr_mult"], INFO["decay_mult"], strict=True):
            layer, index = name.split("/")
            owner = OWNER.get(layer, layer)
            if owner == layer:
                self.slots[name] = nn.Parameter(torch.from_numpy(layers[layer][int(index)].copy()).double())
            elif owner in one_slot:
                self.slots[name] = self.slots[f"{owner}/{index}"]
                continue
            else:
                self.slots[name] = nn.Parameter(self.slots[f"{owner}/{index}"].data)
            shared_by = 2 if layer in one_slot else 1
            groups.append({"params": [self.slots[name]], "lr_mult": lr_mult, "decay_mult": decay_mult})
            groups[-1] |= {"shared_by": shared_by, "owner": owner == layer}
        self.solver = CaffeSGD(groups, momentum=0.9, weight_decay=0.05, iter_size=2, **settings)
        self.rate = LearningRate(0.02, "step", gamma=0.1, stepsize=8)

    def losses(self, images: np.ndarray, labels: np.ndarray) -> list[Tensor]:
        mean = np.array([104.008, 116.669, 122.675], np.float32)
        data = torch.from_numpy(images.astype(np.float32) - mean).permute(0, 3, 1, 2).double() * np.float32(0.02)
        labels = torch.from_numpy(labels)
        p = self.slots
        c1 = F.conv2d(data, p["c1/0"], p["c1/1"], padding=1)
        half = F.conv2d(ops.interp(data, (9, 9)), p["c1_res05/0"], p["c1_res05/1"], padding=1)
        s1 = F.conv2d(c1, p["s1/0"], p["s1/1"])
        s2 = F.conv2d(ops.interp(half, (17, 17)), p["s2/0"], p["s2/1"])
        solo = F.conv2d(data, p["solo/0"], p["solo/1"], padding=1)
        return [softmax_with_loss(s1 + 0.5 * s2 + solo, labels), softmax_with_loss(s1, labels)]

    def train(self, iterations: range) -> Iterator[np.ndarray]:
        """Yields the losses (2, 2) of each iteration, after its update; the data starts at image 0."""
        for step, iteration in enumerate(iterations):
            self.solver.zero_grad()
            passes = []
            for half in (0, 1):
                first = (2 * step + half) * 2 % len(RECORD["labels"])
                losses = self.losses(RECORD["images_bgr"][first : first + 2], RECORD["labels"][first : first + 2])
                sum(losses).backward()
                passes.append([loss.item() for loss in losses])
            self.solver.set_lr(self.rate(iteration))
            self.solver.step()
            yield np.array(passes)

    def history(self, name: str) -> Tensor:
        return self.solver.state[self.slots[name]]["history"]

    def check_weights(self, recorded: dict[str, np.ndarray]) -> None:
        for name, theirs in recorded.items():
            assert relative_l2(self.slots[name], theirs) < DEVIATION, name


def recorded(prefix: str, iteration: int | None = None) -> dict[str, np.ndarray]:
    arrays = {key.split("|")[1]: value for key, value in RECORD.items() if key.startswith(f"{prefix}|")}
    return arrays if iteration is None else {name: values[iteration] for name, values in arrays.items()}


def relative_l2(ours: Tensor, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours.detach().numpy() - theirs) / np.linalg.norm(theirs))


def test_every_update_gives_the_recorded_weights_and_histories():
    net = Net()
    for iteration, losses in enumerate(net.train(range(20))):
        assert losses == pytest.approx(RECORD["losses"][iteration][:, [0, 4]], abs=5e-6)
        net.check_weights(recorded("w", iteration))
        for name, theirs in recorded("hist", iteration).items():
            if name == "solo/0":
                assert net.slots[name] not in net.solver.state and net.slots[name].grad is None
            else:
                assert relative_l2(net.history(name), theirs) < DEVIATION, (name, iteration)


def test_copies_of_equal_multipliers_need_one_slot():
    net = Net(one_slot=("s1",))
    for iteration, _ in enumerate(net.train(range(20))):
        net.check_weights(recorded("w", iteration))
        theirs = recorded("hist", iteration)
        for i in (0, 1):
            assert relative_l2(net.history(f"s1/{i}"), theirs[f"s1/{i}"] + theirs[f"s2/{i}"]) < DEVIATION


def test_resuming_from_caffes_files_continues_the_histories_and_the_schedule():
    """The recorded run was restored after iteration 10, where its data layer restarts at image 0."""
    net = Net("sgd_iter_10.caffemodel")
    state = read_solverstate(FOLDER / "sgd_iter_10.solverstate")
    for name, history in zip(INFO["params"], state.history, strict=True):
        net.solver.state[net.slots[name]]["history"] = torch.from_numpy(history.copy()).double()
    losses = np.array(list(net.train(range(state.iter, 20))))
    assert losses == pytest.approx(RECORD["resumed_losses"][:, :, [0, 4]], abs=5e-6)
    net.check_weights(recorded("resumed_w"))


def test_clipping_measures_and_scales_only_the_owners_gradients():
    net = Net(clip_gradients=2.5)
    for _ in net.train(range(20)):
        pass
    net.check_weights(recorded("clip2.5_w"))
