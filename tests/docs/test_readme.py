"""README: its size, its snippets, and its speed figure."""

import json
import re

import numpy as np
import torch
from torch import nn

from a2s_repro.bench.tables import RESULTS
from tests.markdown import snippets
from tests.paths import ROOT

README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.encode()) <= 7000


def test_named_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup", "test", "demo", "smoke"} <= set(re.findall(r"\bmake ([\w-]+)", README)) <= targets


def test_segmenting(reader, monkeypatch):
    monkeypatch.chdir(reader)
    names: dict = {}
    exec(snippets("README.md", "Segment")[0], names)
    result = names["result"]
    assert result.labels.shape == (90, 120) and result.labels.dtype == np.uint8
    assert result.weights.shape == (2, 90, 120) and result.weights.dtype == np.float32


def test_the_backbones_snippet():
    (snippet,) = snippets("README.md", "Your backbone at several scales")
    names: dict = {"backbone": nn.Conv2d(3, 4, 3, 8, 1)}
    exec(snippet, names)
    assert names["net"].eval()(torch.zeros(1, 3, 33, 33)).weights.shape == (1, 3, 7, 7)


def newest(kind: str) -> dict:
    return json.loads(sorted(RESULTS.glob(f"{kind}-cpu-*.json"))[-1].read_text())


def test_the_figure_of_speed_is_the_newest_measurement_of_the_snippet():
    measured = newest("kernels")
    maps = [[8, 21, side, side] for side in (65, 49, 33)] + [[8, 3, 65, 65]]
    case = ("scale_merge", "forward+backward", "float32", "nchw", maps, 65)
    keys = ("operator", "pass", "dtype", "layout", "maps", "size")
    (row,) = (row for row in measured["rows"] if tuple(row[key] for key in keys) == case)
    figure, threads, date = re.search(
        r"`scale_merge` is ([\d.]+) times as fast as eager.*?(\d+) threads,\s+([\d-]+)", README, re.DOTALL
    ).groups()
    assert float(figure) == round(row["ratio"]["eager"]["median"], 1)
    assert (int(threads), date) == (measured["provenance"]["threads"], measured["provenance"]["date"][:10])


def test_the_ranges_in_the_status_are_the_newest_measurements():
    merges = [row["ratio"]["eager"] for row in newest("kernels")["rows"] if row["operator"] == "scale_merge"]
    float32 = ("ours", "caffe"), ("ours", "fp32")
    nets = [row["eager_ratio"] for row in newest("model")["rows"] if (row["version"], row["precision"]) in float32]
    ranges = re.findall(r"\[([\d.]+) to ([\d.]+) times\]", README)
    for (low, high), ratios in zip(ranges, (merges, nets), strict=True):
        medians = [ratio["median"] for ratio in ratios]
        assert (float(low), float(high)) == (round(min(medians), 1), round(max(medians), 1))
