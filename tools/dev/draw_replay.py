"""Draws README's picture: the losses recorded from the authors' Caffe, the same computed here, and their difference."""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from a2s_repro.bench.charts import THEMES, Theme
from a2s_repro.files import replacing
from a2s_repro.replay.recording import read_recording
from a2s_repro.replay.replay import Training

ROOT = Path(__file__).resolve().parents[2]
CASE, RUN = "v_att3_esupv", "B"
GATE = 1e-5
LABELS = {"loss": "merged scores", "loss_res1": "scale 1", "loss_res075": "scale 0.75", "loss_res05": "scale 0.5"}


def losses() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each loss (iterations, passes) from Caffe and from here, in float64."""
    recording = read_recording(ROOT / "tests" / "golden" / "nets", CASE)
    training = Training(recording, RUN, torch.float64, "cpu")
    rows = []
    for iteration in range(recording.iterations):
        rows.append(training.passes(iteration)[0])
        training.update(iteration)
    return {name: (recording.runs[RUN].tops[name], np.stack([row[name] for row in rows])) for name in LABELS}


def draw(values: dict[str, tuple[np.ndarray, np.ndarray]], theme: Theme, path: Path) -> None:
    figure = Figure(figsize=(10, 3.4), dpi=130, facecolor=theme.background, layout="constrained")
    curves, differences = figure.subplots(1, 2)
    colours = (*theme.series[:2], "#1a7f37" if theme is THEMES["light"] else "#3fb950", theme.series[2])
    for (name, (theirs, ours)), colour in zip(values.items(), colours, strict=True):
        iterations = np.arange(len(theirs))
        curves.plot(iterations, ours.mean(1), color=colour, linewidth=1.3, label=LABELS[name])
        curves.plot(iterations, theirs.mean(1), "o", color=colour, markersize=4.5, fillstyle="none")
        differences.plot(iterations, np.abs(ours - theirs).max(1), "o", color=colour, markersize=4.5)
    curves.set_title("loss: circles from the authors' Caffe, lines from a2s_repro", fontsize=10)
    differences.set_title("difference of the two", fontsize=10)
    differences.axhline(GATE, color=theme.text, linewidth=1, linestyle="--")
    differences.annotate("the test fails above this line", (0, GATE), (0, 4), textcoords="offset points", fontsize=9)
    differences.set_yscale("log")
    differences.set_ylim(1e-8, 1e-4)
    curves.legend(fontsize=9, frameon=False, labelcolor=theme.text)
    for axes in (curves, differences):
        axes.set(xlabel="iteration", facecolor=theme.background, xticks=range(0, len(iterations), 5))
        axes.tick_params(colors=theme.text, which="both", length=0)
        axes.grid(color=theme.grid, linewidth=0.6)
        axes.spines[:].set_visible(False)
        for text in (axes.title, axes.xaxis.label, *axes.texts):
            text.set_color(theme.text)
    with replacing(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder (default: docs/images)")
    arguments = parser.parse_args()
    values = losses()
    for name, theme in THEMES.items():
        draw(values, theme, arguments.out / f"replay-{name}.png")


if __name__ == "__main__":
    main()
