"""Caffe's random numbers for a training run: the same seed gives the same draws as Caffe's CPU build."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from a2s_repro.data.caffe_rng import GAUSSIANS, MAX_WORD, CaffeStream, WordStream, dropout_mask
from a2s_repro.errors import check_known
from a2s_repro.models import DeepLab, build_model
from a2s_repro.models.layers import Masks, take_masks_from


class CaffeStreams:
    """The draws of a net and its data layer from Caffe's global generator, in Caffe's order.

    At construction of the net: one word for a transformer that is never used, one to seed the shuffling, one to seed
    the transformer of batch 0; then the gaussian fillers in the order of the layers, stream after stream. Sharing
    copies and frozen layers draw, too; the copies' values are discarded. In every forward pass: one word to seed the
    transformer of the next batch, then the dropout masks.

    Args:
        model: its new layers are filled here.
        num_items: length of the training list.
        batch_size: images per forward pass.
        crop: side of the images in pixels.
        seed: Caffe's random_seed, 0 to 2^32 - 1.
        filler: "ziggurat" for boost 1.56 and later (used by the recordings), or "box-muller" for earlier versions.

    Raises:
        InputError: an invalid seed, an unknown filler, or a crop that does not fit the net's grids.
    """

    def __init__(
        self, model: DeepLab, num_items: int, batch_size: int, crop: int, seed: int, filler: str = "ziggurat"
    ) -> None:
        check_known("filler", filler, GAUSSIANS)
        self.num_items, self.batch_size = num_items, batch_size
        self.words_per_pass = 1 + _dropout_elements(model, batch_size, crop)
        self.passes = 0
        """Number of forward passes begun."""
        self.words = WordStream(seed)
        self.words.skip(1)
        self.shuffle_seed, self.transformer_seed = self.words.word(), self.words.word()
        self._fill(model, filler)

    def next_pass(self) -> Masks:
        """Goes past the words of the next forward pass; returns the masks that its dropout layers draw."""
        self.transformer_seed = self.words.word()
        self.passes += 1
        words = self.words.copy()
        self.words.skip(self.words_per_pass - 1)
        return lambda shape, ratio: torch.from_numpy(dropout_mask(words, shape, ratio))

    def data(self) -> CaffeStream:
        """The draws of the batches from number `passes`; they can be drawn ahead of the passes."""
        seeds = _transformer_seeds(self.transformer_seed, self.words.copy(), self.words_per_pass)
        return CaffeStream(self.num_items, self.batch_size, self.shuffle_seed, seeds, self.passes)

    def state(self) -> dict[str, Any]:
        """The position between two passes, as plain values."""
        return {"passes": self.passes, "transformer_seed": self.transformer_seed, "words": self.words.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Returns to a position saved by `state` in a run with the same arguments.

        Raises ValueError, TypeError or KeyError for values that `state` does not give.
        """
        passes, seed = operator.index(state["passes"]), operator.index(state["transformer_seed"])
        if passes < 0 or not 0 <= seed <= MAX_WORD:
            raise ValueError(f"no position is {passes} passes with the seed {seed}")
        self.words.restore(state["words"])
        self.passes, self.transformer_seed = passes, seed

    @torch.no_grad()
    def _fill(self, model: DeepLab, filler: str) -> None:
        shared = [layer for layer in model.new_layers if layer not in model.unshared_layers]
        alone = [layer for layer in model.new_layers if layer in model.unshared_layers]
        filled = set()
        for layer in shared * len(model.scales) + alone:
            weight = model.layer(layer).weight
            values = GAUSSIANS[filler](self.words, weight.numel(), model.new_layers[layer])
            if layer not in filled:
                weight.copy_(torch.from_numpy(values).view(weight.shape))
                filled.add(layer)


def _transformer_seeds(upcoming: int, words: WordStream, words_per_pass: int) -> Iterator[int]:
    """The seed of the upcoming batch, then the first words of the following passes."""
    yield upcoming
    while True:
        yield words.word()
        words.skip(words_per_pass - 1)


def _dropout_elements(model: DeepLab, batch_size: int, crop: int) -> int:
    """Number of elements that pass dropout layers in a forward pass, computed on the meta device."""
    total = 0

    def count(shape: torch.Size, _: float) -> Tensor:
        nonlocal total
        total += shape.numel()
        return torch.empty(shape, dtype=torch.bool, device="meta")

    with torch.device("meta"), torch.no_grad():
        shapes = build_model(model.config())
        take_masks_from(shapes, count)
        shapes(torch.empty(batch_size, 3, crop, crop))
    return total
