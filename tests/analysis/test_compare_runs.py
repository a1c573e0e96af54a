"""Comparison tables of runs trained on the demo set."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from a2s_repro.analysis.compare_runs import comparison, read_run
from a2s_repro.analysis.learning_curves import learning_curves
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.inference.evaluation import evaluate
from a2s_repro.inference.segmenter import load_model
from a2s_repro.recipes import find_recipe
from a2s_repro.recipes.recipe import IMAGENET
from a2s_repro.reproduction.trial import draw_pretrained
from a2s_repro.training import Run, train
from tests.processes import run_tool


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Average merging with two seeds, and attention with extra supervision."""
    folder = tmp_path_factory.mktemp("runs")
    data = make_demo_data(folder / "demo", num_train=2, num_val=2)
    lists = data / "ImageSets/Segmentation"
    init = draw_pretrained(folder)[IMAGENET]
    trial = {"width": 1 / 16, "max_iter": 2, "batch_size": 2, "iter_size": 1, "crop": 65, "display": 1}
    outs = []
    for cell, seed in (("average2", 1), ("average2", 2), ("attention3_esupv", 1)):
        out = folder / f"{cell}_{seed}"
        recipe = find_recipe(f"voc12/{cell}").changed(**trial, num_classes=len(CLASSES))
        train(recipe, Run(data, out, init, train_list=lists / "train.txt", seed=seed, workers=0))
        model, _ = load_model(out / "final.pth")
        result = evaluate(model, read_list(lists / "val.txt", data), pad_to=161, by_size="attention" in cell)
        (out / "val.json").write_text(json.dumps(result.summary(CLASSES)))
        outs.append(out)
    return outs


def table(markdown: str, number: int) -> list[dict[str, str]]:
    """The lines of a table, as dicts by column title."""
    titles, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown.split("\n\n")[number].splitlines()
    )
    return [dict(zip(titles, line, strict=True)) for line in lines]


def test_rows_show_differing_settings_and_means_over_seeds(folders):
    markdown = comparison([read_run(folder) for folder in folders])
    scores = [json.loads((folder / "val.json").read_text()) for folder in folders]
    losses = [json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["losses"] for folder in folders]

    average, attention = table(markdown, 0)
    assert list(average)[:4] == ["scales", "merge", "extra supervision", "mIoU"]
    assert list(average.values())[:3] == ["1, 0.5", "average", "no"]
    assert list(attention.values())[:3] == ["1, 0.75, 0.5", "attention", "yes"]
    mean_ious = [100 * score["mean_iou"] for score in scores]
    assert average["mIoU"] == f"{(mean_ious[0] + mean_ious[1]) / 2:.2f}"
    assert average["of each run"] == f"{mean_ious[0]:.2f}, {mean_ious[1]:.2f}"
    assert attention["of each run"] == attention["deviation of mIoU"] == ""
    assert average["deviation of mIoU"] == f"{np.std(mean_ious[:2], ddof=1):.2f}"
    assert average["loss"] == f"{(losses[0]['loss'] + losses[1]['loss']) / 2:.3f}"
    assert attention["loss_res05"] == f"{losses[2]['loss_res05']:.3f}"
    assert average["loss_res05"] == ""

    by_class = table(markdown, 1)[1]
    assert by_class["disc"] == f"{100 * scores[2]['iou']['disc']:.1f}"
    deviation = np.std(mean_ious[:2], ddof=1)
    assert markdown.endswith(f"(1 degrees of freedom): {deviation:.2f}.")


def test_other_forms_hold_the_same_numbers(folders):
    runs = [read_run(folder) for folder in folders]
    average, attention = table(comparison(runs), 0)
    rows = list(csv.DictReader(io.StringIO(comparison(runs, "csv"))))
    assert [{name: row[name] for name in average} for row in rows] == [average, attention]
    assert [row["disc"] for row in rows] == [line["disc"] for line in table(comparison(runs), 1)]

    first = comparison(runs, "latex").split("\n\n")[0].splitlines()
    assert first[:2] == [r"\begin{tabular}{lll" + "r" * (len(average) - 3) + "}", r"\toprule"]
    assert first[4] == " & ".join(average.values()) + r" \\"
    assert first[2].startswith(r"scales & merge & extra supervision & mIoU & ") and r"loss\_res1" in first[2]
    with pytest.raises(InputError, match="form 'html' is not known"):
        comparison(runs, "html")


