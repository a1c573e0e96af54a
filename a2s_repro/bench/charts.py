"""Charts of docs/performance.md, drawn from the benchmarks' JSON files in a light and a dark theme."""

from pathlib import Path
from typing import NamedTuple

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from a2s_repro.files import replacing


class Theme(NamedTuple):
    """Colours of a chart; `series` has one per group of values."""

    background: str
    text: str
    grid: str
    series: tuple[str, ...]


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#d1d9e0", ("#0969da", "#bc4c00", "#8c959f")),
    "dark": Theme("#0d1117", "#e6edf3", "#3d444d", ("#58a6ff", "#f0883e", "#8b949e")),
}
INCHES = (9, 4.2)
DPI = 130


def draw(kind: str, measured: dict, path: Path) -> str:
    """Writes the chart of a result file as PATH-light.png and PATH-dark.png; returns its title."""
    for name, theme in THEMES.items():
        figure = Figure(figsize=INCHES, dpi=DPI, facecolor=theme.background, layout="constrained")
        axes = figure.add_subplot(facecolor=theme.background)
        title = CHARTS[kind](axes, measured, theme)
        figure.suptitle(title, color=theme.text, fontsize=11)
        axes.tick_params(colors=theme.text, which="both", length=0)
        axes.xaxis.label.set_color(theme.text)
        axes.grid(axis="x", color=theme.grid, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        legend = axes.get_legend()
        if legend is not None:
            legend.get_frame().set(facecolor=theme.background, edgecolor=theme.grid)
            for text in legend.get_texts():
                text.set_color(theme.text)
        with replacing(path.with_name(f"{path.name}-{name}.png")) as temporary:
            figure.savefig(temporary, metadata={"Software": None})
    return title


def kernel_chart(axes: Axes, measured: dict, theme: Theme) -> str:
    """One dot per measured case of an operator: eager time / fused time."""
    operators = list(dict.fromkeys(row["operator"] for row in measured["rows"]))
    for colour, (layout, shift) in zip(theme.series, (("nchw", -0.16), ("channels_last", 0.16)), strict=False):
        rows = [row for row in measured["rows"] if row["layout"] == layout]
        axes.scatter(
            [_eager_ratio(row) for row in rows],
            [operators.index(row["operator"]) + shift for row in rows],
            s=22,
            color=colour,
            alpha=0.55,
            linewidths=0,
            label=layout,
        )
    axes.axvline(1, color=theme.text, linewidth=1)
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_yticks(range(len(operators)), operators)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as eager PyTorch; every size, dtype and pass is a dot")
    axes.legend(loc="lower right", fontsize=9)
    return f"Fused operators against eager PyTorch: {_machine(measured)}"


def _eager_ratio(row: dict) -> float:
    """Eager time / fused time, from device times if measured."""
    if "device_seconds" in row:
        return row["device_seconds"]["eager"] / row["device_seconds"]["fused"]
    return row["ratio"]["eager"]["median"]


def model_chart(axes: Axes, measured: dict, theme: Theme) -> str:
    """Bars of seconds per image: the authors' Caffe if measured, eager PyTorch, and this package."""
    threads = max(row["threads"] for row in measured["rows"])
    bars: list[tuple[str, float, str]] = []
    for work, name in (("forward", "image of {test_crop}"), ("update", "update, crop of {crop}")):
        rows = [row for row in measured["rows"] if (row["work"], row["threads"]) == (work, threads)]
        rows = [row for row in rows if row["version"] in ("ours", "eager")]
        name = name.format(**measured)
        if rows[0].get("authors_seconds"):
            bars.append((f"{name}: authors' Caffe (other machine)", rows[0]["authors_seconds"], theme.series[2]))
        for row in sorted(rows, key=lambda row: -row["seconds"]["median"]):
            colour = theme.series[0] if row["version"] == "ours" else theme.series[1]
            version = "a2s_repro" if row["version"] == "ours" else "eager PyTorch"
            precision = "bfloat16" if row["precision"] == "bf16" else "float32"
            bars.append((f"{name}: {version}, {precision}", row["seconds"]["median"] / row["images"], colour))
    labels, seconds, colours = zip(*bars, strict=True)
    drawn = axes.barh(range(len(bars)), seconds, color=colours, height=0.7)
    axes.bar_label(drawn, [f"{value:.3g} s" for value in seconds], color=theme.text, padding=4, fontsize=9)
    axes.set_yticks(range(len(bars)), labels)
    axes.set_xlim(0, 1.12 * max(seconds))
    axes.invert_yaxis()
    axes.set_xlabel("seconds an image")
    return f"The whole net, three scales, full width: {_machine(measured)}"


def _machine(measured: dict) -> str:
    facts = measured["provenance"]
    if measured["device"] == "cuda":
        return f"{facts['gpu']}, {facts['date'][:10]}"
    cpu = facts["cpu"].replace("(R)", "").replace(" Processor", "")
    return f"{cpu}, {facts['threads']} threads, {facts['date'][:10]}"


CHARTS = {"kernels": kernel_chart, "model": model_chart}
"""Chart by kind of result."""
