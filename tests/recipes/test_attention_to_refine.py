"""The recipes of Attention to Refine: the paper's numbers and settings; thin nets are trained and scored."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from a2s_repro.checkpoint.weights import load_weights
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.models import AttentionHead, RefineHead
from a2s_repro.recipes import RECIPES, Recipe, find_recipe, recipes_of
from a2s_repro.reproduction.trial import SMOKE_CHANGES, draw_data_sets, draw_pretrained, smoke
from a2s_repro.training import Run, Trainer, train
from tests.processes import run_tool

VOC12 = [recipe for name, recipe in RECIPES.items() if name.startswith("a2r_voc12/")]
ADE20K = [recipe for name, recipe in RECIPES.items() if name.startswith("a2r_ade20k/")]
BOTH = [*VOC12, *ADE20K]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A folder of drawn data sets and random ImageNet weights."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_data_sets(folder)
    draw_pretrained(folder)
    return folder


def thin(name: str, **changes) -> Recipe:
    return find_recipe(name).changed(**SMOKE_CHANGES | changes)


def run_of(recipe: Recipe, drawn: Path, out: Path, **settings) -> Run:
    init = drawn / ("resnet34.pth" if recipe.backbone == "resnet34" else "init.pth")
    return Run(data_root=drawn / "data" / recipe.dataset, out=out, init=init, workers=0, **settings)


def test_the_numbers_are_the_papers():
    """Tables 1, 2 and 3, and Section 2.2 for additive biases."""
    numbers = {
        "a2r:1": {"largefov": 61.40, "max2": 63.88, "average2": 64.07, "attention2_esupv": 64.74, "refine": 67.98},
        "a2r:2": {"attention2_esupv": 64.74, "multi_stage": 65.80, "multi_stage_dilation": 66.83, "refine": 67.98},
        "a2r:3": {
            **{"resnet34": (32.67, 76.41), "attention": (35.11, 76.82), "psp": (36.43, 78.01)},
            **{"refine": (37.07, 78.57), "refine_psp": (38.21, 79.29)},
        },
    }
    for table, expected in numbers.items():
        numbers: dict[str, list] = {}
        for recipe in recipes_of(table):
            values = [number.value for number in recipe.published if number.table == table]
            numbers[recipe.name.partition("/")[2]] = values[0] if len(values) == 1 else tuple(values)
        assert numbers == expected
    assert [number.metric for number in find_recipe("a2r_ade20k/psp").published] == ["mIoU", "pixel accuracy"]
    assert [recipe.name for recipe in recipes_of("a2r:text")] == ["a2r_voc12/refine_bias"]
    assert find_recipe("a2r_voc12/refine_other_reading").published == ()


@pytest.mark.parametrize("recipe", BOTH, ids=lambda recipe: recipe.name)
def test_settings_of_section_3(recipe):
    """Scales 1 and 0.5; poly with power 0.9 at every iteration; ten times the encoder's rate in the decoder."""
    assert recipe.scales == ((1,) if recipe.merge is None else (1, 0.5))
    rate = recipe.learning_rate()
    for part in (0, 0.25, 0.5):
        iteration = round(part * recipe.max_iter)
        assert rate(iteration) == pytest.approx(recipe.base_lr * (1 - iteration / recipe.max_iter) ** 0.9, rel=1e-6)
    assert rate(1) < rate(0)

    net = recipe.changed(width=1 / 64).net()
    solver = recipe.optimizer(net)
    solver.set_lr(rate(0))
    rates = {id(parameter): group["lr"] for group in solver.param_groups for parameter in group["params"]}
    decoder = tuple(net.new_layers) if recipe.backbone == "vgg16" else ("decoder", *net.unshared_layers)
    for name, parameter in net.keyed_parameters().items():
        expected = 10 if name.startswith(decoder) else 1
        assert rates[id(parameter)] == pytest.approx(expected * recipe.base_lr, rel=1e-6), name
    assert {group["weight_decay"] for group in solver.param_groups} == {recipe.weight_decay}


def test_the_rows_of_the_ablation_differ_only_in_the_head():
    """Table 2: multi-stage, diverse dilations, recalibration; Section 2.2: additive biases."""
    rows = {
        "multi_stage": RefineHead(dilations=(1, 1), recalibration=None),
        "multi_stage_dilation": RefineHead(dilations=(2, 12), recalibration=None),
        "refine": RefineHead(dilations=(2, 12), recalibration="multiply"),
        "refine_bias": RefineHead(dilations=(2, 12), recalibration="add"),
    }
    full = find_recipe("a2r_voc12/refine")
    for name, head in rows.items():
        row = find_recipe(f"a2r_voc12/{name}")
        assert row == dataclasses.replace(full, name=row.name, published=row.published, head=head)
    base = find_recipe("a2r_voc12/attention2_esupv")
    assert base.head == AttentionHead() and base.changed(head=full.head) == full.changed(name=base.name, ours=base.ours)


