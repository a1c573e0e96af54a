"""docs/performance.md: its tables, made from the newest results of each kind under benchmarks/results."""

import json
import re
from pathlib import Path

from a2s_repro.errors import InputError
from a2s_repro.files import replacing

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"


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
        body = kernel_table(json.loads(files[-1].read_text()), files[-1].name) if files else "Not measured yet.\n"
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
