"""Scores against manual counts, segmentation against its single steps, and the tool against the files it writes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from a2s_repro import ops
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.demo import CLASSES, make_demo_data
from a2s_repro.data.images import read_pair
from a2s_repro.data.lists import read_list
from a2s_repro.data.normalization import MEAN_BGR
from a2s_repro.data.voc import CLASSES as VOC_CLASSES
from a2s_repro.data.voc import palette
from a2s_repro.errors import InputError
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.evaluation import (
    AttentionStatistics,
    ConfusionMatrix,
    Result,
    evaluate,
)
from a2s_repro.inference.segmenter import Segmenter, class_names, load_model
from a2s_repro.models import DeepLabLargeFOV, ShareNet, Widths
from tests.processes import run_tool


def thin(model_class, *arguments):
    """A thin net with random weights in all layers, so that its predictions vary over an image."""
    torch.manual_seed(0)
    model = model_class(len(CLASSES), *arguments, widths=Widths().scaled(1 / 32)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter)
    return model


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("demo"), num_train=1, num_val=3)


@pytest.fixture(scope="module")
def items(demo):
    return read_list(demo / "ImageSets/Segmentation/val.txt", demo)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    model = thin(ShareNet, (1, 0.5))
    path = tmp_path_factory.mktemp("model") / "final.pth"
    save_weights(path, model.state_dict(), {"model": model.config(), "pool5a": False, "classes": list(CLASSES)})
    return path


def labels(*values):
    return np.array([values], np.uint8)


def test_counts_are_summed_over_the_set_before_division():
    """Class 1 has 1 of 1 pixels correct in one image and 1 of 4 in the other: 2/5 over the set, 5/8 by image."""
    scores = ConfusionMatrix(2)
    scores.update(labels(1, 0, 0, 0), labels(1, 0, 0, 0))
    scores.update(labels(1, 1, 1, 1), labels(1, 0, 0, 0))
    assert scores.counts.tolist() == [[3, 0], [3, 2]]
    assert scores.iou.tolist() == [3 / 6, 2 / 5]
    assert scores.mean_iou == pytest.approx((3 / 6 + 2 / 5) / 2, abs=1e-15)
    assert scores.class_accuracy.tolist() == [1, 2 / 5]
    assert scores.mean_class_accuracy == pytest.approx(0.7, abs=1e-15)
    assert scores.pixel_accuracy == 5 / 8


def test_absent_classes_have_iou_0_and_ignored_pixels_are_excluded():
    scores = ConfusionMatrix(4)
    scores.update(labels(0, 255, 1, 255), labels(0, 1, 2, 3))
    assert scores.iou.tolist() == [1, 0, 0, 0]
    assert scores.mean_iou == 0.25
    assert scores.pixel_accuracy == 0.5


def test_an_empty_set_scores_zero_without_a_warning():
    scores = ConfusionMatrix(3)
    assert (scores.mean_iou, scores.pixel_accuracy, scores.mean_class_accuracy) == (0, 0, 0)


@pytest.mark.parametrize(("truth", "predicted"), [(labels(2), labels(0)), (labels(0), labels(2))])
def test_labels_beyond_the_classes_are_refused(truth, predicted):
    with pytest.raises(InputError, match="beyond the 2 classes"):
        ConfusionMatrix(2).update(truth, predicted)


def test_attention_statistics_are_over_all_pixels():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, *size, generator=generator) for size in ((5, 7), (20, 3))]
    statistics = AttentionStatistics((1, 0.5))
    for weights in maps:
        statistics.update(weights.numpy())
    pixels = torch.cat([weights.flatten(1) for weights in maps], 1).double().numpy()
    np.testing.assert_allclose(statistics.mean, pixels.mean(1), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, pixels.std(1), rtol=1e-12)


def test_attention_statistics_resolve_a_spread_of_a_millionth():
    weights = torch.full((2, 10, 10), 0.5)
    weights[0, 0] += 1e-6
    statistics = AttentionStatistics((1, 0.5))
    statistics.update(weights.numpy())
    np.testing.assert_allclose(statistics.std, weights.double().flatten(1).std(1, correction=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "padded"), [(40, 65, (65, 65)), (66, 64, (97, 65)), (129, 131, (129, 161))]
)
def test_segmentation_pads_at_the_bottom_and_right(height, width, padded):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    model = thin(ShareNet)
    segmentation = Segmenter(model, pad_to=65)(image)

    framed = np.tile(MEAN_BGR, (*padded, 1))  # the mean colour becomes 0
    framed[:height, :width] = image
    with torch.no_grad():
        prediction = model(torch.from_numpy((framed - MEAN_BGR).transpose(2, 0, 1)[None]))
    scores = ops.interp(prediction.scores, padded)[0, :, :height, :width]
    assert segmentation.labels.dtype == np.uint8
    assert (segmentation.labels == scores.argmax(0).numpy()).all()
    assert len(np.unique(segmentation.labels)) > 1
    weights = torch.from_numpy(segmentation.weights)
    torch.testing.assert_close(weights.sum(0), torch.ones(height, width))
    torch.testing.assert_close(weights, ops.interp(prediction.weights, padded)[0, :, :height, :width])


def test_a_net_without_attention_has_no_weights(items):
    model = thin(DeepLabLargeFOV)
    result = evaluate(model, items[:1], pad_to=65)
    assert result.attention is None
    assert result.attention_table() == ""
    assert result.summary(CLASSES)["attention"] is None


def test_tool_scores_agree_with_the_written_labels(demo, items, model_file, tmp_path):
    words = ["--device=cpu", "--model", model_file, "--data-root", demo, "--pad-to", "161"]
    words += ["--list", demo / "ImageSets/Segmentation/val.txt", "--out", tmp_path, "--json", tmp_path / "val.json"]
    done = run_tool("evaluate", *words)
    assert done.returncode == 0, done.stderr

    truth, predicted = [], []
    for item in items:
        png = Image.open(tmp_path / f"results/VOC2012/Segmentation/comp6_val_cls/{item.id}.png")
        assert png.mode == "P"
        assert png.getpalette() == palette().ravel().tolist()
        truth.append(read_pair(item, len(CLASSES))[1].ravel())
        predicted.append(np.asarray(png).ravel())
    truth, predicted = np.concatenate(truth), np.concatenate(predicted)
    predicted, truth = predicted[truth != 255], truth[truth != 255]
    iou = [
        ((truth == label) & (predicted == label)).sum() / ((truth == label) | (predicted == label)).sum()
        for label in range(len(CLASSES))
    ]

    report = json.loads((tmp_path / "val.json").read_text())
    assert report["images"] == 3
    assert list(report["iou"]) == list(CLASSES)
    assert list(report["iou"].values()) == iou
    assert report["mean_iou"] == pytest.approx(np.mean(iou), abs=1e-15)
    assert report["pixel_accuracy"] == (truth == predicted).mean()
    assert report["attention"]["scales"] == [1, 0.5]
    assert sum(report["attention"]["mean"]) == pytest.approx(1, abs=1e-6)
    assert f"mIoU {100 * np.mean(iou):.2f} %, pixel accuracy {100 * (truth == predicted).mean():.2f} %" in done.stdout
    assert all(name in done.stdout for name in CLASSES)
    assert "attention weight at scale 0.5: mean" in done.stdout


def test_labels_are_written_from_the_first_label_on(items, tmp_path):
    """ADE20K's server takes grey PNGs of 1 to 150; the scores are the same."""
    model = thin(ShareNet, (1, 0.5))
    results = [
        evaluate(model, items, pad_to=161, label_folder=tmp_path / str(first), first_label=first) for first in (0, 1)
    ]
    assert (results[0].confusion.counts == results[1].confusion.counts).all()
    for item in items:
        zero, one = (Image.open(tmp_path / f"{first}/{item.id}.png") for first in (0, 1))
        assert (zero.mode, one.mode) == ("P", "L")
        assert (np.asarray(one) == np.asarray(zero) + 1).all()
    with pytest.raises(InputError, match="the first label is 251; 6 labels from it must lie in 0 to 255"):
        evaluate(model, items, first_label=251)


