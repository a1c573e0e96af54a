"""A thin VGG-16 trained to classify drawn shapes, from which the demo starts as the papers start from ImageNet's."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from a2s_repro.caffe.conversion import from_caffe, random_init, to_caffe
from a2s_repro.caffe.layers import TRUNK
from a2s_repro.checkpoint.weights import Weights
from a2s_repro.data.demo import CLASSES, draw_single
from a2s_repro.data.normalization import NORMALIZATIONS
from a2s_repro.errors import InputError
from a2s_repro.models import DeepLabLargeFOV, Widths
from a2s_repro.runtime.progress import Progress
from caffe_weights import CaffeNet

CLASSIFIER = "fc8_shapes"
"""Caffe's name of the classifier. It differs from that of any data set, so that nets start without this layer."""
SIDE = 65
"""Side of the pictures, in pixels."""
RADII = (8.0, 30.0)
"""Range of the objects' radii, in pixels. As in ImageNet, an object fills a good part of its picture."""
BATCH_SIZE = 32
RATE = 1e-3
WARM_UP = 200
"""Iterations over which the learning rate rises to RATE. It then falls to 0 along a cosine."""
TEST_BATCHES = 32
FC7 = 1.0
"""Root mean square of fc7's features in the file: of order 1, as in VGG-16."""


def train_classifier(widths: Widths, max_iter: int, seed: int) -> tuple[CaffeNet, float]:
    """A VGG-16 of these widths, trained on drawn pictures of one object each, and its accuracy on other pictures.

    The net is DeepLab-LargeFOV's, with layers conv1_1 .. fc7 and `fc8_shapes`; a class's score is the mean of its score
    map. Weights start at random (`random_init`) and learn by AdamW and cross-entropy. No picture is seen twice.

    Raises InputError for fewer than 1 iteration or a negative seed.
    """
    if max_iter < 1 or seed < 0:
        raise InputError("Training a classifier needs at least 1 iteration and a seed of at least 0.")
    torch.manual_seed(seed)
    net = _initial(widths, seed)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * k / max_iter))
    )
    losses = []
    with Progress(title="training", unit="iteration", total=max_iter) as progress:
        for k in range(max_iter):
            images, labels = _batch(seed, k)
            loss = F.cross_entropy(_scores(net, images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.update()
            if k % 50 == 49:
                progress.show(f"loss {np.mean(losses[-50:]):.3f}")
    test = [_batch(seed, max_iter + number) for number in range(TEST_BATCHES)]
    with torch.no_grad():
        _scale(net, FC7 / _size_of_fc7(net, test[0][0]))
        right = [_scores(net, images).argmax(1) == labels for images, labels in test]
    weights = Weights(net.state_dict(), {"model": net.config(), "classifier": CLASSIFIER})
    return to_caffe(weights), float(torch.cat(right).float().mean())


def _initial(widths: Widths, seed: int) -> DeepLabLargeFOV:
    """The net with random weights. fc6's outer taps are 0: 12 cells away, they lie outside these pictures."""
    net = DeepLabLargeFOV(len(CLASSES), dropout=0, widths=widths)
    net.load_state_dict(from_caffe(random_init(widths, seed), "random weights").weights.state_dict, strict=False)
    with torch.no_grad():
        centre = 3 * net.fc6.weight[:, :, 1, 1]  # the fan-in is a ninth of the filler's
        net.fc6.weight.zero_()
        net.fc6.weight[:, :, 1, 1] = centre
    return net.to(memory_format=torch.channels_last).train()


def _size_of_fc7(net: DeepLabLargeFOV, images: Tensor) -> float:
    """Root mean square of fc7's features."""
    return net.stream(images).features["fc7"].square().mean().sqrt().item()


def _scale(net: DeepLabLargeFOV, factor: float) -> None:
    """Multiplies fc7's features by `factor`, a 15th part of it (as a power) in each layer, and fc8's weights by its
    inverse."""
    for number, layer in enumerate(TRUNK, 1):
        net.get_submodule(layer).weight *= factor ** (1 / len(TRUNK))
        net.get_submodule(layer).bias *= factor ** (number / len(TRUNK))
    net.fc8.weight /= factor


def _scores(net: DeepLabLargeFOV, images: Tensor) -> Tensor:
    """(N, C) scores of the classes."""
    return net(images).scores.mean((2, 3))


def _batch(seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Batch `number` of the stream of a seed: images (N, 3, SIDE, SIDE) and labels (N,)."""
    drawn = [draw_single(np.random.default_rng((seed, number, index)), SIDE, RADII) for index in range(BATCH_SIZE)]
    pixels = torch.from_numpy(np.stack([picture[..., ::-1] for picture, _ in drawn]))
    return NORMALIZATIONS["caffe"].of_batch(pixels), torch.tensor([label for _, label in drawn])
