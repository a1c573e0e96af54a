"""A recipe per table cell: the net, the schedule and the crop of one published experiment, with its number."""

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from a2s_repro.errors import InputError
from a2s_repro.models import DeepLabLargeFOV, ShareNet, Widths
from a2s_repro.solver import CaffeSGD, LearningRate, parameter_groups


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One experiment. The defaults are what the authors' PASCAL VOC 2012 experiments have in common."""

    name: str
    published_miou: float | None = None
    """Mean IoU in per cent on the validation list, as published; None once anything was changed."""

    num_classes: int = 21
    classifier: str = "fc8_voc12"
    """The Caffe name of layer fc8. Weights come from a file by name, so another data set's classifier is not taken."""
    training_set: str = "list/train_aug.txt"
    """List file, relative to the data root."""

    scales: tuple[float, ...] = (1,)
    merge: str | None = None
    extra_supervision: bool = False
    pool5a: bool = False
    dropout: float = 0.5
    width: float = 1

    crop: int = 321
    test_crop: int = 513
    batch_size: int = 3
    iter_size: int = 10

    base_lr: float = 1e-3
    lr_policy: str = "step"
    gamma: float = 0.1
    stepsize: int = 2000
    power: float = 0.9
    max_iter: int = 6000
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shared_decay: str = "per_branch"
    lr_mult: dict[str, float] = dataclasses.field(default_factory=dict)
    """Multipliers of layers that differ from the net's own rule."""
    average_loss: int = 10
    """Iterations over which the displayed losses are averaged."""
    display: int = 10
    snapshot: int = 2000

    def __post_init__(self) -> None:
        for name in ("batch_size", "iter_size", "max_iter", "average_loss", "display", "snapshot", "crop", "test_crop"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if len(self.scales) == 1 and tuple(self.scales) != (1,):
            raise InputError(f"the only scale is {self.scales[0]:g}; a net of one scale takes the image at scale 1.")
        if self.extra_supervision and len(self.scales) == 1:
            raise InputError("extra supervision takes two or more scales: give --no-extra-supervision for one.")

    def changed(self, **fields: Any) -> "Recipe":
        """The recipe with other values; what is changed no longer carries the published number.

        Another number of classes is another data set, whose classifier is plainly `fc8` unless named.
        """
        if "scales" in fields:
            fields["scales"] = tuple(fields["scales"])
        if fields.get("num_classes", self.num_classes) != self.num_classes:
            fields.setdefault("classifier", "fc8")
        fields = {name: value for name, value in fields.items() if value != getattr(self, name)}
        if not fields:
            return self
        return dataclasses.replace(self, published_miou=None, **fields)

    def net(self) -> DeepLabLargeFOV:
        """The net with its fillers' weights; its trunk is zero until a file is loaded."""
        settings = {"pool5a": self.pool5a, "dropout": self.dropout, "widths": Widths().scaled(self.width)}
        if len(self.scales) == 1:
            return DeepLabLargeFOV(self.num_classes, **settings)
        return ShareNet(self.num_classes, self.scales, self.merge, **settings)

    def solver(self, net: DeepLabLargeFOV) -> CaffeSGD:
        """The solver of a net of this recipe, with a slot for each of its copies if it has any."""
        groups = parameter_groups(net, self.shared_decay, self.lr_mult)
        return CaffeSGD(groups, momentum=self.momentum, weight_decay=self.weight_decay, iter_size=self.iter_size)

    def learning_rate(self) -> LearningRate:
        return LearningRate(
            self.base_lr, self.lr_policy, self.gamma, self.stepsize, power=self.power, max_iter=self.max_iter
        )

    def config(self) -> dict[str, Any]:
        """Every field as a plain value."""
        return dataclasses.asdict(self) | {"scales": list(self.scales)}

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Recipe":
        """The recipe of such values; other keys are left aside, and fields that lack have their defaults."""
        values = {field.name: config[field.name] for field in dataclasses.fields(cls) if field.name in config}
        return cls(**{"name": "", **values, "scales": tuple(config["scales"])})


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises InputError with the nearest names for one that does not exist."""
    if name not in RECIPES:
        nearest = get_close_matches(name, RECIPES, n=3, cutoff=0.3) or RECIPES
        raise InputError(f"there is no recipe '{name}'; the nearest are {', '.join(nearest)}.")
    return RECIPES[name]


def _voc12() -> list[Recipe]:
    """Table 3: PASCAL VOC 2012 val after training on train_aug from ImageNet weights.

    Attention trains on 10 batches of 3 images an update, average and max on 3 of 10, which normalises their losses
    differently. The folder of the authors' experiments is vgg128_noup_pool3_20M_largewin*; their net for average2_esupv
    (attention9_2) trains the classifier at the trunk's rate.
    """
    scales = {"2": (1, 0.5), "3": (1, 0.75, 0.5)}
    published = {
        "max2": (64.81, 67.43),
        "average2": (64.86, 67.79),
        "attention2": (65.27, 68.24),
        "max3": (65.15, 67.79),
        "average3": (63.92, 67.98),
        "attention3": (64.37, 69.08),
    }
    recipes = [Recipe("voc12/largefov", 62.28, batch_size=15, iter_size=2)]
    for name, numbers in published.items():
        merge = name[:-1]
        batches = {"batch_size": 3, "iter_size": 10} if merge == "attention" else {"batch_size": 10, "iter_size": 3}
        for suffix, number in zip(("", "_esupv"), numbers, strict=True):
            recipes.append(
                Recipe(
                    f"voc12/{name}{suffix}",
                    number,
                    scales=scales[name[-1]],
                    merge=merge,
                    extra_supervision=bool(suffix),
                    lr_mult={"fc8": 1} if name + suffix == "average2_esupv" else {},
                    **batches,
                )
            )
    return recipes


RECIPES = {recipe.name: recipe for recipe in _voc12()}
"""All recipes by name."""
