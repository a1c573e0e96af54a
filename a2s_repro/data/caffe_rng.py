"""The random numbers of Caffe's CPU build: 32-bit words of mt19937 and the layers' distributions over them.

The distributions are boost 1.74's unless stated otherwise. They are implemented from their definitions and tested
against recorded draws. `a2s_repro.caffe.streams` draws them in the order of a training net.
"""

import copy
import itertools
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from a2s_repro.data.image_seg import Draw
from a2s_repro.errors import InputError

MAX_WORD = 2**32 - 1


class WordStream:
    """mt19937 seeded as in boost, by init_genrand: RandomState does the same, numpy's Generator does not."""

    def __init__(self, seed: int) -> None:
        if not 0 <= seed <= MAX_WORD:
            raise InputError(f"seed {seed} is not possible with Caffe's streams: it must be from 0 to {MAX_WORD}.")
        self._bits = np.random.MT19937()
        self._random = np.random.RandomState(self._bits)
        self._random.seed(seed)

    def words(self, count: int) -> np.ndarray:
        """The next `count` words, uint32."""
        return self._random.randint(2**32, size=count, dtype=np.uint32)

    def word(self) -> int:
        return int(self.words(1)[0])

    def skip(self, count: int) -> None:
        self._bits.random_raw(count, output=False)

    def copy(self) -> "WordStream":
        """An independent stream that continues from this position."""
        return copy.deepcopy(self)

    def state(self) -> dict[str, Any]:
        """The position in the stream, as plain values."""
        state = self._bits.state["state"]
        return {"key": state["key"].tolist(), "pos": state["pos"]}

    def restore(self, state: dict[str, Any]) -> None:
        """Returns to a position saved by `state`. Raises ValueError or TypeError for another generator's."""
        key, position = np.array(state["key"]), operator.index(state["pos"])
        if key.shape != (624,) or key.dtype.kind not in "iu" or not 0 <= position <= 624:
            raise ValueError("the generator's state has 624 words and a position among them")
        if key.min() < 0 or key.max() > MAX_WORD:
            raise ValueError("the generator's words have 32 bits")
        self._bits.state = {"bit_generator": "MT19937", "state": {"key": key.astype(np.uint32), "pos": position}}


def uniform_int(stream: WordStream, largest: int) -> int:
    """A draw from 0 .. `largest`, as boost's uniform_int: equal buckets of words; words beyond them are redrawn."""
    bucket, rest = divmod(MAX_WORD, largest + 1)
    bucket += rest == largest
    while (drawn := stream.word() // bucket) > largest:
        pass
    return drawn


def shuffle(order: np.ndarray, stream: WordStream) -> None:
    """Fisher-Yates in place, from the last entry down."""
    for i in range(len(order) - 1, 0, -1):
        j = uniform_int(stream, i)
        order[i], order[j] = order[j], order[i]


class CaffeStream:
    """Draws of Caffe's ImageSegData: the order of the list and the data transformer's words for mirror and crop.

    Batches straddle epochs. The list is shuffled in place at set-up and again after each epoch. Every batch has its own
    transformer stream, which draws three words per image: mirror, row, column.

    Args:
        num_items, batch_size: at least 1.
        shuffle_seed: seed of the stream that shuffles the list.
        transformer_seeds: seeds of batches `first`, `first` + 1, ...; consumed only as far as batches are requested.
        first: number of the earliest batch that can be requested.
    """

    def __init__(
        self, num_items: int, batch_size: int, shuffle_seed: int, transformer_seeds: Iterator[int], first: int = 0
    ) -> None:
        self.num_items, self.batch_size, self.first = num_items, batch_size, first
        self._shuffling = WordStream(shuffle_seed)
        self._orders: list[np.ndarray] = []
        self._upcoming_seeds, self._seeds = transformer_seeds, []

    def batch(self, k: int) -> list[Draw]:
        """The draws of batch k >= `first`, counted from 0."""
        missing = k - self.first + 1 - len(self._seeds)
        self._seeds.extend(itertools.islice(self._upcoming_seeds, max(missing, 0)))
        words = WordStream(self._seeds[k - self.first]).words(3 * self.batch_size).reshape(-1, 3).tolist()
        positions = range(k * self.batch_size, (k + 1) * self.batch_size)
        return [Draw(self._index(position), *image) for position, image in zip(positions, words, strict=True)]

    def order(self, epoch: int) -> np.ndarray:
        """The items' indices in the list, in the order of an epoch counted from 0."""
        while len(self._orders) <= epoch:
            order = self._orders[-1].copy() if self._orders else np.arange(self.num_items)
            shuffle(order, self._shuffling)
            self._orders.append(order)
        return self._orders[epoch]

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self.num_items)
        return int(self.order(epoch)[place])


