"""A recipe: the net, the schedule, the data and the start of one published experiment, with its numbers."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from a2s_repro.errors import InputError
from a2s_repro.models import AttentionHead, DeepLab, DeepLabLargeFOV, DeepLabMSc, ShareNet, Widths
from a2s_repro.recipes.published import Published
from a2s_repro.solver import CaffeSGD, LearningRate, parameter_groups

IMAGENET = "imagenet"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One experiment. The defaults are what the authors' PASCAL VOC 2012 experiments have in common."""

    name: str
    published: tuple[Published, ...] = ()
    """What the paper reports for it; nothing once anything was changed."""
    ours: tuple[str, ...] = ()
    """Fields in which the authors' choice is not known, so that the value is ours."""

    dataset: str = "voc12"
    """The data set's folder in a folder of data sets."""
    training_set: str = "list/train_aug.txt"
    """List file, relative to the data root."""
    evaluation_set: str = "list/val.txt"
    """List file that the published numbers are of, relative to the data root."""
    hidden_labels: bool = False
    """Whether the labels of the evaluation set are known to VOC's evaluation server alone."""
    num_classes: int = 21
    """Outputs of the net; COCO's are the category ids, some of which no category has."""
    classifier: str = "fc8_voc12"
    """The Caffe name of layer fc8. Weights come from a file by name, so another data set's classifier is not taken."""
    init: str = IMAGENET
    """Where the weights come from: "imagenet", VGG-16 with fc6 and fc7 of 1024 channels, or the recipe of that name."""

    scales: tuple[float, ...] = (1,)
    merge: str | None = None
    extra_supervision: bool = False
    skip_net: bool = False
    """Whether the net of each scale is DeepLab-MSc-LargeFOV, of which only the side branches learn."""
    head: AttentionHead = dataclasses.field(default_factory=AttentionHead)
    att_conv1: int = 512
    """Filters of the attention head's first layer, before `width`."""
    pool5a: bool = False
    dropout: float = 0.5
    width: float = 1

    crop: int = 321
    scale_augmentation: tuple[float, float] | None = None
    """Range of the random factors by which training images are resized before they are cropped."""
    test_crop: int = 513
    crf: dict[str, float] | None = None
    """Parameters of the dense CRF that refines the scores, if one does: weight and standard deviations (position in
    pixels, colour in 8-bit steps) of the bilateral kernel."""

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
        """The recipe with other values; what is changed no longer carries the published numbers.

        Another number of classes is another data set: its classifier is plainly `fc8` unless named.
        Raises InputError for a field that recipes do not have, with the nearest that they have.
        """
        for name in fields:
            if name not in FIELDS:
                raise InputError(f"recipes have no field '{name}'; the nearest are {nearest(name, FIELDS)}.")
        if "scales" in fields:
            fields["scales"] = tuple(fields["scales"])
        if fields.get("num_classes", self.num_classes) != self.num_classes:
            fields.setdefault("classifier", "fc8")
        fields = {name: value for name, value in fields.items() if value != getattr(self, name)}
        if not fields:
            return self
        return dataclasses.replace(self, **{"published": (), **fields})

    def net(self) -> DeepLab:
        """The net with its fillers' weights; its trunk is zero until a file is loaded."""
        widths = dataclasses.replace(Widths(), att_conv1=self.att_conv1).scaled(self.width)
        settings = {"pool5a": self.pool5a, "dropout": self.dropout, "widths": widths}
        if len(self.scales) == 1:
            return (DeepLabMSc if self.skip_net else DeepLabLargeFOV)(self.num_classes, **settings)
        settings |= {"skip_net": self.skip_net, "head": self.head}
        return ShareNet(self.num_classes, self.scales, self.merge, **settings)

    def solver(self, net: DeepLab) -> CaffeSGD:
        """The solver of a net of this recipe, with a slot for each of its copies if it has any."""
        groups = parameter_groups(net, self.shared_decay, self.lr_mult)
        return CaffeSGD(groups, momentum=self.momentum, weight_decay=self.weight_decay, iter_size=self.iter_size)

    def learning_rate(self) -> LearningRate:
        return LearningRate(
            self.base_lr, self.lr_policy, self.gamma, self.stepsize, power=self.power, max_iter=self.max_iter
        )

    def command(self, data_root: str = "data", init: str = "init.pth", out: str = "runs") -> str:
        """The command that trains it.

        data_root: a folder with a folder per data set. init: the ImageNet weights. out: the folder of all runs.
        """
        start = init if self.init == IMAGENET else f"{out}/{self.init}/final.pth"
        files = ("--data-root", f"{data_root}/{self.dataset}", "--init", start, "--out", f"{out}/{self.name}")
        return shlex.join(("python", "tools/train_voc.py", "--recipe", self.name, *files))

    def description(self) -> str:
        """Its numbers, every setting and its command, in lines to read."""
        lines = [f"{table}: {metric} {value}" for table, metric, value in self.published]
        for name, value in self.config().items():
            if name not in ("name", "published", "ours"):
                lines.append(f"{name:<19} {value}{'   (ours)' if name in self.ours else ''}")
        return "\n".join((self.name, *lines, self.command()))

    def config(self) -> dict[str, Any]:
        """Every field as a plain value."""
        return dataclasses.asdict(self) | {
            "published": [list(number) for number in self.published],
            **{name: list(getattr(self, name)) for name in ("ours", "scales")},
            "scale_augmentation": self.scale_augmentation and list(self.scale_augmentation),
        }

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Recipe":
        """The recipe of such values; other keys are left aside, and fields that lack have their defaults."""
        values = {name: config[name] for name in FIELDS if name in config}
        for name, kind in _OF_PLAIN.items():
            if values.get(name) is not None:
                values[name] = kind(values[name])
        return cls(**{"name": "", **values})


FIELDS = tuple(field.name for field in dataclasses.fields(Recipe))
_OF_PLAIN = {
    "published": lambda numbers: tuple(Published(*number) for number in numbers),
    "head": lambda fields: AttentionHead(**fields),
    **dict.fromkeys(("ours", "scales", "scale_augmentation"), tuple),
}
"""How fields that `config` flattens are made again."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that are most like `name`, or all of them where none is, for an error's sentence."""
    return ", ".join(get_close_matches(name, known, n=3, cutoff=0.3) or known)
