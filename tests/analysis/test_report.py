"""The report of a run: its data, and its reaction to mouse, touch and keyboard in a headless Chromium."""

import base64
import json
import os
import re
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from a2s_repro.analysis.inspection import inspect
from a2s_repro.analysis.report import write_report
from a2s_repro.analysis.report.examples import example
from a2s_repro.checkpoint.snapshots import Snapshot, save_snapshot
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.images import read_pair, write_label
from a2s_repro.data.lists import Item, read_list
from a2s_repro.errors import InputError
from a2s_repro.inference.evaluation import evaluate
from a2s_repro.inference.segmenter import Segmenter
from a2s_repro.models import DeepLabLargeFOV, Net, RefineHead, ShareNet, Widths
from a2s_repro.recipes import find_recipe
from a2s_repro.training.config import write_config
from a2s_repro.training.run_log import RunLog
from tests.processes import run_tool

pytestmark = pytest.mark.long

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CROP = 65
THIN = {"widths": Widths().scaled(1 / 32)}
SHARE = (len(CLASSES), (1, 0.5))
NETS = {
    "attention": lambda: ShareNet(*SHARE, **THIN),
    "max": lambda: ShareNet(*SHARE, "max", **THIN),
    "one scale": lambda: DeepLabLargeFOV(len(CLASSES), **THIN),
    "refine": lambda: ShareNet(*SHARE, head=RefineHead(dilations=(2, 12)), **THIN),
}
PUBLISHED = [["a2s:3", "mIoU", 69.08], ["a2s:2", "IoU ring", 81.47], ["a2s:text", "mIoU", "0.5 below another"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("demo"), num_train=1, num_val=5)


def random_net(kind: str) -> Net:
    """A net with random weights, scaled so that predictions vary by class, scale and position without saturation.

    It has the memory format of a net loaded from a file, so that sums are computed in the same order.
    """
    torch.manual_seed(0)
    net = NETS[kind]()
    for name, parameter in net.keyed_parameters().items():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        if name in ("fc8.weight", "att_fc.weight", "rec_fc.weight"):
            parameter.data *= 0.02
    return net.eval().to(memory_format=torch.channels_last)


def make_run(folder: Path, data: Path, net: Net) -> Path:
    """Writes the folder of a run without training."""
    recipe = find_recipe("voc12/attention3_esupv").changed(num_classes=len(CLASSES), test_crop=CROP, max_iter=40)
    recipe = recipe.config() | {"merge": net.merge, "published": PUBLISHED}
    run = {"data_root": str(data), "val_list": str(data / "ImageSets/Segmentation/val.txt")}
    folder.mkdir(parents=True)
    write_config(folder, {"recipe": recipe, "model": net.config(), "classes": list(CLASSES), "run": run})
    with RunLog(folder, 0) as log:
        for iteration in range(0, 31, 10):
            losses = {"loss": 2 / (1 + iteration), "loss_res1": 2.5 / (1 + iteration)}
            log.write(iteration, 0.5, losses, 1e-3, images_per_second=1.0, seconds=2.0, peak_memory=1)
    meta = {"model": net.config(), "pool5a": False, "classes": list(CLASSES)}
    save_weights(folder / "final.pth", net.state_dict(), meta)
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory, data):
    """Report pages of one run per net, by kind."""
    folder = tmp_path_factory.mktemp("runs")
    return {kind: write_report(make_run(folder / kind, data, random_net(kind)), count=2) for kind in NETS}


def items_of(data):
    return {item.id: item for item in read_list(data / "ImageSets/Segmentation/val.txt", data)}


def data_of(page: Path) -> dict:
    """The data embedded in a page, with numpy arrays."""
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)[1]

    def unpack(value: dict):
        if "dtype" not in value:
            return value
        return np.frombuffer(zlib.decompress(base64.b64decode(value["data"])), value["dtype"]).reshape(value["shape"])

    return json.loads(text, object_hook=unpack)


