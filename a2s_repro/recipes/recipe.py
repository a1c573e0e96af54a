"""A recipe: net, schedule, data and initial weights of one published experiment, with its published numbers."""

import dataclasses
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from a2s_repro.errors import InputError, check_known, first_line, nearest
from a2s_repro.inference.crf import CRF
from a2s_repro.models import (
    AttentionHead,
    BackboneNet,
    DeepLabASPP,
    DeepLabLargeFOV,
    DeepLabMSc,
    DeepLabResNet101,
    Net,
    RefineHead,
    ResNetDilated8,
    ShareNet,
    Widths,
    build_head,
)
from a2s_repro.models.cost import Cost, cost
from a2s_repro.models.named_backbone import PACKAGES, is_named
from a2s_repro.recipes.published import Published
from a2s_repro.solver import FORMER_NAMES, SOLVERS, CaffeSGD, LearningRate, TorchSGD, parameter_groups

IMAGENET = "imagenet"
RESNET34 = "resnet34"
RESNET101 = "resnet101"
PRETRAINED = {IMAGENET: "init.pth", RESNET34: "resnet34.pth", RESNET101: "resnet101.pth"}
"""Initial weights that no recipe trains, and their default files: VGG-16 with fc6 and fc7 of 1024 channels, ResNet-34,
and Caffe's ResNet-101, all trained for ImageNet classification."""