def test_every_open_reading_is_a_recipe_that_differs_from_refine_in_one_field():
    head = RefineHead()
    readings = {
        "other_reading": {"dilations": (12, 2)},
        "conv3_to_conv5": {"stages": head.stages[2:]},
        "conv3_to_fc7": {"stages": (*head.stages[2:], "fc7")},
        "pools": {"stages": ("pool1", "pool2", "pool3", "pool4", "pool5")},
        "l2": {"normalization": "l2"},
        "batch_norm": {"normalization": "batch"},
        "recalibrated_streams": {"supervision": "recalibrated"},
        "merged_at_8": {"merge_stride": 8},
    }
    full = find_recipe("a2r_voc12/refine")
    for name, change in readings.items():
        reading = find_recipe(f"a2r_voc12/refine_{name}")
        assert reading == dataclasses.replace(
            full, name=reading.name, published=(), head=dataclasses.replace(head, **change)
        )
    for name, stride in {"full_resolution": 1, "labels4": 4}.items():
        reading = find_recipe(f"a2r_voc12/refine_{name}")
        ours = (*full.ours, "label_stride")
        assert reading == dataclasses.replace(full, name=reading.name, published=(), ours=ours, label_stride=stride)


def test_the_ablation_has_one_label_density():
    """Every row of Table 2 with losses at every 4th pixel, whatever grid its scores are on."""
    for cell in ("attention2_esupv", "multi_stage", "multi_stage_dilation", "refine"):
        row, dense = find_recipe(f"a2r_voc12/{cell}"), find_recipe(f"a2r_voc12/{cell}_labels4")
        assert row.changed(label_stride=4) == dataclasses.replace(dense, name=row.name, ours=row.ours)


def test_the_protocol_of_ade20k():
    """100 epochs of the 20210 training images in full batches of 16; crops of 384, rounded up to 16k + 1."""
    for recipe in ADE20K:
        assert (recipe.num_classes, recipe.dataset, recipe.backbone) == (150, "ade20k", "resnet34")
        assert recipe.max_iter == 126300 and recipe.batch_size * recipe.iter_size == 16
        assert recipe.crop == 384 + 1 and (recipe.crop - 1) % recipe.changed(width=1 / 64).net().grid_step == 0
        assert (recipe.base_lr, recipe.momentum, recipe.weight_decay) == (1e-3, 0.9, 1e-4)
        factors = (0.5, 0.75, 1, 1.25, 1.5)
        assert recipe.evaluation() == {"pad_to": 1, "crf": None, "short_sides": (), "factors": factors}
        later = recipe.changed(short_sides=(300, 400, 500, 600))
        assert later.evaluation()["short_sides"] == (300, 400, 500, 600) and later.factors == ()


def test_settings_that_the_paper_leaves_open_are_marked_as_ours():
    for recipe in BOTH:
        assert {"solver", "uniform_layers", "shared_decay", "max_iter", "batch_size", "iter_size"} <= set(recipe.ours)
        assert ("extra_supervision" in recipe.ours) == (recipe.merge in ("max", "average"))
        assert {"head", "refine"} <= set(recipe.ours) or not isinstance(recipe.head, RefineHead)
        assert {"crop", "init", "factors", "scale_augmentation"} <= set(recipe.ours) or recipe in VOC12


@pytest.mark.long
def test_recipes_train_and_are_scored(tmp_path):
    """Covers both backbones, decoders and heads, both kinds of recalibration, and other readings, up to RESULTS.md."""
    readings = ("pools", "l2", "batch_norm", "recalibrated_streams", "merged_at_8", "full_resolution")
    assert smoke(tmp_path / "readings", [find_recipe(f"a2r_voc12/refine_{name}") for name in readings]) == []
    names = ("a2r_voc12/refine", "a2r_voc12/refine_bias", "a2r_ade20k/attention", "a2r_ade20k/refine_psp")
    assert smoke(tmp_path, [find_recipe(name) for name in names]) == []
    rows = json.loads((tmp_path / "runs/RESULTS.json").read_text())
    scored = {(row["recipe"], row["metric"]): row for row in rows if row["ours"] is not None}
    assert {name for name, _ in scored} == set(names)
    row = scored["a2r_ade20k/refine_psp", "pixel accuracy"]
    assert 0 <= row["ours"] <= 100 and row["paper"] == 79.29
    assert "| a2r_ade20k/refine_psp | pixel accuracy | 79.29 |" in (tmp_path / "runs/RESULTS.md").read_text()