def test_the_crf_refines_the_scored_labels(items):
    model, crf = thin(ShareNet, (1, 0.5)), CRF(iterations=2)
    segmenter, expected = Segmenter(model, pad_to=161), ConfusionMatrix(len(CLASSES))
    for item in items:
        image, truth = read_pair(item, len(CLASSES))
        expected.update(truth, segmenter(image, crf=crf).labels)
    assert (evaluate(model, items, pad_to=161, crf=crf).confusion.counts == expected.counts).all()
    assert (evaluate(model, items, pad_to=161).confusion.counts != expected.counts).any()


def test_two_processes_give_the_scores_of_one(demo, items, model_file, tmp_path):
    """Three images on two processes: one evaluates two, the other one."""
    words = ["--model", model_file, "--data-root", demo, "--pad-to", "161", "--attention-by-size"]
    words += ["--list", demo / "ImageSets/Segmentation/val.txt", "--json", tmp_path / "val.json"]
    words += ["--short-sides", "60", "100", "--device", "cpu"]
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on the number of threads
    done = run_tool("evaluate", *words, environment=environment, ranks=2)
    assert done.returncode == 0, done.stderr
    model, meta = load_model(model_file)
    alone = evaluate(model, items, short_sides=(60, 100), classes=meta["classes"], by_size=True)
    together = json.loads((tmp_path / "val.json").read_text())
    attention, expected = together.pop("attention"), alone.summary(CLASSES)
    assert together == {name: value for name, value in expected.items() if name != "attention"}
    for name in ("mean", "std"):
        np.testing.assert_allclose(attention[name], expected["attention"][name], rtol=1e-6)
    assert attention["by_size"]["objects"] == expected["attention"]["by_size"]["objects"]
    np.testing.assert_allclose(
        attention["by_size"]["correlation"], expected["attention"]["by_size"]["correlation"], atol=1e-6
    )
    assert done.stdout.count("mIoU") == 1


