"""Results of the benchmarks: JSON files under benchmarks/results, and the tables and charts made from them."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from a2s_repro.errors import InputError
from a2s_repro.files import replacing

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "tables.md")
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"<!-- (?P<name>[\w-]+)(?: (?P<variant>\w+))? -->\n.*?<!-- end -->", re.DOTALL)
"""Marked parts of a page: `<!-- KIND-DEVICE -->` holds the full table; with `selected` after the name, selected rows;
with `chart`, the chart."""


def write_results(out: Path, kind: str, device: str, results: dict) -> Path:
    """Writes KIND-DEVICE-DATE.json, with the provenance's date, into the folder `out`; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{kind}-{device}-{results['provenance']['date'][:10]}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"device": device, **results}, indent=1) + "\n")
    return path


def write_docs(pages: Sequence[Path] = PAGES, results: Path = RESULTS) -> Sequence[Path]:
    """Regenerates every marked part of the pages from the newest KIND-DEVICE-*.json; returns the pages.

    A table without results becomes "Not measured yet."; a chart without results is omitted. Charts are written in a
    light and a dark theme to the folder `images` next to the page.

    Raises:
        InputError: a page is missing (an installed package has none).
    """
    for page in pages:
        if not page.exists():
            raise InputError(f"there is no {page}: run this from a checkout of the project.")
        text = MARKED.sub(lambda match, page=page: _filled(match, page, results), page.read_text())
        with replacing(page) as temporary:
            temporary.write_text(text)
    return pages


def _filled(match: re.Match, page: Path, results: Path) -> str:
    name, variant = match["name"], match["variant"]
    kind = name.partition("-")[0]
    files = sorted(results.glob(f"{name}-*.json"))
    if not files:
        body = "" if variant == "chart" else "Not measured yet.\n"
    else:
        measured = json.loads(files[-1].read_text())
        link = f"[{files[-1].name}]({Path(os.path.relpath(files[-1], page.parent)).as_posix()})"
        if variant == "chart":
            body = _picture(kind, measured, page.parent / "images" / name)
        elif variant == "selected":
            body = SELECTED[kind](measured, link)
        else:
            body = TABLES[kind](measured, link)
    return f"<!-- {name}{f' {variant}' if variant else ''} -->\n{body}<!-- end -->"


def _picture(kind: str, measured: dict, path: Path) -> str:
    """Draws a chart in both themes; returns HTML that selects by the reader's theme."""
    from a2s_repro.bench import charts  # imported here, because matplotlib is slow to import

    title = charts.draw(kind, measured, path)
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="images/{path.name}-dark.png">\n'
        f'  <img src="images/{path.name}-light.png" alt="{title}">\n'
        "</picture>\n"
    )


