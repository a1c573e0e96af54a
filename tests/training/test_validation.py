"""Validation during training: its scores are those of `a2s evaluate`, and the training is as without it."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import a2s_repro
from a2s_repro.checkpoint import load_weights
from a2s_repro.checkpoint.snapshots import load_snapshot, newest_snapshot
from a2s_repro.data.images import read_label, write_label
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.inference import evaluate
from a2s_repro.inference.evaluation import Result
from a2s_repro.training import Run, train
from a2s_repro.training.run_log import RunLog, best_of, read_log, read_validations
from tests import processes
from tests.processes import make_files

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

RECIPE = processes.RECIPE.changed(max_iter=5, iter_size=1, base_lr=0.05)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("shapes"), num_train=4, validated=True)


@pytest.fixture(scope="module")
def events() -> list[dict]:
    """What the hook of the run `validated` gets."""
    return []


@pytest.fixture(scope="module")
def validated(files, events, tmp_path_factory) -> Run:
    run = Run(out=tmp_path_factory.mktemp("runs") / "validated", workers=0, validate_every=2, **files)
    outcome = train(RECIPE, run, events.append)
    assert outcome.validation.images == 2
    return run


def losses(folder: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in read_log(folder)]


def test_the_training_is_bit_equal_with_and_without(validated, files, tmp_path):
    """Data, dropout and weights; the nets have dropout, and the last decoded batches wait during a validation."""
    plain = Run(out=tmp_path / "plain", workers=1, **files | {"val_list": None})
    train(RECIPE, plain)
    assert losses(validated.out) == losses(plain.out) and len(losses(plain.out)) == 5
    ours, theirs = (load_snapshot(newest_snapshot(run.out)) for run in (validated, plain))
    assert all(torch.equal(ours.model[name], tensor) for name, tensor in theirs.model.items())
    assert not (plain.out / "val.json").exists() and not (plain.out / "best.pth").exists()


def test_its_scores_are_those_of_evaluate(validated):
    lines = read_validations(validated.out)
    assert [line["iteration"] for line in lines] == [2, 4, 5]
    scores = json.loads((validated.out / "val.json").read_text())
    segmenter = a2s_repro.load(validated.out / "final.pth")
    items = read_list(validated.val_list, validated.data_root)
    summary = evaluate(segmenter.model, items, pad_to=RECIPE.test_crop, classes=segmenter.classes).summary(
        segmenter.classes
    )
    assert scores == {"iteration": 5, "best": best_of(lines), **json.loads(json.dumps(summary))}
    assert lines[-1]["validation"] == {name: scores[name] for name in lines[-1]["validation"]}
    assert set(lines[0]["validation"]) >= {"mean_iou", "pixel_accuracy", "iou", "attention"}


def test_the_best_weights_are_kept_and_stand_for_the_run(validated):
    best = best_of(read_validations(validated.out))
    meta = load_weights(validated.out / "best.pth").meta
    assert {name: meta[name] for name in best} == best
    assert a2s_repro.load(validated.out).meta == meta
    scores = [line["validation"]["mean_iou"] for line in read_validations(validated.out)]
    assert best["mean_iou"] == max(scores)


def test_tensorboard_gets_scores_and_pictures(validated):
    events = EventAccumulator(str(validated.out / "tensorboard/validation")).Reload()
    assert [event.step for event in events.Scalars("mIoU")] == [2, 4, 5]
    assert {"pixel accuracy", "IoU/disc", "attention/mean at scale 0.5"} <= set(events.Tags()["scalars"])
    assert len(events.Tags()["images"]) == 2


def test_a_validation_that_the_log_has_is_not_made_again(validated, files, tmp_path, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("a2s_repro.training.validation.evaluate", never)
    assert train(RECIPE, dataclasses.replace(validated, resume="auto")).validation is None


def test_a_reopened_log_keeps_the_validation_of_its_start(tmp_path):
    scores = {"images": 1, "mean_iou": 0.5, "pixel_accuracy": 0.5, "mean_class_accuracy": 0.5}
    scores |= {"iou": {"sky": 0.5}, "attention": None, "confusion": [[1]]}
    with RunLog(tmp_path, 0) as log:
        for iteration in range(1, 4):
            log.write_validation(iteration, scores, 1, {})
    with RunLog(tmp_path, 2) as log:
        assert [line["iteration"] for line in log.validations] == [1, 2]


def test_labels_of_the_validation_list_are_checked_before_the_first_iteration(files, tmp_path):
    item = read_list(files["val_list"], files["data_root"])[0]
    wrong = item.label.with_name("wrong.png")
    write_label(wrong, np.full_like(read_label(item.label, 6), 77))
    val_list = tmp_path / "val.txt"
    val_list.write_text(f"/JPEGImages/{item.image.name} /{wrong.parent.name}/{wrong.name}\n")
    with pytest.raises(InputError, match=r"wrong\.png holds values that are no labels"):
        train(RECIPE, Run(out=tmp_path / "run", workers=0, **files | {"val_list": val_list}))


def test_a_signal_ends_a_validation_which_the_resumed_run_makes_again(validated, files, tmp_path, monkeypatch):
    def signalled(*arguments: object, **settings: object) -> Result:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **settings)

    run = dataclasses.replace(validated, out=tmp_path / "stopped")
    with monkeypatch.context() as patched:
        patched.setattr("a2s_repro.training.validation.evaluate", signalled)
        outcome = train(RECIPE, run)
    assert (outcome.interrupted, outcome.iterations) == (signal.SIGTERM, 2)
    assert not read_validations(run.out) and not (run.out / "val.json").exists()
    train(RECIPE, dataclasses.replace(run, resume="auto"))
    assert losses(run.out) == losses(validated.out)
    ours, theirs = ([line["validation"] for line in read_validations(each.out)] for each in (run, validated))
    assert ours == theirs


@pytest.mark.parametrize(("every", "val_list"), [(0, True), (5, False)])
def test_impossible_validations_are_refused(files, tmp_path, every, val_list):
    given = files if val_list else files | {"val_list": None}
    with pytest.raises(InputError, match=rf"validating every {every} iterations is not possible: give at least 1 and"):
        train(RECIPE, Run(out=tmp_path / "run", workers=0, validate_every=every, **given))


def test_the_training_ends_when_validations_get_no_better(validated, files, tmp_path):
    """With a rate of almost 0 the second validation cannot be better; a resumed run ends at once."""
    recipe = RECIPE.changed(base_lr=1e-30, max_iter=50)
    run = Run(out=tmp_path / "run", workers=0, validate_every=1, patience=2, **files)
    outcome = train(recipe, run)
    assert (outcome.iterations, outcome.interrupted) == (3, 0)
    assert load_weights(run.out / "final.pth").meta["iteration"] == 3
    assert train(recipe, dataclasses.replace(run, resume="auto")).iterations == 3


def test_a_hook_gets_every_line_of_the_log(validated, events):
    assert events == [json.loads(line) for line in (validated.out / "log.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events if "epoch" in event] == [0.5, 1.0, 1.5, 2.0, 2.5]
