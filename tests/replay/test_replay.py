"""Replay of recorded runs: the end-to-end run from its seed, failures, own recordings, and the tool."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from a2s_repro.caffe.conversion import from_caffe, random_init
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.lists import Item
from a2s_repro.errors import InputError
from a2s_repro.models import AttentionHead, Widths
from a2s_repro.recipes import Recipe
from a2s_repro.replay.flips import Decision, first_flip, recorded_decisions
from a2s_repro.replay.gates import Comparison, Report
from a2s_repro.replay.recorder import record
from a2s_repro.replay.recording import read_recording
from a2s_repro.replay.replay import replay
from tests.paths import GOLDEN
from tests.processes import run_tool


def failed(report: Report) -> list[tuple[str, str]]:
    return [(comparison.kind, comparison.name) for comparison in report.worst() if not comparison.passed]


@pytest.fixture(scope="module")
def small_copy(tmp_path_factory):
    """The single-scale record reduced to its first two iterations, without final weights and histories."""
    folder = tmp_path_factory.mktemp("nets")
    for name in ("data.npz", "blobs_shared.npz", "init_single.caffemodel"):
        shutil.copy(GOLDEN / "nets" / name, folder)
    arrays = dict(np.load(GOLDEN / "nets/net_i_single.npz"))
    kept = {key: value for key, value in arrays.items() if not key.startswith(("final_", "hist_"))}
    for key in ("order", "losses_A", "losses_B"):
        kept[key] = kept[key][:2]
    np.savez(folder / "net_small.npz", **kept)
    return folder


def altered(folder: Path, to: Path, **changes: np.ndarray | None) -> Path:
    """A copy of the small record with changed arrays; None removes an array."""
    shutil.copytree(folder, to)
    arrays = dict(np.load(to / "net_small.npz")) | changes
    np.savez(to / "net_small.npz", **{key: value for key, value in arrays.items() if value is not None})
    return to


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_end_to_end_run_follows_from_its_seed(dtype):
    """Fillers, order, crops, mirrors, masks and the next word are equal; losses agree within 1e-5 (float32: 5e-5)."""
    report = replay(read_recording(GOLDEN / "e2e"), dtype)
    assert not failed(report)
    assert {c.kind for c in report.comparisons} == {"stream", "gradient", "loss", "accuracy", "weight"}
    assert max(c.absolute for c in report.comparisons if c.kind == "stream") == 0
    assert max(c.absolute for c in report.comparisons if c.kind == "loss") < 1e-4


def test_another_seed_is_another_run():
    recording = read_recording(GOLDEN / "e2e")
    other = dataclasses.replace(recording.streams, seed=1702)
    assert ("stream", "att_conv1.weight") in failed(replay(dataclasses.replace(recording, streams=other)))


def test_the_first_unit_that_flips_is_named():
    """The bias of the ReLU input closest below 0 is raised just enough to make that unit positive."""
    recording = read_recording(GOLDEN / "nets", "iii_max3_esupv")
    net = recording.net(torch.float64)
    image = recording.batch(0, 1)[0].double()

    def decisions() -> list[Decision]:
        with recorded_decisions(net) as made:
            net(image)
        return made

    right = decisions()
    assert len(right) == 3 * (15 + 5) + 1, "three streams of 15 ReLUs and 5 pools, and the maximum over the scales"
    assert first_flip(right, right) is None
    relu = next(decision for decision in right if decision.layer == "conv5_3")
    nearest = relu.values.where(relu.values < 0, -torch.inf).argmax()
    unit = tuple(int(index) for index in np.unravel_index(nearest.item(), relu.values.shape))
    margin = -relu.values[unit].item()
    with torch.no_grad():
        net.conv5_3.bias[unit[1]] += 1.001 * margin
    flip = first_flip(decisions(), right)
    assert flip.unit == f"conv5_3[{', '.join(map(str, unit))}] of the 9x9 map"
    assert flip.margin == pytest.approx(margin)


def test_an_unknown_recorded_blob_is_a_failure(small_copy, tmp_path):
    folder = altered(small_copy, tmp_path / "more", **{"blob|fc9": np.ones((2, 5, 9, 9), np.float32)})
    assert failed(replay(read_recording(folder, "small"))) == [("blob", "fc9")]


def test_a_wrong_value_fails_and_is_listed_first(small_copy, tmp_path):
    losses = np.load(small_copy / "net_small.npz")["losses_B"].copy()
    losses[1, 0, 0] += 1e-3
    recording = read_recording(altered(small_copy, tmp_path / "off", losses_B=losses), "small")
    report = replay(recording)
    (first, *others) = report.worst()
    assert (first.kind, first.run, first.iteration, first.passed) == ("loss", "B", 1, False)
    assert first.absolute == pytest.approx(1e-3, rel=1e-2)
    assert all(comparison.passed for comparison in others) and not report.passed
    assert report.table().splitlines()[1].startswith("FAILED  loss        B    1     1.0e-03")
    assert replay(recording, rtol=1e-2).passed


@pytest.mark.parametrize("deviation, gate, passed", [(float("nan"), None, False), (float("nan"), 1.0, False)])
def test_nan_never_passes(deviation, gate, passed):
    assert Comparison("loss", "loss", deviation, deviation, gate).passed is passed


@pytest.mark.parametrize(
    "merge, scales, net",
    [
        (None, (1,), {}),
        ("average", (1, 0.5), {}),
        ("attention", (1, 0.75, 0.5), {}),
        (None, (1,), {"skip_net": True, "pool5a": True}),
        ("max", (1, 0.5), {"skip_net": True}),
        ("attention", (1, 0.5), {"skip_net": True, "head": AttentionHead("fc8", 3, 1)}),
        ("attention", (1, 0.5), {"head": AttentionHead("fc6", 1)}),
    ],
    ids=str,
)
def test_our_own_record_replays(tmp_path, merge, scales, net):
    widths = Widths().scaled(1 / 32)
    weights = from_caffe(random_init(widths, seed=3), "init").weights.state_dict
    recipe = Recipe(
        "test", num_classes=4, classifier="fc8_test", scales=scales, merge=merge, extra_supervision=len(scales) > 1,
        dropout=0, width=1 / 32, crop=65, batch_size=1, iter_size=2, max_iter=3, stepsize=2, base_lr=1e-4,
        weight_decay=5e-3, shared_decay="once", lr_mult={"fc8": 1}, **net,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    items = []
    for name, side in (("a", 70), ("small", 64), ("b", 65)):
        item = Item(name, tmp_path / f"{name}.png", tmp_path / f"{name}_label.png")
        cv2.imwrite(str(item.image), rng.integers(0, 256, (side, 80, 3), np.uint8))
        cv2.imwrite(str(item.label), rng.integers(0, 4, (side, 80), np.uint8))
        items.append(item)
    torch.manual_seed(0)
    net = recipe.net()
    net.load_state_dict(weights, strict=False)
    written = record(tmp_path / "record", "ours", net, recipe, items)
    assert written.name == "net_ours.npz"

    recording = read_recording(tmp_path / "record")
    assert recording.config == net.config()
    report = replay(recording)
    assert {c.kind for c in report.comparisons} == {"blob", "gradient", "loss", "accuracy", "weight", "history"}
    assert not failed(report)
    assert max(c.deviation for c in report.comparisons) < 1e-7, "float32 rounding of what was recorded"
    with pytest.raises(InputError, match="already holds a record"):
        record(tmp_path / "record", "again", net, recipe, items)


def test_the_tool_prints_a_table_or_json(small_copy):
    table = run_tool("replay_caffe", small_copy, "--case", "small")
    assert table.returncode == 0, table.stderr
    assert table.stdout.splitlines()[0].split()[:3] == ["result", "kind", "run"]
    assert "\ni_single" not in table.stdout and table.stdout.splitlines()[-1].startswith("small in float64: passed")
    report = json.loads(run_tool("replay_caffe", small_copy, "--json", "--dtype", "float32").stdout)
    assert report["passed"] and report["dtype"] == "float32"
    assert {"kind", "name", "absolute", "relative", "gate", "passed"} <= report["comparisons"][0].keys()


def test_the_tool_fails_with_status_1(small_copy):
    strict = run_tool("replay_caffe", small_copy, "--rtol", "1e-12")
    assert strict.returncode == 1 and "FAILED" in strict.stdout


def test_the_tool_records(tmp_path):
    init, root = tmp_path / "init.pth", tmp_path / "data"
    weights = from_caffe(random_init(Widths().scaled(1 / 32), seed=3), "init").weights
    save_weights(init, weights.state_dict, weights.meta)
    root.mkdir()
    rng = np.random.default_rng(0)
    cv2.imwrite(str(root / "a.png"), rng.integers(0, 256, (65, 65, 3), np.uint8))
    cv2.imwrite(str(root / "a_label.png"), rng.integers(0, 21, (65, 65), np.uint8))
    (root / "list.txt").write_text("/a.png /a_label.png\n")
    done = run_tool("replay_caffe",
        tmp_path / "out", "--record", "--case", "ours", "--init", init, "--data-root", root, "--train-list",
        root / "list.txt", "--width", 1 / 32, "--crop", 65, "--max-iter", 1, "--batch-size", 1, "--iter-size", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"wrote {tmp_path / 'out/net_ours.npz'}\n")
    assert replay(read_recording(tmp_path / "out")).passed


@pytest.mark.parametrize(
    "args, words",
    [
        (["--case", "nothing"], "no case 'nothing': give --case, one of i_single, ii_avg2"),
        ([], "several cases: give --case"),
        (["--device", "cuda:99"], "device cuda:99 cannot be used"),
    ],
)
def test_bad_arguments_are_refused(args, words):
    done = run_tool("replay_caffe", GOLDEN / "nets", *args)
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_an_incomplete_record_is_refused(small_copy, tmp_path):
    with pytest.raises(InputError, match="lacks 'losses_A'"):
        read_recording(altered(small_copy, tmp_path / "lacking", losses_A=None), "small")
    (tmp_path / "net_x.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read"):
        read_recording(tmp_path, "x")


def test_comments_and_the_test_phase_of_a_prototxt_do_not_change_the_record(tmp_path):
    """72 of the authors' 386 files hold layers that are commented out; version 0.1 took them for layers of the net."""
    shutil.copytree(GOLDEN / "e2e", tmp_path / "e2e")
    for sibling in ("nets", "data"):
        (tmp_path / sibling).symlink_to(GOLDEN / sibling)
    path = tmp_path / "e2e/train.prototxt"
    commented = '# layer { name: "pool5a" }\n#  name: "fc6_concat" eltwise_param { operation: MAX }\n'
    other_phase = 'layer { name: "pool5a" include { phase: TEST } transform_param { crop_size: 513 mean_value: 1 } }\n'
    path.write_text(commented + path.read_text().replace("mean_value: ", "mean_value:") + other_phase)
    given, expected = read_recording(tmp_path / "e2e"), read_recording(GOLDEN / "e2e")
    assert given.config == expected.config and np.array_equal(given.mean, expected.mean)
    assert given.streams.dataset.crop == expected.streams.dataset.crop