@pytest.mark.parametrize("kind", NETS)
def test_arrays_are_the_nets_values_at_every_eighth_pixel(reports, data, kind):
    """Fractions are rounded to 1/65535; all other values are exact."""
    segmenter = Segmenter(random_net(kind), CLASSES, pad_to=CROP)
    for shown in data_of(reports[kind])["examples"]:
        image, truth = read_pair(items_of(data)[shown["id"]], len(CLASSES))
        inspection = inspect(segmenter, image)
        scores = inspection.scores.softmax(0).numpy()
        assert shown["step"] == 8 and shown["size"] == list(truth.shape)
        assert (shown["truth"] == truth).all()
        assert (shown["labels"] == segmenter(image).labels).all()
        assert (shown["top_classes"][0] == scores.argmax(0)).all()
        kept = np.take_along_axis(scores, shown["top_classes"].astype(int), 0)
        assert abs(shown["top_scores"] / 65535 - kept).max() <= 0.51 / 65535
        assert (np.diff(shown["top_scores"].astype(int), axis=0) <= 0).all()
        alone = inspection.scale_scores.softmax(1).numpy()
        assert (shown["scale_classes"] == alone.argmax(1)).all()
        assert abs(shown["scale_scores"] / 65535 - alone.max(1)).max() <= 0.51 / 65535
        if inspection.weights is None:
            assert shown["weights"] is None
        else:
            assert abs(shown["weights"] / 65535 - inspection.weights.numpy()).max() <= 0.51 / 65535
        assert (shown["winner"] is not None) == (kind == "max")
        if kind == "refine":
            kept = np.take_along_axis(inspection.recalibration.numpy(), shown["top_classes"].astype(int), 0)
            assert (shown["recalibration"] == kept).all()


def test_large_images_are_shrunk_and_their_grid_is_thinned(tmp_path):
    """A side of 1300 pixels is shrunk to a third, and the grid's step grows from 8 to 24 pixels."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 1300, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "wide.png"), image)
    write_label(tmp_path / "label.png", rng.integers(0, len(CLASSES), (20, 1300), np.uint8))
    segmenter = Segmenter(random_net("attention"), CLASSES, pad_to=CROP)
    shown = example(segmenter, Item("wide", tmp_path / "wide.png", tmp_path / "label.png"), 0.5)
    assert shown.step == 24 and shown.size == (20, 1300)
    assert shown.picture.shape == (7, 434, 3) and shown.truth.shape == shown.labels.shape == (7, 434)
    weights = inspect(segmenter, image).weights.numpy()[:, ::3, ::3]
    assert weights.shape == (2, 1, 55)
    assert abs(shown.weights / 65535 - weights).max() <= 0.51 / 65535


def test_scores_are_those_of_the_evaluation_and_groups_are_ranked(reports, data):
    net = random_net("attention")
    result = evaluate(net, list(items_of(data).values()), pad_to=CROP, classes=CLASSES)
    page = data_of(reports["attention"])
    assert page["confusion"]["counts"] == result.confusion.counts.tolist()
    groups = {
        name: [shown["iou"] for shown in page["examples"] if shown["group"] == name + " IoU"]
        for name in ("lowest", "highest")
    }
    assert groups["lowest"] == sorted(groups["lowest"]) and groups["highest"] == sorted(groups["highest"], reverse=True)
    assert max(groups["lowest"]) <= min(groups["highest"]) and [*map(len, groups.values())] == [2, 2]
    text = reports["attention"].read_text()
    assert (
        f"<dd>{100 * result.confusion.mean_iou:.2f} %<small>paper (a2s:3): 69.08; paper (a2s:text): 0.5 below another"
        in text
    )
    assert re.search(r'ring</th><td class="wide">.*?<b style="left:81.47%"></b>.*?<td>81.47</td>', text)


def test_page_has_no_external_addresses_and_its_policy_allows_none(reports):
    text = reports["attention"].read_text()
    assert "default-src 'none'; img-src data:;" in text
    assert not re.search(r"""(src|href|action)\s*=\s*["'](?!#|data:)|@import|url\((?!#)""", text)


def test_unfinished_run_is_reported_from_its_newest_snapshot(tmp_path, data):
    folder = make_run(tmp_path / "run", data, random_net("attention"))
    finished = data_of(write_report(folder, ids=["val_0003"], count=0))["examples"]
    (folder / "final.pth").unlink()
    with pytest.raises(InputError, match=r"holds neither final\.pth nor a snapshot yet"):
        write_report(folder)
    state = random_net("attention").state_dict()
    save_snapshot(folder / "snapshot_iter_20.pth", Snapshot(20, state, {"state": {}, "param_groups": []}, {}, [], {}))
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"iteration": 40, "los')
    (shown,) = data_of(write_report(folder, ids=["val_0003"], count=0))["examples"]
    assert shown["group"] == "chosen" and shown["id"] == "val_0003"
    assert (shown["top_scores"] == finished[0]["top_scores"]).all()


def test_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json is missing: give the folder of a run"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json does not describe a training run"):
        write_report(tmp_path)