def test_attention_by_size_has_a_line_per_scale(folders):
    run = read_run(folders[2])
    lines = table(comparison([read_run(folder) for folder in folders]), 2)
    attention = json.loads((folders[2] / "val.json").read_text())["attention"]
    measured = attention["by_size"]
    assert [line["weight of scale"] for line in lines] == ["1", "0.75", "0.5"]
    smallest = measured["quartiles"][0]
    column = f"{smallest['smallest']} to {smallest['largest']} px"
    assert lines[2][column] == f"{smallest['weights'][2]:.3f}"
    assert lines[2]["within classes"] == f"{measured['correlation_within_classes'][2]:+.2f}"
    assert lines[2]["with depth"] == f"{attention.pop('by_depth')['correlation'][2]:+.2f}"
    without_depth = run._replace(scores=run.scores | {"attention": attention})
    assert table(comparison([without_depth]), 2)[2]["with depth"] == ""


def test_learning_curves_have_a_line_for_runs_that_differ_in_the_seed(folders):
    runs = [read_run(folder) for folder in folders]
    scored = [
        run._replace(validations=[validation(2, score)]) for run, score in zip(runs, (0.1, 0.3, 0.4), strict=True)
    ]
    losses, scores = learning_curves(scored).axes
    names = [
        "scales 1, 0.5, merge average, extra supervision no",
        "scales 1, 0.75, 0.5, merge attention, extra supervision yes",
    ]
    assert [line.get_label() for line in losses.lines] == names
    expected = [np.mean([run.log[number]["losses"]["loss"] for run in runs[:2]]) for number in (0, 1)]
    np.testing.assert_allclose(losses.lines[0].get_ydata(), expected)
    assert [line.get_ydata().tolist() for line in scores.lines] == [pytest.approx([20]), pytest.approx([40])]
    assert not learning_curves(runs).axes[1].lines


def validation(iteration: int, mean_iou: float) -> dict:
    return {"iteration": iteration, "validation": {"mean_iou": mean_iou}}


def test_scores_of_different_sets_are_not_compared(folders):
    runs = [read_run(folder) for folder in folders]
    fewer = runs[0]._replace(scores=runs[0].scores | {"images": 1})
    with pytest.raises(InputError, match="scored on different images or classes"):
        comparison([fewer, *runs[1:]])


def test_tool_prints_the_tables_and_bad_score_files_are_named(folders, tmp_path):
    done = run_tool("compare_runs", *folders, "--curves", tmp_path / "curves.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.strip() == comparison([read_run(folder) for folder in folders])

    copy = shutil.copytree(folders[0], tmp_path / "copy")
    (copy / "val.json").write_text("{")
    with pytest.raises(InputError, match=r"copy.val.json is not a JSON file"):
        read_run(copy)
    (copy / "val.json").unlink()
    with pytest.raises(InputError, match=r"copy.val.json is missing: train the run with --val-list, or score"):
        read_run(copy)


OTHER_JSON = [None, 3, "text", [], [1], {}, {"iteration": 0}, {"iteration": "0", "losses": {}}, {"losses": [1]}]


@pytest.mark.parametrize("content", OTHER_JSON, ids=repr)
@pytest.mark.parametrize("name", ["config.json", "log.jsonl", "val.json"])
def test_files_of_a_run_that_hold_other_json_are_named(folders, tmp_path, name, content):
    run = shutil.copytree(folders[0], tmp_path / "run")
    (run / name).write_text(json.dumps(content) + "\n")
    with pytest.raises(InputError, match=f"{run}.*"):
        read_run(run)


def test_a_stray_file_among_runs_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"notes.txt is not the folder of a run: leave it out"):
        read_run(tmp_path / "notes.txt")
