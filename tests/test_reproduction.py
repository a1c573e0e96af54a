"""Reproduction: recipes are trained in order, scored, and reported next to the published numbers."""

import dataclasses
import json
import math
import shlex
import shutil
from typing import Any

import pytest
import torch

from a2s_repro.checkpoint.weights import load_weights, save_weights
from a2s_repro.errors import InputError
from a2s_repro.files import sha256_of
from a2s_repro.recipes import find_recipe, recipes_of
from a2s_repro.reproduction import Reproduction, cells, smoke
from a2s_repro.reproduction.tables import trainings
from a2s_repro.reproduction.trial import csailvision_shapes, draw_data_sets, draw_pretrained, vgg16_shapes
from tests.processes import run_tool

TRIAL = {"width": 1 / 16, "max_iter": 2, "batch_size": 2, "iter_size": 1, "crop": 65, "test_crop": 65}
MSC = find_recipe("voc12/msc_largefov")
SUBSET = {"coco/largefov": "coco_subset/largefov"}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("drawn")
    return {"data_root": draw_data_sets(folder), "pretrained": draw_pretrained(folder)}


@pytest.fixture(scope="module")
def done(files, tmp_path_factory) -> Reproduction:
    """A reproduced number that starts from another recipe."""
    reproduction = Reproduction(**files, out=tmp_path_factory.mktemp("done"), changes=TRIAL, workers=0)
    assert reproduction.reproduce([MSC])
    return reproduction


def test_cells_are_named_with_or_without_their_group():
    assert cells("a2s:3") == recipes_of("a2s:3")
    assert cells("a2s:3", ["max2", "voc12/largefov"]) == [find_recipe(f"voc12/{x}") for x in ("largefov", "max2")]
    with pytest.raises(InputError, match="a2s:3 has no cell 'max5'; its cells are voc12/largefov, "):
        cells("a2s:3", ["max5"])


def test_a_recipe_is_trained_once_and_after_the_one_it_starts_from():
    wanted = [find_recipe(f"voc12_coco/{name}") for name in ("max2", "msc_largefov", "largefov")]
    names = [recipe.name for recipe in trainings(wanted)]
    assert sorted(names) == ["coco/largefov", *(f"voc12_coco/{x}" for x in ("largefov", "max2", "msc_largefov"))]
    assert names.index("coco/largefov") == 0
    assert names.index("voc12_coco/largefov") < names.index("voc12_coco/msc_largefov")


def test_results_are_listed_next_to_the_papers_numbers(done):
    rows = {(row["recipe"], row["metric"]): row for row in json.loads((done.out / "RESULTS.json").read_text())}
    assert {recipe for recipe, _ in rows} == {recipe.name for recipe in recipes_of("a2s:text")}

    row = rows.pop(("voc12/msc_largefov", "mIoU"))
    result = json.loads((done.out / "voc12/msc_largefov/result.json").read_text())
    assert row["ours"] == 100 * result["summary"]["mean_iou"] > 0
    assert (row["paper"], row["difference"]) == (64.39, row["ours"] - 64.39)
    assert (row["iterations"], row["precision"], row["device"]) == (2, "fp32", "cpu")
    assert row["seconds"] > 0 and row["peak_memory"] > 2**20 and (done.out / row["log"]).exists()
    assert row["note"].startswith("changed: width 0.0625, max_iter 2")
    assert all(row["ours"] is None and row["note"] == "not run" for row in rows.values())

    markdown = (done.out / "RESULTS.md").read_text()
    assert f"| voc12/msc_largefov | mIoU | 64.39 | {row['ours']:.2f} | {row['difference']:+.2f} | 2 |" in markdown
    assert markdown.count("| not run |") == len(rows)


def test_a_recipe_starts_from_the_trained_weights_of_its_chain(done):
    nets = [load_weights(done.out / f"voc12/{name}/final.pth").state_dict for name in ("largefov", "msc_largefov")]
    assert torch.equal(nets[0]["fc7.weight"], nets[1]["fc7.weight"])
    assert not torch.equal(nets[0]["fc7.weight"], load_weights(done.pretrained["imagenet"]).state_dict["fc7.weight"])


def test_finished_recipes_are_not_repeated(done):
    """Results of an earlier call are also listed by the next."""
    files = [done.out / name / file for name in ("voc12/largefov", MSC.name) for file in ("final.pth", "log.jsonl")]
    before = [file.stat().st_mtime_ns for file in files]
    assert done.reproduce([find_recipe("voc12/largefov")])
    assert [file.stat().st_mtime_ns for file in files] == before
    ours = {row["recipe"]: row["ours"] for row in done.results([])}
    assert ours["voc12/largefov"] is not None and ours["voc12/msc_largefov"] is not None


def test_replaced_weights_are_scored_again(done, tmp_path):
    recipe = find_recipe("voc12/largefov")
    copy = dataclasses.replace(done, out=tmp_path / "copy")
    shutil.copytree(done.out, copy.out)
    folder = copy.out / recipe.name
    weights = load_weights(folder / "final.pth")
    weights.state_dict["fc8.bias"][0] += 1
    save_weights(folder / "final.pth", weights.state_dict, weights.meta)
    assert copy.reproduce([recipe])
    assert json.loads((folder / "result.json").read_text())["weights"] == sha256_of(folder / "final.pth")


def test_runs_with_other_settings_in_the_folder_are_refused(done, files):
    """Otherwise a net would start from weights trained with other settings."""
    longer = Reproduction(**files, out=done.out, changes=TRIAL | {"max_iter": 4}, workers=0)
    with pytest.raises(InputError, match=r"voc12/largefov: .*holds a run with max_iter 2 instead of 4: give another"):
        longer.reproduce([MSC])