def kernel_table(measured: dict, link: str, rows: Sequence[dict] | None = None) -> str:
    """Markdown table of a result file of bench_kernels, for all rows or the given ones."""
    facts, bandwidth = measured["provenance"], measured["copy_bandwidth"]
    machine = facts["gpu"] if measured["device"] == "cuda" else f"{facts['cpu']}, {facts['threads']} threads"
    lines = [
        f"{machine}; torch {facts['torch']}; {facts['date'][:10]}; copies {bandwidth / 1e9:.1f} GB/s; sources "
        f"{facts['csrc']} ({link}).",
        "",
        "| operator | pass | dtype | layout | maps | size | fused ms | eager / fused | compiled / fused "
        "| peak / results, fused and eager | of copy bandwidth |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in measured["rows"] if rows is None else rows:
        seconds = row["seconds"]["fused"]
        device = row.get("device_seconds")
        times = f"{seconds['median'] * 1e3:.3f} ({seconds['low'] * 1e3:.3f} to {seconds['high'] * 1e3:.3f})"
        if device:
            times += f", device {device['fused'] * 1e3:.4f}"
        peaks = " and ".join(f"{row['peak_bytes'][name] / row['result_bytes']:.2f}" for name in ("fused", "eager"))
        share = row["floor_bytes"] / (device["fused"] if device else seconds["median"]) / bandwidth
        cells = [
            *(row["operator"], row["pass"], row["dtype"], row["layout"]),
            " ".join("x".join(map(str, shape)) for shape in row["maps"]),
            *(str(row["size"]), times, _ratio(row, "eager"), _ratio(row, "compiled"), peaks, f"{100 * share:.0f} %"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def largest_rows(measured: dict) -> list[dict]:
    """The largest float32 NCHW row of each operator, by bytes moved."""
    largest: dict[str, dict] = {}
    for row in measured["rows"]:
        if (row["dtype"], row["layout"]) == ("float32", "nchw"):
            best = largest.setdefault(row["operator"], row)
            if row["floor_bytes"] > best["floor_bytes"]:
                largest[row["operator"]] = row
    return list(largest.values())


def _ratio(row: dict, name: str) -> str:
    if name not in row["ratio"]:
        return ""
    ratio = row["ratio"][name]
    text = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
    if "device_seconds" in row:
        text += f", device {row['device_seconds'][name] / row['device_seconds']['fused']:.2f}"
    return text


def model_table(measured: dict, link: str, rows: Sequence[dict] | None = None) -> str:
    """Markdown table of a result file of bench_model, for all rows or the given ones."""
    gpu = measured["device"] == "cuda"
    loader = measured["loader"]
    lines = [
        f"{_origin(measured, link)} Images of {measured['test_crop']}, crops of {measured['crop']} pixels. The loader "
        f"alone: {loader['samples_per_second']['median']:.0f} samples/s with {loader['workers']} workers on drawn "
        "pictures.",
        "",
        "| work | threads | version | precision | ms an image | images/s | eager / this | "
        + ("peak memory | 6000 x 30 images |" if gpu else "authors' Caffe / this |"),
        "|---" * (9 if gpu else 8) + "|",
    ]
    for row in measured["rows"] if rows is None else rows:
        seconds = {name: value / row["images"] for name, value in row["seconds"].items()}
        ratio = row.get("eager_ratio")  # none of the rows from files to files
        cells = [
            *(row["work"], str(row["threads"]), row["version"], _precision(row["precision"])),
            f"{1e3 * seconds['median']:.1f} ({1e3 * seconds['low']:.1f} to {1e3 * seconds['high']:.1f})",
            f"{1 / seconds['median']:.2f}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "",
        ]
        if gpu:
            schedule = f"{6000 * 30 * seconds['median'] / 60:.1f} minutes" if row["work"] == "update" else ""
            cells += [f"{row['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in row else "", schedule]
        else:
            theirs = row.get("authors_seconds")
            cells.append(f"{theirs / row['seconds']['median']:.2f} (of {theirs} s)" if theirs else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def most_threads(measured: dict) -> list[dict]:
    """The rows measured with the most threads."""
    threads = max(row["threads"] for row in measured["rows"])
    return [row for row in measured["rows"] if row["threads"] == threads]


def conv2d_table(measured: dict, link: str) -> str:
    """Markdown table of a result file of bench_conv2d."""
    lines = [
        f"{_origin(measured, link)} Crops of {measured['crop']} pixels, {measured['provenance']['threads']} threads.",
        "",
        "| layer | channels | map | dilation | images | pass | algorithm | ms | torch / this "
        "| error against float64, this and torch |",
        "|---" * 10 + "|",
    ]
    for row in measured["rows"]:
        seconds, ratio, deviation = row["seconds"]["ours"], row["ratio"], row["deviation"]
        cells = [
            *(row["name"], f"{row['channels']} to {row['filters']}", f"{row['side']}x{row['side']}"),
            *(str(row["dilation"]), str(row["batch_size"]), row["pass"], "Winograd" if row["winograd"] else "torch"),
            f"{1e3 * seconds['median']:.1f} ({1e3 * seconds['low']:.1f} to {1e3 * seconds['high']:.1f})",
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            f"{deviation['ours']:.1e} and {deviation['torch']:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def precision_table(measured: dict, link: str) -> str:
    """Markdown table of a result file of bench_precision."""
    names = list(measured["runs"])
    losses = list(measured["runs"][names[0]]["losses"][0]["values"])
    lines = [
        f"{_origin(measured, link)} {measured['settings']}.",
        "",
        f"| iteration | {' | '.join(f'{loss}, {_precision(name)}' for loss in losses for name in names)} |",
        "|---" * (1 + len(losses) * len(names)) + "|",
    ]
    for rows in zip(*(measured["runs"][name]["losses"] for name in names), strict=True):
        values = (f"{row['values'][loss]:.4f}" for loss in losses for row in rows)
        lines.append(f"| {rows[0]['iteration']} | {' | '.join(values)} |")
    scores = ", ".join(f"{_precision(name)} {100 * run['mean_iou']:.2f} %" for name, run in measured["runs"].items())
    return "\n".join([*lines, "", f"mIoU on the validation pictures: {scores}."]) + "\n"


def _precision(name: str) -> str:
    """`caffe` is the name of fp32 in older result files."""
    return "fp32" if name == "caffe" else name


def _origin(measured: dict, link: str) -> str:
    facts = measured["provenance"]
    machine = facts["gpu"] if measured["device"] == "cuda" else f"{facts['cpu']}, {facts['cores']} cores"
    return f"{machine}; torch {facts['torch']}; {facts['date'][:10]} ({link})."


TABLES = {"kernels": kernel_table, "model": model_table, "conv2d": conv2d_table, "precision": precision_table}
"""Full table by kind of result."""

SELECTED = {
    "kernels": lambda measured, link: kernel_table(measured, link, largest_rows(measured)),
    "model": lambda measured, link: model_table(measured, link, most_threads(measured)),
}
"""Selected rows for docs/performance.md, by kind of result."""
