"""CRF parameter search with a thin net on the demo set, run through the tool."""

import json
from pathlib import Path

import pytest
import torch

from a2s_repro.analysis.crf_search import GRID, Search, candidates, sample
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.images import read_pair
from a2s_repro.data.lists import Item, read_list
from a2s_repro.errors import InputError
from a2s_repro.inference.crf import CRF, refine
from a2s_repro.inference.evaluation import ConfusionMatrix
from a2s_repro.inference.segmenter import Segmenter, load_model
from a2s_repro.models import ShareNet, Widths
from tests.processes import run_tool


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("demo"), num_train=1, num_val=3)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = ShareNet(len(CLASSES), (1, 0.5), widths=Widths().scaled(1 / 32))
    for parameter in model.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter)
    path = tmp_path_factory.mktemp("model") / "final.pth"
    save_weights(path, model.state_dict(), {"model": model.config(), "pool5a": False, "classes": list(CLASSES)})
    return path


def test_the_authors_grid_has_112_points() -> None:
    crfs = candidates(CRF(), GRID)
    assert len(set(crfs)) == 112
    assert {(crf.iterations, crf.pos_w, crf.pos_xy_std) for crf in crfs} == {(10, 3, 3)}


def test_a_sample_is_random_and_in_order() -> None:
    items = [Item(f"{i:02}", Path(f"{i}.jpg"), Path(f"{i}.png")) for i in range(50)]
    chosen = sample(items, 20, seed=1)
    assert chosen == sorted(chosen, key=lambda item: item.id) and len(set(chosen)) == 20
    assert chosen == sample(items, 20, seed=1) != sample(items, 20, seed=2)
    assert sample(items, 100, seed=1) == items
    with pytest.raises(InputError, match="at least 1"):
        sample(items, 0, seed=1)
    with pytest.raises(InputError, match=r"x\.jpg has no label file"):
        sample([Item("x", Path("x.jpg"), None)], 1, seed=1)


def test_the_table_stars_the_best() -> None:
    crfs = candidates(CRF(), {"bi_w": (4, 5), "bi_xy_std": (40, 49), "bi_rgb_std": (3, 5)})
    scores = dict(zip(crfs, [0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 0.7, 0.6], strict=True))
    table = Search(100, 0.05, scores).table().splitlines()
    assert table[:2] == ["bi_w 4", "  xy \\ rgb        3        5"]
    assert table[6] == "        40   50.00    75.00*"
    assert table[-1] == "mIoU 5.00 % without CRF, 75.00 % with the best"


def test_the_tool_scores_every_combination(demo: Path, model_file: Path, tmp_path: Path) -> None:
    listed = demo / "ImageSets/Segmentation/val.txt"
    words = ["--model", model_file, "--data-root", demo, "--list", listed, "--pad-to", "161", "--device", "cpu"]
    words += ["--bi-w", "4", "--bi-xy-std", "20", "49", "--bi-rgb-std", "5", "--crf-iterations", "3", "--count", "2"]
    done = run_tool("crf_search", *words, "--workers", "2", "--json", tmp_path / "search.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "search.json").read_text())
    assert report["images"] == 2 and [score["bi_xy_std"] for score in report["scores"]] == [20, 49]
    assert f"best on 2 images: {CRF(**report['best'])}" in done.stdout

    model, _ = load_model(model_file)
    crf = CRF(iterations=3, bi_xy_std=49)
    without, refined = ConfusionMatrix(len(CLASSES)), ConfusionMatrix(len(CLASSES))
    for item in sample(read_list(listed, demo), 2, seed=10):
        image, truth = read_pair(item, len(CLASSES))
        segmentation = Segmenter(model, pad_to=161)(image, scores=True)
        without.update(truth, segmentation.labels)
        refined.update(truth, refine(image[:, :, ::-1], segmentation.scores, crf))
    assert report["without"] == without.mean_iou
    assert report["scores"][1]["mean_iou"] == refined.mean_iou


def test_wrong_values_are_refused_in_one_sentence(demo: Path, model_file: Path) -> None:
    words = ("--model", model_file, "--data-root", demo, "--list", "none.txt", "--device", "cpu")
    done = run_tool("crf_search", *words, "--bi-rgb-std", "0")
    assert done.returncode == 2
    assert done.stderr == "error: CRF: bi_rgb_std is 0.0; a standard deviation must be above 0.\n"