def test_the_printed_commands_are_equivalent(done, files, tmp_path):
    largefov = find_recipe("voc12/largefov")
    done.reproduce([largefov])
    changes = [f"--{name.replace('_', '-')}={value}" for name, value in TRIAL.items()]
    words = ["--table=a2s:3", "--cell=largefov", "--dry-run", *changes]
    folders = [f"--datasets={files['data_root']}", f"--init={files['pretrained']['imagenet']}", f"--out={tmp_path}"]
    machine = ["--device=cpu", "--workers=0"]
    printed = run_tool("reproduce", *words, *folders, *machine).stdout
    assert printed.count("a2s train") == printed.count("a2s evaluate") == 1
    for line in printed.splitlines():
        a2s, command, *options = shlex.split(line)
        run = run_tool({"train": "train_voc"}.get(command, command), *options, folder=tmp_path)
        assert a2s == "a2s" and run.returncode == 0, run.stderr

    ours, theirs = (load_weights(out / largefov.name / "final.pth").state_dict for out in (tmp_path, done.out))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    scores = json.loads((tmp_path / largefov.name / "scores.json").read_text())
    result = json.loads((done.out / largefov.name / "result.json").read_text())
    assert scores["mean_iou"] == result["summary"]["mean_iou"]


def test_coco_pretrained_nets_start_from_the_subset_on_request(files, tmp_path):
    """The numbers stay, and are marked; the results of one start are not taken for those of the other."""
    best = find_recipe("voc12_coco/max2")
    subset = Reproduction(**files, out=tmp_path, changes=TRIAL, workers=0, starts=SUBSET)
    commands = subset.commands([best])
    assert "--recipe coco_subset/largefov" in commands[0] and "--init" in commands[1]
    assert f"--init {tmp_path}/coco_subset/largefov/final.pth" in commands[1]
    assert subset.reproduce([best]) and not (tmp_path / "coco").exists()
    row = next(row for row in json.loads((tmp_path / "RESULTS.json").read_text()) if row["recipe"] == best.name)
    assert (row["paper"], row["note"].split(",")[0]) == (69.15, "changed: init coco_subset/largefov")
    with pytest.raises(InputError, match="a run with init coco_subset/largefov instead of coco/largefov: give another"):
        Reproduction(**files, out=tmp_path, changes=TRIAL, workers=0).reproduce([best])


def test_an_error_names_its_recipe(files, tmp_path):
    reproduction = Reproduction(files["data_root"] / "nowhere", files["pretrained"], tmp_path, TRIAL)
    with pytest.raises(InputError, match=r"voc12/largefov: .*nowhere.voc12"):
        reproduction.reproduce([MSC])


def test_missing_files_are_reported_before_the_first_training(files, tmp_path):
    """Table 5 trains on COCO before VOC."""
    best = find_recipe("voc12_coco/attention3_esupv")
    shutil.copytree(files["data_root"], tmp_path / "data", symlinks=True)
    (tmp_path / "data/voc12/list/val.txt").unlink()
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"voc12_coco/attention3_esupv: .*voc12.list.val.txt"):
        Reproduction(tmp_path / "data", files["pretrained"], out, TRIAL).reproduce([best])
    shutil.rmtree(tmp_path / "data/voc12")
    with pytest.raises(InputError, match=r"voc12_coco/attention3_esupv: .*data.voc12 is missing: prepare the data set"):
        Reproduction(tmp_path / "data", files["pretrained"], out, TRIAL).reproduce([best])
    with pytest.raises(InputError, match=r"coco/largefov: .*init.pth is missing: get the weights of imagenet"):
        Reproduction(files["data_root"], {"imagenet": tmp_path / "init.pth"}, out, TRIAL).reproduce([best])
    assert not out.exists()


def test_hidden_labels_are_segmented_for_the_server_and_not_scored(files, tmp_path):
    recipe = find_recipe("voc12_test/largefov")
    assert smoke(tmp_path, [find_recipe("voc12/largefov"), recipe]) == []
    row = next(row for row in json.loads((tmp_path / "runs/RESULTS.json").read_text()) if row["recipe"] == recipe.name)
    folder = "voc12_test/largefov/results/VOC2012/Segmentation/comp6_test_cls"
    assert row["ours"] is None and f"upload {folder} to VOC's evaluation server" in row["note"]
    assert len(list((tmp_path / "runs" / folder).glob("*.png"))) == 1


def test_the_smoke_run_starts_from_files_of_other_programs(files):
    """Their nets are restated: torchvision's VGG-16 of 138357544 parameters, whose file is converted, and CSAILVision's
    ResNet-34. The project's own nets draw none of them."""
    assert sum(map(math.prod, vgg16_shapes().values())) == 138_357_544
    source = load_weights(files["pretrained"]["imagenet"]).meta["source"]
    assert source["file"].endswith("vgg16.pth") and source["subsampled"]
    assert set(torch.load(files["pretrained"]["resnet34"], weights_only=True)) == set(csailvision_shapes())


def test_the_smoke_run_names_failed_recipes(tmp_path, capsys):
    broken = find_recipe("voc12/max2").changed(merge="maximum")
    assert smoke(tmp_path, [find_recipe("person_part/attention3_esupv"), broken]) == ["voc12/max2"]
    assert "voc12/max2 failed:" in capsys.readouterr().err
    rows = json.loads((tmp_path / "runs/RESULTS.json").read_text())
    assert sum(row["ours"] is not None for row in rows) == 8
    with pytest.raises(InputError, match="holds a smoke run already: remove it, or give another --out"):
        smoke(tmp_path)