BACKBONES = ("vgg16", "resnet34", "resnet101")
BALANCED = "balanced"
HEADS = {"attention": AttentionHead, "refine": RefineHead}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One experiment. The defaults are the common settings of the authors' PASCAL VOC 2012 experiments."""

    name: str
    published: tuple[Published, ...] = ()
    """Published numbers; empty for a changed recipe."""
    ours: tuple[str, ...] = ()
    """Names of fields whose value is ours, because the authors' is not known."""

    dataset: str = "voc12"
    """Name of the data set's folder within the folder of all data sets."""
    training_set: str = "list/train_aug.txt"
    """List file, relative to the data root."""
    evaluation_set: str = "list/val.txt"
    """List file of the published numbers, relative to the data root."""
    hidden_labels: bool = False
    """Whether only VOC's evaluation server has the labels of the evaluation set."""
    num_classes: int = 21
    """Outputs of the net; for COCO the category ids, some of which are unused."""
    classifier: str = "fc8_voc12"
    """Caffe name of layer fc8. Weights are loaded by name, so the classifier of another data set is not loaded."""
    init: str = IMAGENET
    """Source of the initial weights: a name in PRETRAINED, or the name of a recipe."""

    backbone: str = "vgg16"
    """Net of each stream: "vgg16", DeepLab on VGG-16, "resnet34", ResNet34-dilated8 with `stem` and `decoder`,
    "resnet101", DeepLab v2 on ResNet-101 with `aspp`, or a net of another package, "timm:NAME" or "torchvision:NAME",
    with `output_stride` and `decoder`."""
    output_stride: int = 8
    """Pixels per cell of the last map of another package's net."""
    aspp: tuple[int, ...] = ()
    """Dilations of atrous spatial pyramid pooling, of DeepLab v2 on ResNet-101 or, at one scale, on VGG-16; empty:
    LargeFOV."""
    stem: str = "deep64"
    """First layers of ResNet-34, one of models.resnet.STEMS: three 3x3 convolutions, or torchvision's 7x7."""
    decoder: str = "c1"
    """Decoder on ResNet-34 and on other packages' nets: "c1", a 1x1 convolution, or "psp", pyramid pooling."""
    batch_norm: str = "batch"
    """Scope of the batch norm statistics in ResNet: "batch", the images of one process, or "sync", of all processes."""
    scales: tuple[float, ...] = (1,)
    merge: str | None = None
    extra_supervision: bool = False
    skip_net: bool = False
    """Whether the net of each stream is DeepLab-MSc-LargeFOV, in which only the skip branches are trained."""
    head: AttentionHead | RefineHead = dataclasses.field(default_factory=AttentionHead)
    att_conv1: int = 512
    """Filters of the first layer of an AttentionHead, before scaling by `width`."""
    refine: int = 512
    """Filters of the layers of a RefineHead except the last ones, before scaling by `width`."""
    pool5a: bool = False
    dropout: float = 0.5
    width: float = 1

    crop: int = 321
    scale_augmentation: tuple[float, float] | None = None
    """Range of the random factors by which training images are resized before cropping."""
    fill_crop: bool = False
    """Whether training images smaller than the crop are enlarged to fill it; otherwise they are padded."""
    colour_augmentation: float | None = None
    """Largest deviation from 1 of the random factors on brightness, contrast and saturation of training images."""
    class_weights: tuple[float, ...] | str | None = None
    """Weight of each class in the losses, or "balanced": inverse to its pixels in the training list; None: 1."""
    test_crop: int = 513
    """Minimum side to which images are padded in evaluation."""
    short_sides: tuple[int, ...] = ()
    """Shorter sides to which images are resized in evaluation, with averaged softmax; empty: the original size."""
    factors: tuple[float, ...] = ()
    """Factors by which images are resized in evaluation, with averaged softmax; empty: the original size."""
    crf: dict[str, Any] | None = None
    """Parameters of the dense CRF's bilateral kernel: weight and standard deviations (position in pixels, colour in
    8-bit steps); None: no CRF."""

    batch_size: int = 3
    iter_size: int = 10
    base_lr: float = 1e-3
    lr_policy: str = "step"
    gamma: float = 0.1
    stepsize: int = 2000
    """Iterations between two drops of the rate under policy step."""
    stepvalues: tuple[int, ...] = ()
    """Iterations at which the rate drops under policy multistep."""
    power: float = 0.9
    max_iter: int = 6000
    solver: str = "caffe"
    """SGD rule: "caffe", with the learning rate inside the history, or "torch", that of torch.optim.SGD."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shared_decay: str = "per_stream"
    lr_mult: dict[str, float] = dataclasses.field(default_factory=dict)
    """Learning-rate multipliers of layers that deviate from the net's rule."""
    uniform_layers: bool = False
    """Whether biases and batch norms have the weights' learning rate and decay; otherwise the net's rule holds."""
    label_stride: int | None = None
    """Pixels between the labels that all losses meet, the scores interpolated to their grid: 1 is full resolution.
    None: each loss is taken on the grid of its scores, as in Caffe."""
    average_loss: int = 10
    """Iterations over which the displayed losses are averaged."""
    display: int = 10
    snapshot: int = 2000

    def __post_init__(self) -> None:
        object.__setattr__(self, "shared_decay", FORMER_NAMES.get(self.shared_decay, self.shared_decay))
        for name in ("batch_size", "iter_size", "max_iter", "average_loss", "display", "snapshot", "crop", "test_crop"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not is_named(self.backbone):
            check_known("backbone", self.backbone, (*BACKBONES, *(f"{package}:NAME" for package in PACKAGES)))
        check_known("solver", self.solver, SOLVERS)
        other = {name for names in _FIELDS_OF_BACKBONE.values() for name in names}
        for name in sorted(other.difference(_FIELDS_OF_BACKBONE[_kind(self.backbone)])):
            if getattr(self, name) != FIELDS[name].default:
                raise InputError(f"{name} {getattr(self, name)} is not for the backbone {self.backbone}: leave it out.")
        if self.backbone == "vgg16" and self.aspp and (len(self.scales) > 1 or self.skip_net):
            raise InputError(
                "atrous spatial pyramid pooling on VGG-16 is for one scale without skip branches: leave out aspp, or "
                "give backbone resnet101."
            )
        if self.label_stride is not None and (self.label_stride < 1 or (self.crop - 1) % self.label_stride):
            raise InputError(
                f"label_stride is {self.label_stride}; for a crop of {self.crop} it must divide {self.crop - 1}."
            )
        self._check_class_weights()
        if self.short_sides and self.factors:
            raise InputError("images are resized to shorter sides or by factors: give one of short_sides and factors.")
        if len(self.scales) == 1 and tuple(self.scales) != (1,):
            raise InputError(f"the only scale is {self.scales[0]:g}; a net of one scale takes the image at scale 1.")
        if self.extra_supervision and len(self.scales) == 1:
            raise InputError("extra supervision needs two or more scales: give --no-extra-supervision for one.")

    def _check_class_weights(self) -> None:
        weights = self.class_weights
        if isinstance(weights, str):
            check_known("class_weights", weights, (BALANCED,))
        elif weights is not None:
            if len(weights) != self.num_classes:
                raise InputError(f"{self.num_classes} classes have {len(weights)} weights: give one for each.")
            if not (all(0 <= weight < math.inf for weight in weights) and any(weights)):
                raise InputError(f"the class weights are {[*weights]}; they must be at least 0, and not all of them 0.")

    def changed(self, **fields: Any) -> "Recipe":
        """The recipe with other values; a changed recipe has no published numbers.

        A different number of classes means another data set, so the classifier's name becomes `fc8` unless given. With
        another backbone the head of Attention to Scale reads its last map unless the head is given.
        `short_sides` replace `factors`, and the other way round.
        Raises InputError for an unknown field, with the nearest names.
        """
        for name in fields:
            if name not in FIELDS:
                raise InputError(f"recipes have no field '{name}'; the nearest are {nearest(name, FIELDS)}.")
        for name in ("scales", "short_sides", "factors", "stepvalues", "scale_augmentation", "aspp"):
            if fields.get(name) is not None:
                fields[name] = tuple(fields[name])
        for name, other in (("short_sides", "factors"), ("factors", "short_sides")):
            if name in fields:
                fields.setdefault(other, ())
        if fields.get("num_classes", self.num_classes) != self.num_classes:
            fields.setdefault("classifier", "fc8")
        kind = _kind(fields.get("backbone", self.backbone))
        if kind != _kind(self.backbone) and kind in _LAST_MAP and isinstance(self.head, AttentionHead):
            fields.setdefault("head", self.changed_head(features=_LAST_MAP[kind]))
        fields = {name: value for name, value in fields.items() if value != getattr(self, name)}
        if not fields:
            return self
        return dataclasses.replace(self, **{"published": (), **fields})

    def changed_head(self, kind: str | None = None, **fields: Any) -> AttentionHead | RefineHead:
        """The head with other values, or a head of another kind (HEADS).

        A new head of Attention to Scale reads the last map of the backbone unless another is given.

        Raises InputError for a field that the head lacks, with the names of its fields.
        """
        make = HEADS[kind] if kind else type(self.head)
        if make is AttentionHead and not isinstance(self.head, make):
            fields.setdefault("features", _LAST_MAP[_kind(self.backbone)])
        known = [field.name for field in dataclasses.fields(make)]
        for name in fields:
            if name not in known:
                raise InputError(f"the {make.__name__} has no field '{name}'; it has {', '.join(known)}.")
        return dataclasses.replace(self.head, **fields) if isinstance(self.head, make) else make(**fields)

    @property
    def is_caffes(self) -> bool:
        """Whether the authors' Caffe can train the net: VGG-16 with the merges of Attention to Scale."""
        return self.backbone == "vgg16" and isinstance(self.head, AttentionHead) and self.merge != "hierarchical"

    def net(self) -> Net:
        """The net, new layers initialised by their fillers; the trunk's weights must be loaded from a file.

        Raises InputError for a backbone of another package that cannot be built (`named_backbone`).
        """
        if is_named(self.backbone):
            settings = {name: getattr(self, name) for name in ("output_stride", "head", "decoder", "width", "dropout")}
            return BackboneNet(self.backbone, self.num_classes, self.scales, self.merge, **settings)
        if self.backbone == "resnet34":
            names = ("head", "decoder", "stem", "width", "batch_norm", "dropout")
            settings = {name: getattr(self, name) for name in names}
            return ResNetDilated8(self.num_classes, self.scales, self.merge, **settings)
        if self.backbone == "resnet101":
            settings = {name: getattr(self, name) for name in ("aspp", "head", "width", "dropout")}
            return DeepLabResNet101(self.num_classes, self.scales, self.merge, **settings)
        widths = dataclasses.replace(Widths(), att_conv1=self.att_conv1, refine=self.refine).scaled(self.width)
        if self.aspp:
            return DeepLabASPP(self.num_classes, self.aspp, dropout=self.dropout, widths=widths)
        settings = {"pool5a": self.pool5a, "dropout": self.dropout, "widths": widths}
        if len(self.scales) == 1:
            return (DeepLabMSc if self.skip_net else DeepLabLargeFOV)(self.num_classes, **settings)
        settings |= {"skip_net": self.skip_net, "head": self.head}
        return ShareNet(self.num_classes, self.scales, self.merge, **settings)

    def optimizer(self, net: Net) -> CaffeSGD | TorchSGD:
        """The solver for a net of this recipe, with a slot per copy if the net has copies."""
        groups = parameter_groups(net, self.shared_decay, self.lr_mult, self.uniform_layers)
        rule = {"caffe": CaffeSGD, "torch": TorchSGD}[self.solver]
        return rule(groups, momentum=self.momentum, weight_decay=self.weight_decay, iter_size=self.iter_size)

    def learning_rate(self) -> LearningRate:
        return LearningRate(
            self.base_lr, self.lr_policy, self.gamma, self.stepsize, self.stepvalues, self.power, self.max_iter
        )

    def evaluation(self) -> dict[str, Any]:
        """Keyword arguments of `evaluation.evaluate`."""
        crf = CRF(**self.crf) if self.crf else None
        return {"pad_to": self.test_crop, "crf": crf, "short_sides": self.short_sides, "factors": self.factors}

    def start(self, out: str | os.PathLike, pretrained: Mapping[str, str | os.PathLike] = PRETRAINED) -> Path:
        """Path of the initial weights; `out` is the folder of all runs."""
        return Path(pretrained[self.init] if self.init in PRETRAINED else Path(out) / self.init / "final.pth")

    def command(
        self,
        data_root: str | os.PathLike = "data",
        out: str | os.PathLike = "runs",
        pretrained: Mapping[str, str | os.PathLike] = PRETRAINED,
    ) -> str:
        """The command that trains the recipe.

        `data_root` is the folder of all data sets, `out` the folder of all runs, `pretrained` the files of PRETRAINED.
        """
        start = str(self.start(out, pretrained))
        files = ("--data-root", f"{data_root}/{self.dataset}", "--init", start, "--out", f"{out}/{self.name}")
        return shlex.join(("a2s", "train", "--recipe", self.name, *files))

    def cost(self) -> Cost:
        """Parameters of the net, and multiply-accumulates of a training crop."""
        with torch.device("meta"):
            return cost(self.net().to("meta"), self.crop)  # a package's backbone is built on the CPU

    def summary(self, images: int, classes: Sequence[str]) -> list[str]:
        """What a training by the recipe on a list of `images` images will be, as lines to print at its start."""
        named = ", ".join(classes[:4]) + (f", ... {classes[-1]}" if len(classes) > 4 else "")
        merge = f"scales {' '.join(f'{scale:g}' for scale in self.scales)}, merged by {self.merge}"
        net = {
            "vgg16": ["DeepLab-MSc-LargeFOV" if self.skip_net else "DeepLab-LargeFOV"],
            "resnet34": [f"ResNet34-dilated8 ({self.decoder})"],
            "resnet101": ["DeepLab v2 on ResNet-101"],
        }.get(self.backbone, [f"{self.backbone} at output stride {self.output_stride} ({self.decoder})"])
        if self.backbone == "vgg16" and self.aspp:
            net = ["DeepLab v2 on VGG-16"]
        net += [merge if len(self.scales) > 1 else "one scale"]
        net += ["extra supervision" if self.extra_supervision else "no extra supervision"] * (len(self.scales) > 1)
        net += [f"width {self.width:g}"] * (self.width != 1)
        per_update = self.batch_size * self.iter_size
        rate = {
            "step": f"times {self.gamma:g} every {self.stepsize} iterations",
            "multistep": f"times {self.gamma:g} at {' '.join(map(str, self.stepvalues))}",
            "poly": f"falling to 0 by power {self.power:g}",
        }.get(self.lr_policy, "fixed")
        passes = self.max_iter * per_update / images
        on_own_data = []
        if self.colour_augmentation:
            low, high = 1 - self.colour_augmentation, 1 + self.colour_augmentation
            on_own_data.append(f"brightness, contrast and saturation vary by factors of {low:g} to {high:g}")
        if isinstance(self.class_weights, tuple):
            weights = zip(classes, self.class_weights, strict=True)
            on_own_data.append(f"class weights: {', '.join(f'{name} {weight:.3g}' for name, weight in weights)}")
        return [
            f"recipe {self.name}: {', '.join(net)}; {len(classes)} classes ({named})",
            f"{images} images; {self.max_iter} iterations of {self.batch_size} x {self.iter_size} images, "
            f"crop {self.crop}: {passes:.3g} times the list; learning rate {self.base_lr:g}, {rate}",
            *on_own_data,
        ]

    def description(self) -> str:
        """The published numbers, the cost, all settings and the training command, as text."""
        lines = [f"{table}: {metric} {value}" for table, metric, value in self.published]
        lines.append(f"{self.cost()} for a crop of {self.crop}")
        for name, value in self.config().items():
            if name not in ("name", "published", "ours"):
                lines.append(f"{name:<19} {value}{'   (ours)' if name in self.ours else ''}")
        return "\n".join((self.name, *lines, self.command()))

    def config(self) -> dict[str, Any]:
        """All fields as plain values."""
        return dataclasses.asdict(self) | {
            "published": [list(number) for number in self.published],
            **{
                name: list(getattr(self, name))
                for name in ("ours", "scales", "short_sides", "factors", "stepvalues", "aspp")
            },
            "scale_augmentation": self.scale_augmentation and list(self.scale_augmentation),
            "class_weights": list(self.class_weights) if isinstance(self.class_weights, tuple) else self.class_weights,
            "head": self.head.config(),
        }

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Recipe":
        """The recipe of a `config`; unknown keys are ignored, missing fields take their defaults.

        Raises InputError for values from which no recipe or no net can be made.
        """
        values = {name: config[name] for name in FIELDS if name in config}
        try:
            for name, kind in _OF_PLAIN.items():
                if values.get(name) is not None:
                    values[name] = kind(values[name])
            if values.get("stem") == "deep":  # as files of version 0.1 have it, whatever the backbone
                values["stem"] = "deep128" if values.get("backbone") == "resnet34" else FIELDS["stem"].default
            recipe = cls(**{"name": "", **values})
            with torch.device("meta"):
                recipe.net()
            recipe.learning_rate()
        except InputError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the recipe has a value that is not possible ({first_line(error)}).") from error
        return recipe


FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
_FIELDS_OF_BACKBONE = {
    "vgg16": ("skip_net", "pool5a", "att_conv1", "refine", "aspp"),
    "resnet34": ("stem", "decoder", "batch_norm"),
    "resnet101": ("aspp",),
    **dict.fromkeys(PACKAGES, ("decoder", "output_stride")),
}
_LAST_MAP = {"vgg16": "fc7", "resnet34": "layer4", "resnet101": "res5c", **dict.fromkeys(PACKAGES, "backbone")}
"""The map before the classifier, which the paper's head reads."""
_OF_PLAIN = {
    "published": lambda numbers: tuple(Published(*number) for number in numbers),
    "head": build_head,
    "class_weights": lambda weights: weights if isinstance(weights, str) else tuple(weights),
    **dict.fromkeys(("ours", "scales", "short_sides", "factors", "stepvalues", "scale_augmentation", "aspp"), tuple),
}
"""Constructors that restore the fields flattened by `config`."""


def _kind(backbone: str) -> str:
    """A backbone's key in the tables above: its name, of another package's net the package."""
    return backbone.partition(":")[0]
