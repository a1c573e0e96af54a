"""docs/performance.md: its tables, made from the newest results of each kind under benchmarks/results."""

import json
import re
from pathlib import Path

from a2s_repro.errors import InputError
from a2s_repro.files import replacing

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"


def write_results(out: Path, kind: str, device: str, results: dict) -> Path:
    """Writes KIND-DEVICE-DATE.json into the folder `out`, the date being the provenance's, and returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{kind}-{device}-{results['provenance']['date'][:10]}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"device": device, **results}, indent=1) + "\n")
    return path


def write_docs(docs: Path = DOCS, results: Path = RESULTS) -> Path:
    """Replaces what stands between `<!-- NAME -->` and `<!-- end NAME -->` by the table of the newest NAME-*.json.

    A table whose results are missing says so.

    Raises:
        InputError: there is no such page (an installed package has none).
    """
    if not docs.exists():
        raise InputError(f"there is no {docs}: run this from a checkout of the project.")

    def filled(match: re.Match) -> str:
        name = match["name"]
        files = sorted(results.glob(f"{name}-*.json"))
        table = TABLES[name.partition("-")[0]]
        body = table(json.loads(files[-1].read_text()), files[-1].name) if files else "Not measured yet.\n"
        return f"<!-- {name} -->\n{body}<!-- end {name} -->"

    page = re.sub(r"<!-- (?P<name>[\w-]+) -->\n.*?<!-- end (?P=name) -->", filled, docs.read_text(), flags=re.DOTALL)
    with replacing(docs) as temporary:
        temporary.write_text(page)
    return docs


def kernel_table(found: dict, file: str) -> str:
    """Markdown of one result file of tools/bench_kernels.py."""
    facts, bandwidth = found["provenance"], found["copy_bandwidth"]
    machine = facts["gpu"] if found["device"] == "cuda" else f"{facts['cpu']}, {facts['threads']} threads"
    lines = [
        f"{machine}; torch {facts['torch']}; {facts['date'][:10]}; copies {bandwidth / 1e9:.1f} GB/s; sources "
        f"{facts['csrc']} ([{file}](../benchmarks/results/{file})).",
        "",
        "| operator | pass | dtype | layout | maps | size | fused ms | eager / fused | compiled / fused "
        "| peak / results, fused and eager | of copy bandwidth |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
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


def _ratio(row: dict, name: str) -> str:
    if name not in row["ratio"]:
        return ""
    ratio = row["ratio"][name]
    text = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
    if "device_seconds" in row:
        text += f", device {row['device_seconds'][name] / row['device_seconds']['fused']:.2f}"
    return text


def model_table(found: dict, file: str) -> str:
    """Markdown of one result file of tools/bench_model.py."""
    gpu = found["device"] == "cuda"
    loader = found["loader"]
    lines = [
        f"{_origin(found, file)} Images of {found['test_crop']}, crops of {found['crop']} pixels. The loader alone: "
        f"{loader['samples_per_second']['median']:.0f} samples/s with {loader['workers']} workers on drawn pictures.",
        "",
        "| work | threads | version | precision | ms an image | images/s | eager / this | "
        + ("peak memory | 6000 x 30 images |" if gpu else "authors' Caffe / this |"),
        "|---" * (9 if gpu else 8) + "|",
    ]
    for row in found["rows"]:
        seconds = {name: value / row["images"] for name, value in row["seconds"].items()}
        ratio = row["eager_ratio"]
        cells = [
            *(row["work"], str(row["threads"]), row["version"], row["precision"]),
            f"{1e3 * seconds['median']:.1f} ({1e3 * seconds['low']:.1f} to {1e3 * seconds['high']:.1f})",
            f"{1 / seconds['median']:.2f}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        ]
        if gpu:
            schedule = f"{6000 * 30 * seconds['median'] / 60:.1f} minutes" if row["work"] == "update" else ""
            cells += [f"{row['peak_bytes'] / 2**30:.2f} GiB", schedule]
        else:
            theirs = row["authors_seconds"]
            cells.append(f"{theirs / row['seconds']['median']:.2f} (of {theirs} s)" if theirs else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def conv2d_table(found: dict, file: str) -> str:
    """Markdown of one result file of tools/bench_conv2d.py."""
    lines = [
        f"{_origin(found, file)} Crops of {found['crop']} pixels, {found['provenance']['threads']} threads.",
        "",
        "| layer | channels | map | dilation | images | pass | by | ms | torch / this "
        "| from the exact result, this and torch |",
        "|---" * 10 + "|",
    ]
    for row in found["rows"]:
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


def precision_table(found: dict, file: str) -> str:
    """Markdown of one result file of tools/bench_precision.py."""
    names = list(found["runs"])
    losses = list(found["runs"][names[0]]["losses"][0]["values"])
    lines = [
        f"{_origin(found, file)} {found['settings']}.",
        "",
        f"| iteration | {' | '.join(f'{loss}, {name}' for loss in losses for name in names)} |",
        "|---" * (1 + len(losses) * len(names)) + "|",
    ]
    for rows in zip(*(found["runs"][name]["losses"] for name in names), strict=True):
        values = (f"{row['values'][loss]:.4f}" for loss in losses for row in rows)
        lines.append(f"| {rows[0]['iteration']} | {' | '.join(values)} |")
    scores = ", ".join(f"{name} {100 * run['mean_iou']:.2f} %" for name, run in found["runs"].items())
    return "\n".join([*lines, "", f"mIoU on the validation pictures: {scores}."]) + "\n"


def _origin(found: dict, file: str) -> str:
    facts = found["provenance"]
    machine = facts["gpu"] if found["device"] == "cuda" else f"{facts['cpu']}, {facts['cores']} cores"
    return f"{machine}; torch {facts['torch']}; {facts['date'][:10]} ([{file}](../benchmarks/results/{file}))."


TABLES = {"kernels": kernel_table, "model": model_table, "conv2d": conv2d_table, "precision": precision_table}
"""By the first part of the names in the page."""