def dropout_mask(stream: WordStream, shape: tuple[int, ...], ratio: float) -> np.ndarray:
    """The mask of the elements that a Dropout layer keeps; bool, of the given shape.

    Draws one word per element in C order, also at ratio 0; at ratio 1 it draws none. An element is kept if its word is
    at most (1 - ratio) * (2^32 - 1), computed in double from a float32 ratio.
    """
    keep = 1 - float(np.float32(ratio))
    if keep == 0:
        return np.zeros(shape, bool)
    return (stream.words(int(np.prod(shape))) <= np.uint32(int(keep * MAX_WORD))).reshape(shape)


class Strips(NamedTuple):
    """The strips of a ziggurat, float32, from the outermost to the innermost. Boost's own tables are double."""

    x: np.ndarray
    """Outer edges."""
    edge: np.ndarray
    """Inner edges: an x below its strip's inner edge is under the curve."""
    y: np.ndarray
    """Heights of the curve at the outer edges."""
    width: np.ndarray
    """Outer minus inner edges, subtracted in double and then rounded."""
    rise: np.ndarray
    """Heights at the inner minus heights at the outer edges, subtracted in double and then rounded."""


def _strips(count: int, x0: float, x1: float, density: Any, inverse: Any, round_edge: Any) -> Strips:
    """`count` strips of equal area under a density, starting from the edges x0 and x1."""
    area = x0 * density(x1)
    x = [x0, x1]
    while len(x) < count:
        x.append(inverse(area / x[-1] + density(x[-1])))
    x.append(0.0)
    edges, heights = np.array(x), np.array([density(edge) for edge in x])
    x, y, width, rise = (
        values.astype(np.float32) for values in (edges[:-1], heights[:-1], -np.diff(edges), np.diff(heights))
    )
    return Strips(x, round_edge(edges[1:]), y, width, rise)


def _rounded_up(values: np.ndarray) -> np.ndarray:
    """The smallest float32 not below each double: comparing a float32 with either gives the same result."""
    rounded = values.astype(np.float32)
    return np.where(rounded < values, np.nextafter(rounded, np.float32(np.inf)), rounded)


NORMAL = _strips(
    128,
    *(3.7130862467403633, 3.4426198558966521),
    density=lambda x: np.exp(-x * x / 2),
    inverse=lambda y: np.sqrt(-2 * np.log(y)),
    round_edge=_rounded_up,  # boost compares x, a float32, with the edge in double
)
EXPONENTIAL = _strips(
    256,
    *(8.6971174701310497, 7.6971174701310497),
    density=lambda x: np.exp(-x),
    inverse=lambda y: -np.log(y),
    round_edge=np.float32,  # boost compares x with the edge in float32
)

BLOCK = 2**20
TAIL_WORDS = 1024
"""Upper bound on the words that one draw from the tail consumes; the average is two to three."""


def ziggurat(stream: WordStream, count: int, std: float) -> np.ndarray:
    """The gaussian filler with boost 1.56 and later: `count` values (float32) of mean 0, from 128 strips.

    A word is a try: its bits give a sign, a strip and a position x in the strip. If x is inside the strip's inner edge,
    as it nearly always is, x is the value. Otherwise another word decides whether x is under the curve; the tail takes
    several words.
    """
    values = np.empty(count, np.float32)
    filled = 0
    while filled < count:
        tries = min(count - filled, BLOCK)
        drawn, used = _ziggurat(stream.copy().words(tries + TAIL_WORDS), tries)
        values[filled : filled + len(drawn)] = drawn
        filled += len(drawn)
        stream.skip(used)
    return values * np.float32(std)


def _ziggurat(words: np.ndarray, tries: int) -> tuple[np.ndarray, int]:
    """The unit values of the tries that start in the first `tries` words, and the number of words consumed.

    Every word is first treated as a try. The tries outside their inner edge are then resolved in order, because the
    extra words that they consume are not tries.
    """
    strip = words >> 1 & 127
    x = _fraction(words) * NORMAL.x[strip]
    is_value = x < NORMAL.edge[strip]
    is_value[tries:] = False
    outside = np.flatnonzero(~is_value[:tries])

    uniform = _uniform(words[outside + 1])
    under_curve = _is_normal(strip[outside], x[outside], uniform)
    in_tail, redrawn = strip[outside] == 0, uniform == 1

    next_try = 0
    for i, place in enumerate(outside.tolist()):
        if place < next_try:
            continue
        if in_tail[i]:
            is_value[place] = True
            x[place], next_try = _tail(words, place + 1)
        elif redrawn[i]:
            redraw, next_try = _next_uniform(words, place + 1)
            is_value[place] = _is_normal(strip[place], x[place], redraw)
        else:
            is_value[place], next_try = under_curve[i], place + 2
        is_value[place + 1 : next_try] = False
    signed = np.where(words & 1, x, -x)
    return signed[is_value], max(tries, next_try)


