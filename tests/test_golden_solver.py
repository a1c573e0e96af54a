"""20 updates of a small smooth net, weight by weight and history by history, against the authors' Caffe.

Layers c1 and c1_res05 share their data but have multipliers of their own, so each is a parameter here and their updates
are added, as Caffe does it. s1 and s2 share everything: one parameter with `branches` 2, as the nets do it. The weight
of `solo` has lr_mult 0. All in float64: then what is left is Caffe's float32 rounding.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.losses import softmax_with_loss
from a2s_repro.solver import CaffeSGD, LearningRate
from caffe_weights import read_caffemodel

FOLDER = Path(__file__).parent / "golden" / "sgd"
RECORD = dict(np.load(FOLDER / "sgd.npz"))

# Layer by layer: weight's and bias's lr_mult, decay_mult and branches.
RULES = {
    "c1": ((1, 1, 1), (2, 0, 1)),
    "c1_res05": ((0.5, 2, 1), (1, 1, 1)),
    "s1": ((10, 1, 2), (20, 0, 2)),
    "solo": ((0, 1, 1), (3, 0.5, 1)),
}


class Net:
    """The recorded net, its solver, and the images in their order."""

    def __init__(self) -> None:
        layers = {layer.name: layer.blobs for layer in read_caffemodel(FOLDER / "init.caffemodel").layers}
        self.parameters = {
            f"{name}/{i}": nn.Parameter(torch.from_numpy(layers[name][i].copy()).double())
            for name in RULES
            for i in (0, 1)
        }
        groups = [
            {"params": [self.parameters[f"{name}/{i}"]], "lr_mult": lr, "decay_mult": decay, "branches": branches}
            for name, rules in RULES.items()
            for i, (lr, decay, branches) in enumerate(rules)
        ]
        self.solver = CaffeSGD(groups, momentum=0.9, weight_decay=0.05, iter_size=2)
        self.rate = LearningRate(0.02, "step", gamma=0.1, stepsize=8)

    def losses(self, images: np.ndarray, labels: np.ndarray) -> list[Tensor]:
        mean = np.array([104.008, 116.669, 122.675], np.float32)
        data = torch.from_numpy(images.astype(np.float32) - mean).permute(0, 3, 1, 2).double() * np.float32(0.02)
        labels = torch.from_numpy(labels)
        p = self.parameters
        c1 = F.conv2d(data, p["c1/0"], p["c1/1"], padding=1)
        half = F.conv2d(ops.interp(data, (9, 9)), p["c1_res05/0"], p["c1_res05/1"], padding=1)
        s1 = F.conv2d(c1, p["s1/0"], p["s1/1"])
        s2 = F.conv2d(ops.interp(half, (17, 17)), p["s1/0"], p["s1/1"])
        solo = F.conv2d(data, p["solo/0"], p["solo/1"], padding=1)
        return [softmax_with_loss(s1 + 0.5 * s2 + solo, labels), softmax_with_loss(s1, labels)]

    def train(self, iterations: range):
        """Yields the losses (2, 2) of each iteration, after its update; the data starts at image 0."""
        for step, iteration in enumerate(iterations):
            self.solver.zero_grad()
            passes = []
            for half in (0, 1):
                first = (2 * step + half) * 2 % len(RECORD["labels"])
                losses = self.losses(RECORD["images_bgr"][first : first + 2], RECORD["labels"][first : first + 2])
                sum(losses).backward()
                passes.append([loss.item() for loss in losses])
            before = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
            self.solver.set_lr(self.rate(iteration))
            self.solver.step()
            for i in (0, 1):
                owner, copy = self.parameters[f"c1/{i}"].data, self.parameters[f"c1_res05/{i}"].data
                owner += copy - before[f"c1_res05/{i}"]
                copy.copy_(owner)
            yield np.array(passes)

    def history(self, name: str) -> Tensor:
        return self.solver.state[self.parameters[name]]["history"]


def recorded_history(name: str, iteration: int) -> np.ndarray:
    layer, index = name.split("/")
    copies = {"s1": ("s1", "s2")}.get(layer, (layer,))
    return sum(RECORD[f"hist|{copy}/{index}"][iteration] for copy in copies)


def relative_l2(ours: Tensor, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours.detach().numpy() - theirs) / np.linalg.norm(theirs))


def test_every_update_gives_the_recorded_weights_and_histories():
    net = Net()
    for iteration, losses in enumerate(net.train(range(20))):
        assert losses == pytest.approx(RECORD["losses"][iteration][:, [0, 4]], abs=5e-6)
        for name, parameter in net.parameters.items():
            owner = name.replace("c1_res05", "c1")
            assert relative_l2(parameter, RECORD[f"w|{owner}"][iteration]) < 2e-6, (name, iteration)
            if name == "solo/0":
                assert parameter not in net.solver.state and parameter.grad is None
            else:
                assert relative_l2(net.history(name), recorded_history(name, iteration)) < 2e-6, (name, iteration)


def test_resuming_continues_the_history_and_the_schedule():
    """The recorded run was restored after iteration 10; its data layer then starts again at image 0."""
    first, resumed = Net(), Net()
    for _ in first.train(range(10)):
        pass
    for name, parameter in first.parameters.items():
        resumed.parameters[name].data.copy_(parameter)
    resumed.solver.load_state_dict(first.solver.state_dict())
    losses = np.array(list(resumed.train(range(10, 20))))
    assert losses == pytest.approx(RECORD["resumed_losses"][:, :, [0, 4]], abs=5e-6)
    for name, parameter in resumed.parameters.items():
        assert relative_l2(parameter, RECORD[f"resumed_w|{name.replace('c1_res05', 'c1')}"]) < 2e-6, name
