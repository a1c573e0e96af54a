"""Compares trained runs in tables: the settings that differ, scores, losses and times."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from a2s_repro.errors import InputError, check_known, first_line
from a2s_repro.runtime.precision import precision_named
from a2s_repro.training.config import read_config
from a2s_repro.training.run_log import cost, read_log, read_validations
from a2s_repro.training.trainer import NO_EFFECT_ON_TRAINING

FORMS = ("markdown", "latex", "csv")
RUN_SETTINGS = ("init", "train_list", "precision", "caffe_streams")
"""Settings that affect training, in addition to the recipe and the seed."""


class TrainedRun(NamedTuple):
    """A run, read from its folder."""

    settings: dict[str, Any]
    """Settings that affect the result, except the seed."""
    losses: dict[str, float]
    """Mean losses over the last tenth of the log."""
    seconds: float
    scores: dict[str, Any]
    """Scores in the form of `evaluation.Result.summary`."""
    log: list[dict[str, Any]]
    """Lines of the log with losses, as `run_log.read_log` returns them."""
    validations: list[dict[str, Any]]
    """Lines of the log with validations, as `run_log.read_validations` returns them."""


def read_run(folder: str | os.PathLike, scores: str = "val.json") -> TrainedRun:
    """Reads a run's config.json, log.jsonl and `scores`, which a validation or `a2s evaluate --json` wrote.

    Raises InputError naming the file if one is missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not the folder of a run: leave it out.")
    config, results = read_config(folder), _read(folder / scores)
    try:
        return _of_files(folder, config, results)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder} does not hold the config.json, log.jsonl and {scores} of a scored run ({first_line(error)}): "
            "leave it out, or score its final.pth by `a2s evaluate --json`."
        ) from error


