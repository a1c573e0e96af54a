"""Renders the page: fills the template with tables, curves, and the data of its interactive parts."""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from a2s_repro.analysis.report.examples import FRACTION, Example
from a2s_repro.analysis.report.run_folder import RunFolder
from a2s_repro.data.images import IGNORE_LABEL
from a2s_repro.data.voc import palette
from a2s_repro.inference.evaluation import Result
from a2s_repro.recipes import RECIPES
from a2s_repro.training.run_log import best_of

STYLE = "page.css"
SCRIPTS = ("page.js", "layers.js", "explorer.js", "confusion_matrix.js")
"""Scripts in the order of execution."""
WORST = 12
"""Number of confusions listed."""
POINTS = 600
"""Maximum number of points of a curve; a longer log is thinned to every second, third ... line."""
COLOUR_MAP = "viridis"
_INK = "#010203"
"""Placeholder in matplotlib's SVG for the page's text colour (currentColor)."""
_CURVE_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.15,
    **{f"{part}color": _INK for part in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.", "grid.")},
}


def render(run: RunFolder, list_file: Path, result: Result, examples: Sequence[tuple[str, Example]]) -> str:
    """The whole page as HTML; `examples` are pairs of the name of a group and an example."""
    folder = files("a2s_repro.analysis.report")
    style, *scripts = ((folder / name).read_text(encoding="utf-8") for name in (STYLE, *SCRIPTS))
    script = "\n".join(scripts)
    data = json.dumps(_data(run, result, examples), separators=(",", ":")).replace("<", "\\u003c")
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(run.path.resolve().name),
        net=escape(_described(run)),
        tiles=_tiles(run, list_file, result),
        class_table=_class_table(run, result),
        confusion_table=_confusion_table(run, result),
        curves=_curves(run.log, run.validations),
        settings=_settings(run),
        footer=_footer(run, list_file, result, len(data)),
        data=data,
        style=style,
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _data(run: RunFolder, result: Result, examples: Sequence[tuple[str, Example]]) -> dict[str, Any]:
    counting = result.confusion.classes
    ramp = matplotlib.colormaps[COLOUR_MAP](np.arange(256), bytes=True)[:, :3]
    return {
        "classes": run.segmenter.classes,
        "colours": palette().tolist(),
        "ignore": IGNORE_LABEL,
        "scales": list(run.segmenter.model.scales),
        "fraction": FRACTION,
        "ramp": ramp.ravel().tolist(),
        "confusion": {
            "labels": counting.tolist(),
            "counts": result.confusion.counts[np.ix_(counting, counting)].tolist(),
        },
        "examples": [{"group": group, **shown.plain()} for group, shown in examples],
    }


def _described(run: RunFolder) -> str:
    recipe, net = run.config["recipe"], run.segmenter.model
    scales = ", ".join(f"{scale:g}" for scale in net.scales)
    words = [type(net).__name__, f"scales {scales}" if len(net.scales) > 1 else "one scale"]
    words += [f"merged by {recipe['merge']}"] if recipe["merge"] else []
    words += ["extra supervision"] if recipe["extra_supervision"] else []
    words += [f"width {recipe['width']:g}"] if recipe["width"] != 1 else []
    known = RECIPES.get(recipe["name"])
    changed = known is not None and known.published and not recipe["published"]
    return f"{', '.join(words)}. Recipe {recipe['name']}{', changed' if changed else ''}."


def _tiles(run: RunFolder, list_file: Path, result: Result) -> str:
    scores = result.confusion

    def paper(metric: str) -> str:
        """The paper's numbers for a metric, with their tables."""
        published = run.config["recipe"]["published"]
        return "; ".join(f"paper ({table}): {value}" for table, name, value in published if name == metric)

    def per_cent(score: float) -> str:
        return f"{100 * score:.2f} %" if scores.pixels else "no pixel to score"

    tiles = [
        ("mean IoU", per_cent(scores.mean_iou), paper("mIoU")),
        ("pixel accuracy", per_cent(scores.pixel_accuracy), paper("pixel accuracy")),
        ("class accuracy", per_cent(scores.mean_class_accuracy), ""),
        ("images", str(result.images), list_file.name),
    ]
    if run.log:
        seconds = sum(line["seconds"] for line in run.log)
        whole = run.config["recipe"]["max_iter"]
        tiles.append(("iterations", str(run.log[-1]["iteration"] + 1), f"of {whole}, {_duration(seconds)}"))
    if result.attention:
        for scale, mean, std in zip(result.attention.scales, result.attention.mean, result.attention.std, strict=True):
            tiles.append((f"weight, scale {scale:g}", f"{mean:.3f}", f"± {std:.3f}"))
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{value}<small>{escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )


def _class_table(run: RunFolder, result: Result) -> str:
    """A table with a bar per class and for the mean; a mark shows the paper's number if there is one."""
    published = {metric: value for _, metric, value in run.config["recipe"]["published"] if not isinstance(value, str)}

    def row(kind: str, name: str, iou: float, accuracy: float, metric: str, remark: str = "") -> str:
        paper = published.get(metric)
        mark, number = ("", "") if paper is None else (f'<b style="left:{paper:.2f}%"></b>', f"{paper:.2f}")
        bar = f'<td class="wide"><span class="bar"><i style="width:{100 * iou:.2f}%"></i>{mark}</span></td>'
        cells = f"<td>{100 * iou:.2f}</td><td>{number}</td><td>{100 * accuracy:.2f}</td>"
        name += f" <small>{remark}</small>" if remark else ""
        return f'<tr class="{kind}"><th scope="row">{name}</th>{bar}{cells}</tr>'

    scores, names = result.confusion, run.segmenter.classes
    lines = [
        row(
            "class",
            _name(run, label),
            scores.iou[label],
            scores.class_accuracy[label],
            f"IoU {names[label]}",
            result.mark(label),
        )
        for label in scores.classes
    ]
    lines.append(row("mean", "mean", scores.mean_iou, scores.mean_class_accuracy, "mIoU"))
    note = "The mark on a bar is the paper's number." if published else "The paper has no number for these settings."
    table = _table(["", "", "IoU %", "paper %", "accuracy %"], lines)
    kind = "published" if published else "unpublished"
    if len(scores.absent):
        note = f"Classes without a true pixel count 0 in the mean. {note}"
    return f'<p>Computed over all pixels of the set, as in PASCAL VOC. {note}</p><div class="{kind}">{table}</div>'


def _confusion_table(run: RunFolder, result: Result) -> str:
    """A table of the most frequent confusions, by pixels."""
    counts = result.confusion.counts[np.ix_(result.confusion.classes, result.confusion.classes)]
    names = [_name(run, label) for label in result.confusion.classes]
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    lines = []
    for index in np.argsort(-wrong, axis=None, kind="stable")[:WORST]:
        truth, predicted = np.unravel_index(index, wrong.shape)
        if pixels := wrong[truth, predicted]:
            shares = (pixels / wrong.sum(), pixels / counts[truth].sum())
            cells = "".join(f"<td>{100 * share:.1f}</td>" for share in shares)
            lines.append(f'<tr><th scope="row">{names[truth]}</th><th>{names[predicted]}</th>{cells}</tr>')
    return _table(["ground truth", "predicted", "% of all errors", "% of the class"], lines)


def _curves(log: Sequence[dict[str, Any]], validations: Sequence[dict[str, Any]]) -> str:
    """Curves of the losses, the learning rate and the scores of validations over the iterations."""
    if not log:
        return "<p>The run has no log.</p>"
    log = log[:: -(-len(log) // POINTS)]
    iterations = [line["iteration"] for line in log]
    losses = {name: [line["losses"][name] for line in log] for name in log[0]["losses"]}
    rate = {"rate": [line["lr"] for line in log]}
    spans = ", ".join(f"{name} {values[0]:.3f} to {values[-1]:.3f}" for name, values in losses.items())
    several = " of the merged scores and of each scale" if len(losses) > 1 else ""
    return (
        '<div class="curves">'
        f"{_curve(iterations, losses, 'loss', f'Losses{several}, averaged as displayed: {spans}.')}"
        f"{_curve(iterations, rate, 'learning rate', 'Learning rate of the layers with multiplier 1.')}"
        f"{_validation_curve(validations)}</div>"
    )


def _validation_curve(validations: Sequence[dict[str, Any]]) -> str:
    """mIoU and pixel accuracy of the validations; empty if none has a score."""
    best = best_of(validations)
    if best is None:
        return ""
    scored = [line for line in validations if line["validation"]["mean_iou"] is not None]
    scores = {
        title: [100 * line["validation"][name] for line in scored]
        for title, name in (("mIoU", "mean_iou"), ("pixel accuracy", "pixel_accuracy"))
    }
    caption = f"Validation: the best mIoU is {100 * best['mean_iou']:.2f} %, after {best['iteration']} iterations."
    return _curve([line["iteration"] for line in scored], scores, "%", caption)


def _curve(x: Sequence[float], series: dict[str, Sequence[float]], label: str, caption: str) -> str:
    with matplotlib.rc_context(_CURVE_STYLE):
        figure = Figure(figsize=(4.8, 2.9), layout="constrained")
        axis = figure.subplots()
        for name, values in series.items():
            axis.plot(x, values, label=name, linewidth=1.3)
        axis.set(xlabel="iteration", ylabel=label, ylim=(0, None))
        axis.grid()
        if len(series) > 1:
            axis.legend(frameon=False)
        file = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    svg = file.getvalue().replace(_INK, "currentColor")
    svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _settings(run: RunFolder) -> str:
    config = run.config
    origin = {name: config[name] for name in ("origin", "argv", "versions", "git_commit") if name in config}
    return "".join(
        f"<details><summary>{title}</summary><pre>{escape(json.dumps(values, indent=1))}</pre></details>"
        for title, values in (("Recipe", config["recipe"]), ("Run", config["run"]), ("Origin", origin))
    )


def _footer(run: RunFolder, list_file: Path, result: Result, size: int) -> str:
    return (
        f"{escape(run.weights.name)} on the {result.images} images of {escape(str(list_file))}. The explorer stores "
        f"scores and attention weights of every 8th pixel (for images above 640 pixels every 16th, 24th ...), "
        f"rounded to 1/{FRACTION}. These and the pictures take {size / 2**20:.1f} MB. The page loads no other files."
    )


def _table(titles: Sequence[str], rows: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _name(run: RunFolder, label: int) -> str:
    """A class's colour and name as HTML."""
    red, green, blue = palette()[label]
    swatch = f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'
    return swatch + escape(run.segmenter.classes[label])


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
