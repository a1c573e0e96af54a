"""docs/api.md and docs/backbones.md: every snippet runs unchanged, and its comments are true."""

import torch
from PIL import Image

from tests.markdown import snippets


def run(heading: str, number: int = 0) -> dict:
    names: dict = {}
    exec(snippets("docs/api.md", heading)[number], names)
    return names


def test_load_and_segment(reader, monkeypatch):
    monkeypatch.chdir(reader)
    names = run("Load and segment")
    assert names["labels"].shape == (90, 120) and names["weights"].shape == (2, 90, 120)
    assert set(names["names"]) <= set(names["segmenter"].classes)
    assert Image.open("street.png").size == Image.open("street_overlay.jpg").size == (120, 90)


def test_models():
    names = run("The models")
    prediction = names["prediction"]
    assert prediction.scores.shape == (2, 21, 17, 17) and prediction.weights.shape == (2, 3, 17, 17)
    torch.testing.assert_close(prediction.weights.sum(1), torch.ones(2, 17, 17))
    assert [tuple(scores.shape[2:]) for scores in prediction.scale_scores] == [(17, 17), (13, 13), (9, 9)]
    assert names["same"].state_dict().keys() == names["net"].state_dict().keys()


def test_any_backbone():
    names = run("Any backbone")
    assert names["net"].grid_step == 16 and names["prediction"].scores.shape == (2, 21, 13, 13)
    assert list(names["losses"]) == ["loss", "loss_res15", "loss_res1", "loss_res05"]


def test_a_module_of_ones_own_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippets("docs/backbones.md", "A module of yours")[0], names)
    assert names["segmenter"].model.backbone is names["backbone"] and names["segmenter"].model.scales == (1.5, 1, 0.5)


def test_fine_tuning_in_ten_lines_changes_the_thawed_layers(reader, monkeypatch):
    monkeypatch.chdir(reader)
    names = run("Fine-tuning in ten lines")
    before, after = torch.load("model.pth", weights_only=True)["state_dict"], names["net"].state_dict()
    changed = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"fc8", "att_conv1", "att_fc"} and torch.isfinite(names["loss"])


def test_weights_files(reader, monkeypatch):
    monkeypatch.chdir(reader)
    weights = run("Weights files")["weights"]
    assert (reader / "model.safetensors").exists() and len(weights.meta["classes"]) == 6


def test_fine_tuning_changes_every_trainable_layer(reader, monkeypatch):
    monkeypatch.chdir(reader)
    names = run("Fine-tuning by Caffe's solver")
    before, after = (torch.load(f"{name}.pth", weights_only=True)["state_dict"] for name in ("model", "tuned"))
    assert not [key for key in before if torch.equal(before[key], after[key])]
    assert all(torch.isfinite(loss) for loss in names["losses"].values())


def test_training_by_a_recipe(reader, monkeypatch):
    monkeypatch.chdir(reader)
    outcome = run("Fine-tuning by Caffe's solver", 1)["outcome"]
    assert outcome.iterations == 4 and (reader / outcome.file).exists()


def test_evaluation(reader, monkeypatch):
    monkeypatch.chdir(reader)
    result = run("Evaluation")["result"]
    assert 0 <= result.confusion.mean_iou <= 1 and len(result.confusion.iou) == 6