def _of_files(folder: Path, config: dict[str, Any], results: dict[str, Any]) -> TrainedRun:
    log = read_log(folder)
    lines = [line["losses"] for line in log]
    last = lines[-max(len(lines) // 10, 1) :]
    recipe = {name: value for name, value in config["recipe"].items() if name not in NO_EFFECT_ON_TRAINING}
    run = {name: config["run"][name] for name in RUN_SETTINGS}
    return TrainedRun(
        settings=recipe | run | {"precision": precision_named(run["precision"])},
        losses={name: _mean(losses[name] for losses in last) for name in last[0]},
        seconds=cost(folder).seconds,
        scores=_checked(results),
        log=log,
        validations=read_validations(folder),
    )


def _checked(scores: dict[str, Any]) -> dict[str, Any]:
    """The scores. Raises an error of any kind if they have another form than `evaluation.Result.summary`."""
    numbers = [scores["images"], scores["mean_iou"], scores["pixel_accuracy"], *scores["iou"].values()]
    if scores["mean_iou"] is not None and not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("a score is no number")
    for size in [scores["attention"]["by_size"]] if "by_size" in (scores["attention"] or {}) else []:
        len(scores["attention"]["scales"]), size["correlation"][0], size["quartiles"][0]["weights"][0]
    for depth in [scores["attention"]["by_depth"]] if "by_depth" in (scores["attention"] or {}) else []:
        depth["correlation"][0]
    return scores


class _Table(NamedTuple):
    titles: list[str]
    lines: list[list[str]]


class Row(NamedTuple):
    """Runs that differ only in the seed; `head` holds the settings that differ between rows."""

    head: list[str]
    runs: list[TrainedRun]


def comparison(runs: Sequence[TrainedRun], form: str = "markdown") -> str:
    """Tables of scores in per cent, losses and times; of IoU per class; of attention by size if measured.

    A row holds the means of runs that differ only in the seed, and the standard deviation of their scores; rows are in
    the order of first appearance. A last line gives the deviation between seeds over all rows.

    Args:
        form: "markdown", "latex" (for the package booktabs), or "csv": one table of scores and classes.

    Raises:
        InputError: runs that were scored on different sets, or an unknown form.
    """
    check_known("form", form, FORMS)
    if any(run.scores["mean_iou"] is None for run in runs):
        raise InputError("a run was scored on a list without a pixel to score: score all of them on one with labels.")
    if len({(run.scores["images"], tuple(run.scores["iou"])) for run in runs}) > 1:
        raise InputError("the runs were scored on different images or classes: score all of them on one list.")
    titles, rows = rows_of(runs)
    if form == "csv":
        return _csv(_scores(titles, rows), _by_class([], [row._replace(head=[]) for row in rows]))
    tables = [_scores(titles, rows), _by_class(titles, rows)]
    if measured := [row for row in rows if all("by_size" in (run.scores["attention"] or {}) for run in row.runs)]:
        tables.append(_by_size(titles, measured))
    write, remark = (_latex, "% ") if form == "latex" else (_markdown, "")
    return "\n\n".join([*(write(table, len(titles)) for table in tables), *(remark + line for line in _spread(rows))])


def rows_of(runs: Sequence[TrainedRun]) -> tuple[list[str], list[Row]]:
    """Titles of the settings that differ, and a row for the runs of each, in the order of first appearance."""
    groups: dict[str, list[TrainedRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    settings = [group[0].settings for group in groups.values()]
    differing = [name for name in settings[0] if any(other.get(name) != settings[0][name] for other in settings)]
    titles = [name.replace("_", " ") for name in differing]
    return titles, [
        Row([_spelled(group[0].settings.get(name)) for name in differing], group) for group in groups.values()
    ]


def _scores(titles: list[str], rows: list[Row]) -> _Table:
    most_first = sorted((list(row.runs[0].losses) for row in rows), key=len, reverse=True)
    names = list(dict.fromkeys(name for names in most_first for name in names))
    lines = []
    for head, runs in rows:
        scores = [100 * run.scores["mean_iou"] for run in runs]
        listed = ", ".join(f"{score:.2f}" for score in scores) if len(runs) > 1 else ""
        accuracies = [100 * run.scores["pixel_accuracy"] for run in runs]
        losses = {name: f"{_mean(run.losses[name] for run in runs):.3f}" for name in runs[0].losses}
        minutes = _mean(run.seconds for run in runs) / 60
        cells = [f"{_mean(scores):.2f}", _deviation(scores), listed]
        cells += [f"{_mean(accuracies):.2f}", _deviation(accuracies), *(losses.get(name, "") for name in names)]
        lines.append([*head, *cells, f"{minutes:.1f}"])
    columns = ["mIoU", "deviation of mIoU", "of each run", "pixel accuracy", "deviation of accuracy", *names, "minutes"]
    return _Table([*titles, *columns], lines)


def _by_class(titles: list[str], rows: list[Row]) -> _Table:
    classes = list(rows[0].runs[0].scores["iou"])
    lines = [
        row.head + [f"{100 * _mean(run.scores['iou'][name] for run in row.runs):.1f}" for name in classes]
        for row in rows
    ]
    return _Table([*titles, *classes], lines)


def _by_size(titles: list[str], rows: list[Row]) -> _Table:
    """One line per scale of a net: its mean weight by quartile of object area, and the rank correlations.

    The one with depth is empty if a run's scores lack it, as those of older versions.
    """
    lines = []
    for head, runs in rows:
        sizes = [run.scores["attention"]["by_size"] for run in runs]
        for index, scale in enumerate(runs[0].scores["attention"]["scales"]):
            quartiles = np.mean([[part["weights"][index] for part in size["quartiles"]] for size in sizes], 0)
            correlations = [
                _mean(size[name][index] for size in sizes) for name in ("correlation", "correlation_within_classes")
            ]
            cells = [*(f"{weight:.3f}" for weight in quartiles), *(f"{value:+.2f}" for value in correlations)]
            depths = [run.scores["attention"].get("by_depth") for run in runs]
            depth = f"{_mean(part['correlation'][index] for part in depths):+.2f}" if all(depths) else ""
            lines.append([*head, f"{scale:g}", *cells, depth])
    parts = rows[0].runs[0].scores["attention"]["by_size"]["quartiles"]
    areas = [f"{part['smallest']} to {part['largest']} px" for part in parts]
    return _Table([*titles, "weight of scale", *areas, "rank correlation", "within classes", "with depth"], lines)


def _spread(rows: list[Row]) -> list[str]:
    """The pooled standard deviation of mIoU between seeds, as a sentence; empty if no row has several runs."""
    repeated = [[100 * run.scores["mean_iou"] for run in row.runs] for row in rows if len(row.runs) > 1]
    if not repeated:
        return []
    freedom = sum(len(scores) - 1 for scores in repeated)
    deviation = np.sqrt(sum(np.var(scores) * len(scores) for scores in repeated) / freedom)
    return [
        f"Standard deviation of mIoU between seeds, over all rows with several runs ({freedom} degrees of freedom): "
        f"{deviation:.2f}."
    ]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{name} {_spelled(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_spelled, value))
    return "" if value is None else str(value)


def _deviation(values: Sequence[float]) -> str:
    """Sample standard deviation; empty for a single value."""
    return f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else ""


def _markdown(table: _Table, _: int) -> str:
    separator = ["---"] * len(table.titles)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (table.titles, separator, *table.lines))


def _latex(table: _Table, settings: int) -> str:
    """A tabular whose first columns, of settings, are flush left."""
    titles, *lines = (" & ".join(map(_in_latex, cells)) + r" \\" for cells in (table.titles, *table.lines))
    columns = "l" * settings + "r" * (len(table.titles) - settings)
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", titles, r"\midrule"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{tabular}"])


def _in_latex(text: str) -> str:
    """Text with LaTeX's special characters escaped, and minus signs of numbers."""
    if re.fullmatch(r"[-+]?[\d.]+", text):
        return f"${text}$" if text[0] in "-+" else text
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    return escaped.replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")


def _csv(*tables: _Table) -> str:
    """The tables side by side, whose rows are the same."""
    titles = [title for table in tables for title in table.titles]
    lines = [list(chain(*parts)) for parts in zip(*(table.lines for table in tables), strict=True)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([titles, *lines])
    return text.getvalue().rstrip("\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: train the run with --val-list, or score its final.pth by `a2s evaluate --json`."
        ) from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not a JSON file: write it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings or scores of a run: write it again.")
    return content