def test_run_without_evaluation_list_needs_one(tmp_path, data):
    folder = make_run(tmp_path / "run", data, random_net("one scale"))
    config = json.loads((folder / "config.json").read_text())
    config["run"]["val_list"] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"names no evaluation list, .*list/val\.txt: give one with --list"):
        write_report(folder)


def test_class_names_are_escaped(tmp_path, data):
    folder = make_run(tmp_path / "run", data, random_net("one scale"))
    names = ["</script><b>", *CLASSES[1:]]
    net = random_net("one scale")
    save_weights(folder / "final.pth", net.state_dict(), {"model": net.config(), "pool5a": False, "classes": names})
    page = write_report(folder, count=1)
    assert data_of(page)["classes"] == names
    assert page.read_text().count("</script>") == 2


def test_tool_writes_to_out(tmp_path, data):
    folder = make_run(tmp_path / "run", data, random_net("attention"))
    done = run_tool("report", folder, "--device=cpu", "--out", tmp_path / "page.html", "--count", "1")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{tmp_path}/page.html: 0\.\d MB\n", done.stdout)
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; skips if there is none, or fails with A2S_REQUIRE_BROWSER=1."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    missing = "no chromium on PATH" if not CHROMIUM else "no playwright" if sync_playwright is None else None
    if missing:
        assert os.environ.get("A2S_REQUIRE_BROWSER") != "1", missing
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, reports):
    """Opens the page of a net; at teardown, fails on console messages, page errors and network requests."""
    contexts, problems = [], []

    def open_page(kind: str = "attention", **device):
        context = browser.new_context(offline=True, **device)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        address = reports[kind].as_uri()

        def check_request(request) -> None:
            if request.url != address and not request.url.startswith(("data:", "blob:")):
                problems.append(request.url)

        page.on("request", check_request)
        page.goto(address)
        page.wait_for_selector("#scores tbody tr")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def read_out(page, table: str) -> list[list[str]]:
    """The cells of a readout table, without the bars."""
    cells = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    rows = page.locator(f"#{table} tbody tr").evaluate_all(cells)
    return [[text for text in row if text] for row in rows]


def expected(shown: dict, page: dict, x: int, y: int) -> tuple[list[list[str]], list[list[str]]]:
    """The expected readout of pixel (x, y) of an example, computed from the arrays."""
    row, column = (
        min(int(side / 8 + 0.5), count - 1) for side, count in zip((y, x), shown["top_classes"].shape[1:], strict=True)
    )
    at = (slice(None), row, column)

    def columns(*values):
        return [[text for text in texts if text] for texts in zip(*values, strict=True)]

    def fractions(values):
        return [f"{value / 65535:.3f}" for value in values]

    names = [CLASSES[label] for label in shown["top_classes"][at]]
    scores = [names, fractions(shown["top_scores"][at])]
    if shown["recalibration"] is not None:
        scores.append([f"{value:.3f}" for value in shown["recalibration"][at]])
    scales = [[f"scale {scale}" for scale in page["scales"]]]
    if shown["weights"] is not None:
        scales.append(fractions(shown["weights"][at]))
    scales += [[CLASSES[label] for label in shown["scale_classes"][at]], fractions(shown["scale_scores"][at])]
    if shown["winner"] is not None:
        scales.append(["wins" if shown["winner"][row, column] == index else "" for index in range(len(page["scales"]))])
    return columns(*scores), columns(*scales)


def hover(page, shown: dict, x: int, y: int) -> None:
    height, width = shown["size"]
    box = page.locator("#picture").bounding_box()
    point = {"x": (x + 0.5) * box["width"] / width, "y": (y + 0.5) * box["height"] / height}
    page.locator("#picture").hover(position=point)


@pytest.mark.parametrize("kind", NETS)
def test_hovering_shows_the_arrays_values(opened, reports, kind):
    values = data_of(reports[kind])
    page = opened(kind)
    shown = values["examples"][0]
    height, width = shown["size"]
    for x, y in [(0, 0), (83, 41), (width - 1, height - 1), (60, 100)]:
        hover(page, shown, x, y)
        scores, scales = expected(shown, values, x, y)
        assert page.locator("#where").inner_text().startswith(f"Pixel {x}, {y}.")
        assert read_out(page, "scores") == scores
        if kind == "one scale":
            assert page.locator("#scales").is_hidden()
        else:
            assert read_out(page, "scales") == scales
        names = [*CLASSES, *[None] * 249, "not labelled"]
        assert page.locator("#predicted").inner_text() == names[shown["labels"][y, x]]
        assert page.locator("#truth").inner_text() == names[shown["truth"][y, x]]