def test_tool_segments_a_set_without_labels(demo, model_file, tmp_path):
    (tmp_path / "test.txt").write_text("val_0001\n")
    words = ["--model", model_file, "--data-root", demo, "--list", tmp_path / "test.txt"]
    words += ["--device", "cpu", "--no-labels", "--pad-to", "65", "--out", tmp_path]
    done = run_tool("evaluate", *words)
    assert done.returncode == 0, done.stderr
    assert "mIoU" not in done.stdout
    assert (tmp_path / "results/VOC2012/Segmentation/comp6_test_cls/val_0001.png").is_file()


def test_unusable_models_are_refused_with_the_reason(model_file, tmp_path):
    model, meta = load_model(model_file)
    path = tmp_path / "x.pth"
    save_weights(path, model.state_dict(), {"pool5a": False})
    with pytest.raises(InputError, match=r"x.pth holds initial weights, not a complete net"):
        load_model(path)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "fc8.bias"}
    save_weights(path, state, meta)
    with pytest.raises(InputError, match=r"x.pth does not fit the net that it describes: .*fc8.bias"):
        load_model(path)
    save_weights(path, model.state_dict(), meta | {"model": meta["model"] | {"num_classes": 2**31}})
    with pytest.raises(InputError, match=r"x.pth does not fit .*fc8.weight is \d+x\d+x1x1, the net's 2147483648x"):
        load_model(path)  # a net of this many classes takes 16 GB
    with pytest.raises(InputError, match="device nonsense cannot be used"):
        load_model(model_file, "nonsense")