def _is_normal(strip: np.ndarray, x: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Whether the point (x, `uniform`) of a strip is under the curve; `uniform` is the height in the strip, 0 to 1.

    A point below both the chord and the tangent of the strip is under the curve, a point above both is not; only
    between the two is the density evaluated. In one try of 6e9 the rounding of chord and tangent decides.
    """
    outer, low, rise, width = (values[strip] for values in (NORMAL.x, NORMAL.y, NORMAL.rise, NORMAL.width))
    height = low + uniform * rise
    below_chord = width * uniform - (outer - x) < 0
    below_tangent = height - (low + (outer - x) * low * outer) < 0
    below_curve = height < _rounded(np.exp, -(x * x / 2))
    is_convex = outer >= 1
    below_upper = np.where(is_convex, below_chord, below_tangent)
    below_lower = np.where(is_convex, below_tangent, below_chord)
    return below_upper & (below_lower | below_curve)


def _tail(words: np.ndarray, place: int) -> tuple[np.float32, int]:
    """A value beyond the outermost strip from the words at `place`, and the place of the next unused word."""
    start = NORMAL.x[1]
    while True:
        beyond, place = _exponential(words, place)
        other, place = _exponential(words, place)
        beyond = beyond / start
        if other + other > beyond * beyond:
            return start + beyond, place


def _exponential(words: np.ndarray, place: int) -> tuple[np.float32, int]:
    """An exponential variate, from a ziggurat of 256 strips whose tail is the whole curve again."""
    shift = np.float32(0)
    while True:
        strip = int(words[place]) & 255
        x = _fraction(words[place]) * EXPONENTIAL.x[strip]
        place += 1
        if x < EXPONENTIAL.edge[strip]:
            return shift + x, place
        if strip == 0:
            shift += EXPONENTIAL.x[1]
            continue
        uniform, place = _next_uniform(words, place)
        if EXPONENTIAL.y[strip] + uniform * EXPONENTIAL.rise[strip] < _rounded(np.exp, -x):
            return shift + x, place


def _next_uniform(words: np.ndarray, place: int) -> tuple[np.float32, int]:
    """The uniform number at `place`, redrawn if it rounds to 1, and the place of the next unused word."""
    while (uniform := _uniform(words[place])) == 1:
        place += 1
    return uniform, place + 1


def _fraction(words: np.ndarray) -> np.ndarray:
    """The upper 24 bits as a float32 in [0, 1)."""
    return (words >> 8).astype(np.float32) * np.float32(2**-24)


def _uniform(words: np.ndarray) -> np.ndarray:
    """All 32 bits as a float32 in [0, 1]: the largest words round to 1."""
    return words.astype(np.float32) * np.float32(2**-32)


def _rounded(function: np.ufunc, x: np.ndarray) -> np.ndarray:
    """A function of float32 in double, rounded once, as the C library's float functions nearly always are.

    NumPy's own float32 functions are further off.
    """
    return function(x.astype(np.float64)).astype(np.float32)


def box_muller(stream: WordStream, count: int, std: float) -> np.ndarray:
    """The gaussian filler with boost 1.55 and earlier: `count` values (float32) of mean 0.

    Two uniform numbers r1 and r2 give the pair rho cos(2 pi r1), rho sin(2 pi r1) with rho = sqrt(-2 ln(1 - r2)),
    float32 throughout. Not verified against a recording: 1.5 % of the values differ from the same formula with glibc's
    float functions, by one or two units in the last place.
    """
    wanted = count + count % 2
    uniform = np.empty(0, np.float32)
    while len(uniform) < wanted:
        drawn = _uniform(stream.words(wanted - len(uniform)))
        uniform = np.concatenate([uniform, drawn[drawn < 1]])
    r1, r2 = uniform[0::2], uniform[1::2]
    rho = np.sqrt(np.float32(-2) * _rounded(np.log, 1 - r2))
    angle = np.float32(2 * np.pi) * r1
    values = np.stack([rho * _rounded(np.cos, angle), rho * _rounded(np.sin, angle)], axis=1).ravel()
    return values[:count] * np.float32(std)


GAUSSIANS = {"ziggurat": ziggurat, "box-muller": box_muller}
"""The gaussian fillers by name; the first is verified against recordings."""
