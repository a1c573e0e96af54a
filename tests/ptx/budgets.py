"""What each kernel may cost: budgets.csv, a case a row, written as tools/dev/ptx_report.py takes it.

`launches`: at most; `instructions`: per output; `load_sectors`, `store_sectors`: per useful byte; `load_width`,
`store_width`: bytes that a lane moves at once, on average, at least; `registers`; `occupancy`, at least; `share` of
copy bandwidth that the prediction allows, at least; `ptxas_seconds` of CPU time for the slowest kernel. `always`: the
row is tested in every run, not only among the slow tests. `reason`: beside each aim that is missed, the arithmetic
behind it; docs/performance.md explains them. `before_us`, `floor_us`, `predicted_us`: the time predicted before kernels
worked in tiles (where it was), that in which every byte is moved once, and the time predicted now.
"""

import csv
import itertools
import shlex
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from tests.ptx.build import ROOT
from tests.ptx.cases import Case, parse_case
from tests.ptx.predict import Prediction

PATH = Path(__file__).with_name("budgets.csv")
BLOCKS = 32
"""Run of each launch: few, and always the same ones."""
SHARE_AIM = {"float32": 0.75, "bfloat16": 0.6}
"""Of copy bandwidth, by dtype."""
OCCUPANCY_AIM = 0.5
LOADS_AIM, STORES_AIM = 1.6, 1.3
"""Sectors per useful byte, at most."""


@dataclass
class Limits:
    launches: int
    instructions: float
    load_sectors: float
    store_sectors: float
    load_width: float
    store_width: float
    registers: int
    occupancy: float
    share: float
    ptxas_seconds: float

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


# How much worse than its limit a figure may be: rounding of the table, and a machine of another speed.
SLACK = {"instructions": 1.01, "load_sectors": 1.01, "store_sectors": 1.01, "ptxas_seconds": 10}
AT_LEAST = {"load_width": 0.05, "store_width": 0.05, "occupancy": 0.005, "share": 0.005}


@dataclass
class Row:
    always: bool
    command: str
    limits: Limits
    before_us: float | None
    floor_us: float
    predicted_us: float
    reason: str

    @property
    def case(self) -> Case:
        return parse_case(shlex.split(self.command))

    def exceeded_by(self, given: Limits) -> list[str]:
        """Figures that are worse than their limits."""
        faults = []
        for name, limit in asdict(self.limits).items():
            value = getattr(given, name)
            if value < limit - AT_LEAST[name] if name in AT_LEAST else value > limit * SLACK.get(name, 1):
                faults.append(f"{name} is {value}, its budget {limit}")
        return faults


def measured(prediction: Prediction) -> Limits:
    launches = prediction.launches
    return Limits(
        len(launches),
        round(prediction.instructions_per_output, 2),
        round(prediction.load_sectors_per_byte, 3),
        round(prediction.store_sectors_per_byte, 3),
        round(prediction.load_width, 2),
        round(prediction.store_width, 2),
        max(x.registers for x in launches),
        round(prediction.occupancy, 3),
        round(prediction.share, 3),
        max(x.ptxas_seconds for x in launches),
    )


def missed_aims(case: Case, limits: Limits) -> list[str]:
    aims = {
        "share": limits.share >= SHARE_AIM[case.dtype],
        "occupancy": limits.occupancy >= OCCUPANCY_AIM,
        "loads": limits.load_sectors <= LOADS_AIM,
        "stores": limits.store_sectors <= STORES_AIM,
    }
    return [aim for aim, reached in aims.items() if not reached]


def reason(case: Case, prediction: Prediction) -> str:
    """The arithmetic behind each missed aim; empty if there is none."""
    launches = prediction.launches
    terms = " + ".join(f"{launch.microseconds:.1f} us of {launch.bound}" for launch in launches)
    moving = sum(max(launch.terms["dram"], launch.terms["l2"]) for launch in launches)
    least = min(launches, key=lambda launch: launch.occupancy)
    facts = {
        "share": f"{terms} where {prediction.floor_us / SHARE_AIM[case.dtype]:.1f} us are the aim "
        f"(moving the bytes alone takes {moving:.1f} us)",
        "occupancy": f"{least.registers} registers, {least.shared_bytes} bytes of shared memory a block",
        "loads": f"{prediction.load_width:.1f} bytes a lane",
        "stores": f"{prediction.store_width:.1f} bytes a lane",
    }
    return "; ".join(f"{aim}: {facts[aim]}" for aim in missed_aims(case, measured(prediction)))


def read() -> list[Row]:
    rows = []
    with PATH.open(newline="") as file:
        for row in csv.DictReader(file):
            limits = Limits(**{f.name: f.type(row[f.name] or 0) for f in fields(Limits)})
            before = float(row["before_us"]) if row["before_us"] else None
            times = before, float(row["floor_us"]), float(row["predicted_us"])
            rows.append(Row(row["always"] == "yes", row["case"], limits, *times, row["reason"]))
    return rows


def write(rows: list[Row]) -> None:
    with PATH.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        times = ["before_us", "floor_us", "predicted_us"]
        writer.writerow(["always", "case", *(f.name for f in fields(Limits)), *times, "reason"])
        for row in rows:
            values = [*asdict(row.limits).values(), row.before_us, row.floor_us, row.predicted_us, row.reason]
            writer.writerow(["yes" if row.always else "", row.command, *values])


PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- from tests/ptx/budgets.csv -->\n", "<!-- end of tests/ptx/budgets.csv -->"
ON_THE_PAGE = {
    "`interp` 8x21, 65 to 513": "--op interp --maps 8x21x65 --size 513 513",
    "`interp_concat` 256, 512, 1024 to 41": "--op interp_concat --maps 1x256x41 1x512x41 1x1024x21 --size 41 41",
    "`interp_shift_add` 1x512, 31 to 41": "--op interp_shift_add --maps 1x512x31 --size 41 41",
    "`scale_merge` 8x150 to 65": "--op scale_merge --maps 8x150x65 8x150x49 8x150x33",
    "`scale_max` 8x21 to 513": "--op scale_max --maps 8x21x513 8x21x385 8x21x257",
}
"""Kernels of which docs/performance.md shows the forward and the backward pass."""


def table(rows: list[Row]) -> str:
    """The rows ON_THE_PAGE: the time before, now, and the share of copy bandwidth."""
    variants = list(itertools.product(SHARE_AIM, ("nchw", "channels_last")))
    header = " | ".join(f"{dtype} {'NCHW' if layout == 'nchw' else layout}" for dtype, layout in variants)
    lines = [f"| kernel | {header} | floor: {', '.join(SHARE_AIM)} |", "|---" * (len(variants) + 2) + "|"]
    for name, command in ON_THE_PAGE.items():
        for backward in (False, True):
            case = replace(parse_case(shlex.split(command)), backward=backward)
            of = {v: next(r for r in rows if r.case == replace(case, dtype=v[0], layout=v[1])) for v in variants}
            cells = [f"{us(r.before_us)} → {us(r.predicted_us)} ({r.limits.share:.0%})" for r in of.values()]
            floors = ", ".join(us(of[dtype, "nchw"].floor_us) for dtype in SHARE_AIM)
            lines.append(f"| {'its backward' if backward else name} | {' | '.join(cells)} | {floors} |")
    return "\n".join(lines).replace("%)", " %)") + "\n"


def us(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write_page(rows: list[Row]) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(rows) + END + rest.partition(END)[2])