def test_class_names_come_from_file_meta_or_voc(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    assert class_names(2, {"classes": ["a", "b"]}, tmp_path / "classes.txt") == ["sky", "road"]
    assert class_names(2, {"classes": ["a", "b"]}) == ["a", "b"]
    assert class_names(21, {}) == list(VOC_CLASSES)
    assert class_names(3, {}) == ["0", "1", "2"]
    with pytest.raises(InputError, match=r"classes.txt names 2 classes, but the net has 3"):
        class_names(3, {}, tmp_path / "classes.txt")


def test_void_classes_are_excluded_from_means():
    """Output 1 is not a class: predicting it only reduces the score of class 2."""
    scores = ConfusionMatrix(3, void_classes=(1,))
    scores.update(labels(0, 0, 2, 2), labels(0, 0, 1, 2))
    assert scores.iou.tolist() == [1, 0, 0.5]
    assert (scores.mean_iou, scores.mean_class_accuracy, scores.pixel_accuracy) == (0.75, 0.75, 0.75)
    result = Result(1, scores, None)
    assert result.summary(["sky", "void", "road"])["iou"] == {"sky": 1, "road": 0.5}
    assert "void" not in result.table(["sky", "void", "road"])


def test_scores_by_their_published_names():
    scores = ConfusionMatrix(2)
    scores.update(labels(0, 0, 1, 1), labels(0, 0, 0, 1))
    result = Result(1, scores, None)
    assert result.score("IoU upper arms", ["sky", "upper arms"]) == 50
    assert result.score("pixel accuracy", ["sky", "upper arms"]) == 75
    assert result.score("mIoU", ["sky", "upper arms"]) == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    with pytest.raises(InputError, match=r"'head' is not one of the classes \(sky, upper arms\)"):
        result.score("IoU head", ["sky", "upper arms"])


def test_outputs_named_void_are_excluded_from_means(items):
    model = thin(DeepLabLargeFOV)
    counting, voided = (
        evaluate(model, items[:1], pad_to=65, classes=names) for names in (CLASSES, (*CLASSES[:-1], "void"))
    )
    assert voided.confusion.counts.tolist() == counting.confusion.counts.tolist()
    assert voided.confusion.mean_iou == pytest.approx(counting.confusion.iou[:-1].mean(), abs=1e-15)


def result_of(*pairs: tuple[np.ndarray, np.ndarray], classes: int) -> Result:
    scores = ConfusionMatrix(classes)
    for truth, predicted in pairs:
        scores.update(truth, predicted)
    return Result(len(pairs), scores, None)


def test_absent_and_unpredicted_classes_are_marked():
    """Labels 0 and 255 of a mask: "thing" has no true pixel, which version 0.1 showed as IoU 0 without a word."""
    names = ["background", "thing", "stuff"]
    result = result_of((labels(0, 2, 255), labels(0, 0, 1)), classes=3)
    lines = result.table(names).splitlines()
    assert lines[2].endswith("no true pixel, never predicted") and lines[3].endswith("  never predicted")
    assert lines[1].split() == ["background", "50.00", "100.00"]
    assert lines[-1] == "The mean counts 1 of 3 classes as 0 that have no true pixel."
    summary = result.summary(names)
    assert (summary["no_true_pixel"], summary["never_predicted"]) == (["thing"], ["thing", "stuff"])
    assert (summary["pixels"], summary["mean_iou"]) == (2, pytest.approx(0.5 / 3))


def test_a_set_without_a_pixel_to_score_has_no_scores():
    result = result_of((labels(255, 255), labels(0, 1)), classes=2)
    assert result.table(["a", "b"]) == "there is no pixel to score: every label is 255, which is ignored"
    summary = result.summary(["a", "b"])
    assert (summary["pixels"], summary["mean_iou"], summary["iou"]) == (0, None, {"a": None, "b": None})
    with pytest.raises(InputError, match="no pixel to score"):
        result.score("mIoU", ["a", "b"])