def test_images_and_layers_can_be_chosen(opened, reports):
    """The layers include the weights and the prediction of each scale; every layer gives another picture."""
    values = data_of(reports["attention"])
    page = opened()
    page.locator("#picker button").nth(2).click()
    page.wait_for_selector("#picker button:nth-child(1)[aria-pressed=true]")
    shown = values["examples"][2]
    hover(page, shown, 50, 50)
    assert read_out(page, "scores") == expected(shown, values, 50, 50)[0]
    names = page.locator("#layers label").all_inner_texts()
    weights, alone = (
        [f"{before}scale {scale}{after}" for scale in (1, 0.5)]
        for before, after in (("weight of ", ""), ("", " alone"))
    )
    assert names == ["prediction", "ground truth", "errors", *weights, *alone]
    pictures = set()
    for index, name in enumerate(names):
        page.locator("#layers label").nth(index).click()
        assert page.locator("#blended").inner_text() == f"60 % {name}"
        pictures.add(picture_of(page))
    assert len(pictures) == len(names)


def picture_of(page) -> str:
    return page.evaluate("document.getElementById('picture').toDataURL()")


def test_slider_blends_from_the_image_to_the_labels(opened, reports):
    """At 100 % a pixel has the colour of its label; at 0 % the layer is invisible."""
    values = data_of(reports["attention"])
    shown = values["examples"][0]
    page = opened()
    height, width = shown["size"]

    def colour_at(x: int, y: int) -> list[int]:
        script = """([x, y]) => { const canvas = document.getElementById('picture');
            const at = [x * canvas.width, y * canvas.height].map(Math.floor);
            return [...canvas.getContext('2d').getImageData(...at, 1, 1).data].slice(0, 3); }"""
        return page.evaluate(script, [(x + 0.5) / width, (y + 0.5) / height])

    slider = page.locator("#blend")
    slider.focus()
    page.keyboard.press("End")
    label = shown["labels"][30, 40]
    assert colour_at(40, 30) == values["colours"][label]
    full = picture_of(page)
    page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "99"
    assert picture_of(page) != full
    page.keyboard.press("Home")
    assert page.locator("#blended").inner_text() == "0 % prediction"
    bare = picture_of(page)
    page.locator("#layers label").nth(2).click()
    assert page.locator("#blended").inner_text() == "0 % errors"
    assert picture_of(page) == bare


def test_arrow_keys_move_by_a_point_and_are_spoken(opened, reports):
    values = data_of(reports["attention"])
    page = opened()
    shown = values["examples"][0]
    hover(page, shown, 80, 80)
    page.locator("#picture").focus()
    for key in ("ArrowRight", "ArrowUp", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator("#where").inner_text().startswith("Pixel 48, 72.")
    scores, scales = expected(shown, values, 48, 72)
    assert read_out(page, "scores") == scores
    assert scales[0][1] in page.locator("#spoken").inner_text()
    for _ in range(12):
        page.keyboard.press("Shift+ArrowUp")
    assert page.locator("#where").inner_text().startswith("Pixel 48, 0.")


def test_confusion_matrix_by_mouse_and_keyboard(opened, reports):
    counts = data_of(reports["attention"])["confusion"]["counts"]
    page = opened()
    page.locator("#matrix").focus()
    page.keyboard.press("ArrowRight")
    share = 100 * counts[0][1] / sum(counts[0])
    confused = f"background is classified as disc on {share:.2f} % of its pixels: {counts[0][1]:,}."
    assert page.locator("#matrix-readout").inner_text() == confused
    page.locator("#matrix").scroll_into_view_if_needed()
    frame = page.locator("#matrix .frame").bounding_box()
    page.mouse.move(frame["x"] + 5, frame["y"] + 5)
    correct = f"background is correct on {100 * counts[0][0] / sum(counts[0]):.2f} % of its pixels: {counts[0][0]:,}."
    assert page.locator("#matrix-readout").inner_text() == correct


def test_phone(opened, reports):
    """The page fits the width of a phone, and a tap works like hovering."""
    values = data_of(reports["attention"])
    shown = values["examples"][0]
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    picture = page.locator("#picture")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    height, width = shown["size"]
    page.touchscreen.tap(box["x"] + 50.5 * box["width"] / width, box["y"] + 30.5 * box["height"] / height)
    page.wait_for_function("document.getElementById('where').innerText.startsWith('Pixel 50, 30.')")
    assert read_out(page, "scores") == expected(shown, values, 50, 30)[0]
