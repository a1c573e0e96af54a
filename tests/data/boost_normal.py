"""Reference implementation of boost 1.74's normal_distribution<float>: in double, rounded wherever boost has a float.

The product or sum of two float32 values, computed in double and rounded, equals the float32 result.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np

BLOCK = 2**20
LONGEST_DRAW = 1000
"""Upper bound on the words of one draw; a draw from the tail takes two or three on average."""


def rounded(value: float) -> float:
    return float(np.float32(value))


def table(first: float, second: float, strips: int, density, inverse) -> tuple[list[float], list[float]]:
    """Edges of strips of equal area under a density, and the density at the edges."""
    edges = [first, second]
    while len(edges) < strips:
        edges.append(inverse(first * density(second) / edges[-1] + density(edges[-1])))
    edges.append(0.0)
    return edges, [density(edge) for edge in edges]


X, Y = table(
    *(3.7130862467403633, 3.4426198558966521, 128),
    density=lambda x: math.exp(-x * x / 2),
    inverse=lambda y: math.sqrt(-2 * math.log(y)),
)
TAIL_X, TAIL_Y = table(
    *(8.6971174701310497, 7.6971174701310497, 256),
    density=lambda x: math.exp(-x),
    inverse=lambda y: -math.log(y),
)

LOW = [rounded(y) for y in Y]
RISE = [rounded(above - below) for below, above in itertools.pairwise(Y)]
RISE_IN_FLOAT32 = [rounded(above - below) for below, above in itertools.pairwise(LOW)]


class BoostNormal:
    """Boost's values drawn from mt19937(seed), with counts of the decisions that float32 tables would change.

    Attributes:
        decided_by_edge: number of tries with x between a strip's edge in double and in float32.
        decided_by_rise: number of tries for which the rounding of the strip's rise decides.
    """

    def __init__(self, seed: int) -> None:
        self._engine = np.random.MT19937()
        self._engine._legacy_seeding(seed)
        self.decided_by_edge = self.decided_by_rise = 0

    def blocks(self) -> Iterator[np.ndarray]:
        """The values in order, block by block of words: float32 values in float64 arrays."""
        edge, edge_in_float32 = np.array(X), np.array(X, np.float32).astype(float)
        words = np.zeros(0, np.uint64)
        while True:
            words = np.concatenate([words, self._engine.random_raw(BLOCK)])
            end = len(words) - LONGEST_DRAW
            strip = (words >> np.uint64(1) & np.uint64(127)).astype(int)
            x = ((words >> np.uint64(8)) / 2**24 * edge_in_float32[strip]).astype(np.float32).astype(float)
            inside = x < edge[strip + 1]
            is_try, is_value = np.ones(len(words), bool), inside.copy()
            by_edge = inside != (x < edge_in_float32[strip + 1])

            self._words, self._position = words.tolist(), 0
            for place in np.flatnonzero(~inside[:end]).tolist():
                if place < self._position:
                    continue  # a word of the previous try
                self._position = place + 1
                if strip[place] == 0:
                    is_value[place], x[place] = True, self._beyond(X[1])
                else:
                    is_value[place] = self._is_under_curve(int(strip[place]), float(x[place]))
                is_try[place + 1 : self._position] = False

            used = max(end, self._position)
            is_try[used:] = False
            self.decided_by_edge += np.count_nonzero(by_edge & is_try)
            yield np.where(words & np.uint64(1), x, -x)[is_value & is_try]
            words = words[used:]

    def _word(self) -> int:
        self._position += 1
        return self._words[self._position - 1]

    def _uniform(self) -> float:
        while (uniform := rounded(self._word()) / 2**32) == 1:
            pass
        return uniform

    def _is_under_curve(self, strip: int, x: float) -> bool:
        uniform, curve = self._uniform(), rounded(math.exp(-rounded(x * x) / 2))
        height = rounded(LOW[strip] + rounded(uniform * RISE[strip]))
        height_in_float32 = rounded(LOW[strip] + rounded(uniform * RISE_IN_FLOAT32[strip]))
        self.decided_by_rise += (height < curve) != (height_in_float32 < curve)
        outer = rounded(X[strip])
        depth = rounded(outer - x)
        chord = rounded(rounded(uniform * rounded(X[strip] - X[strip + 1])) - depth)
        tangent = rounded(height - rounded(LOW[strip] + rounded(rounded(depth * LOW[strip]) * outer)))
        lower, upper = (tangent, chord) if X[strip] >= 1 else (chord, tangent)
        return upper < 0 and (lower < 0 or height < curve)

    def _beyond(self, start: float) -> float:
        while True:
            x = rounded(self._exponential() / rounded(start))
            y = self._exponential()
            if 2 * y > rounded(x * x):
                return rounded(rounded(start) + x)

    def _exponential(self) -> float:
        shift = 0.0
        while True:
            word = self._word()
            strip = word & 255
            x = rounded((word >> 8) / 2**24 * rounded(TAIL_X[strip]))
            if x < rounded(TAIL_X[strip + 1]):
                return rounded(shift + x)
            if strip == 0:
                shift = rounded(shift + rounded(TAIL_X[1]))
                continue
            rise = rounded(self._uniform() * rounded(TAIL_Y[strip + 1] - TAIL_Y[strip]))
            if rounded(rounded(TAIL_Y[strip]) + rise) < rounded(math.exp(-x)):
                return rounded(shift + x)
