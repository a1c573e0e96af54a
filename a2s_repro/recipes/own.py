"""Settings for a data set of one's own: the paper's best net, with a schedule that fits the length of the list."""

from a2s_repro.recipes.a2s import SCALES
from a2s_repro.recipes.recipe import Recipe

NAME = "own"
TIMES = 50
"""Number of times that a training shows its list."""
FEWEST, MOST = 500, 15000
"""Bounds on the iterations: a new head needs some hundreds, and 15000 x 12 images are as many as the paper's schedule
shows (6000 x 30)."""


def own_recipe(images: int) -> Recipe:
    """A share-net with attention over three scales, without extra supervision, for a list of `images` images.

    An iteration sees 12 images, in passes of as many as the authors' nets with attention; the rate drops twice, as in
    their schedules.
    """
    iterations = min(max(TIMES * images // 12, FEWEST), MOST)
    return Recipe(
        NAME,
        dataset="",
        num_classes=2,
        classifier="fc8",
        scales=SCALES["3"],
        merge="attention",
        batch_size=3,
        iter_size=4,
        max_iter=iterations,
        stepsize=-(-iterations // 3),
        snapshot=500,
    )