def test_a_resumed_resnet_is_bit_identical(drawn, tmp_path):
    """Includes PyTorch's solver and the running statistics of batch norm."""
    recipe = thin("a2r_ade20k/refine_psp", max_iter=4, num_classes=6)
    whole = train(recipe, run_of(recipe, drawn, tmp_path / "whole"))

    items = read_list(drawn / "data/ade20k/list/train.txt", drawn / "data/ade20k")
    part = run_of(recipe, drawn, tmp_path / "part")
    broken = Trainer(recipe, items, torch.device("cpu"), "fp32", seed=0)
    assert broken.model.bn1.running_mean.eq(0).all()
    (tmp_path / "part").mkdir()
    (tmp_path / "part/snapshot_iter_2.pth").write_bytes((tmp_path / "whole/snapshot_iter_2.pth").read_bytes())
    rest = train(recipe, dataclasses.replace(part, init=None, resume="auto"))
    ours, theirs = (load_weights(outcome.file).state_dict for outcome in (rest, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert theirs["layer1.0.bn1.num_batches_tracked"] == 4 * recipe.iter_size * len(recipe.scales)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("a2r_voc12/refine", {"scales": (1, 0.75, 0.5)}, "there are 2 dilations, 2 12, for the scales 1 0.75 0.5"),
        ("a2r_voc12/refine", {"backbone": "resnet34"}, "the net has no map 'conv1_2'"),
        ("a2r_ade20k/refine", {"pool5a": True}, "pool5a True is not for the backbone resnet34: leave it out"),
        ("a2r_voc12/refine", {"decoder": "psp"}, "decoder psp is not for the backbone vgg16: leave it out"),
        (
            "a2r_voc12/refine",
            {"backbone": "resnet50"},
            "backbone 'resnet50' is not known; it is one of vgg16, resnet34",
        ),
        ("a2r_voc12/refine", {"solver": "adam"}, "solver 'adam' is not known; it is one of caffe, torch"),
        ("a2r_ade20k/refine", {"stem": "shallow"}, "stem 'shallow' is not known; it is one of deep64, deep128, plain"),
        ("a2r_voc12/refine", {"skip_net": True}, "without skip branches: leave those out"),
    ],
)
def test_parts_that_do_not_fit_are_refused(name, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        find_recipe(name).changed(**{"width": 1 / 64, **changes}).net()


def test_fields_of_the_other_head_are_refused():
    recipe = find_recipe("a2r_voc12/refine")
    assert recipe.changed_head(dilations=(4, 8)) == RefineHead(dilations=(4, 8))
    assert recipe.changed_head("attention", layers=3) == AttentionHead(layers=3)
    with pytest.raises(InputError, match="RefineHead has no field 'kernel'; it has dilations, stages, recalibration"):
        recipe.changed_head(kernel=1)


def test_caffes_streams_and_states_need_caffes_nets(drawn, tmp_path):
    recipe = thin("a2r_ade20k/resnet34")
    with pytest.raises(InputError, match="is no net of Caffe's: leave out --caffe-streams"):
        train(recipe, run_of(recipe, drawn, tmp_path / "run", caffe_streams="ziggurat"))
    with pytest.raises(InputError, match=r"x\.solverstate is of a run of Caffe's, but the recipe is of another"):
        train(recipe, run_of(recipe, drawn, tmp_path / "run", resume="x.solverstate"))


def test_another_nets_file_is_refused(drawn, tmp_path):
    recipe = thin("a2r_ade20k/resnet34")
    vgg = dataclasses.replace(run_of(recipe, drawn, tmp_path / "run"), init=drawn / "init.pth")
    with pytest.raises(InputError, match=r"init\.pth holds other things than named tensors: give a ResNet-34's"):
        train(recipe, vgg)


def test_the_tool_changes_head_and_solver(drawn, tmp_path):
    root = drawn / "data/voc12"
    sizes = {"width": 1 / 16, "crop": 65, "batch-size": 1, "iter-size": 1, "max-iter": 1}
    words = [f"--data-root={root}", f"--init={drawn / 'init.pth'}", "--workers=0", "--device=cpu"]
    words += [f"--{name}={value}" for name, value in sizes.items()]
    net = ["--recipe=a2r_voc12/refine", "--head-dilations", "3", "5", "--head-recalibration=none", "--refine=256"]
    done = run_tool("train_voc", *words, *net, "--solver=caffe", f"--out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    weights = load_weights(tmp_path / "run/final.pth")
    assert weights.meta["recipe"]["head"]["dilations"] == [3, 5] and weights.meta["recipe"]["solver"] == "caffe"
    assert weights.state_dict["att_conv1.weight"].shape == (16, 2 * 16, 3, 3)
    assert "rec_fc.weight" not in weights.state_dict
