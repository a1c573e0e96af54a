"""What each kernel may cost: budgets.csv, a case a row, written as tools/dev/ptx_report.py takes it.

`launches`: at most; `instructions`: per output; `load_sectors`, `store_sectors`: per useful byte; `load_width`,
`store_width`: bytes that a lane moves at once, on average, at least; `registers`; `occupancy`, at least; `share` of
copy bandwidth that the prediction allows, at least; `ptxas_seconds` of CPU time for the slowest kernel. `always`: the
row is tested in every run, not only among the slow tests. `reason`: what keeps share or occupancy below the aim.
"""

import csv
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tests.ptx.cases import Case, parse_case
from tests.ptx.predict import Prediction

PATH = Path(__file__).with_name("budgets.csv")
BLOCKS = 32
"""Run of each launch: few, and always the same ones."""
AIMS = {"float32": 0.75, "bfloat16": 0.6}
"""Share of copy bandwidth by dtype, or the row has a reason."""
OCCUPANCY_AIM = 0.5


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


def reason(case: Case, prediction: Prediction) -> str:
    """What keeps a prediction below the aims; empty if it reaches them."""
    parts = []
    if prediction.share < AIMS[case.dtype]:
        longest = max(prediction.launches, key=lambda launch: launch.microseconds)
        parts.append(f"bound by {longest.bound}, {longest.microseconds:.1f} us of {prediction.predicted_us:.1f}")
    if prediction.occupancy < OCCUPANCY_AIM:
        least = min(prediction.launches, key=lambda launch: launch.occupancy)
        parts.append(f"{least.registers} registers, {least.shared_bytes} bytes of shared memory a block")
    return "; ".join(parts)


def read() -> list[Row]:
    rows = []
    with PATH.open(newline="") as file:
        for row in csv.DictReader(file):
            limits = Limits(**{f.name: f.type(row[f.name] or 0) for f in fields(Limits)})
            rows.append(Row(row["always"] == "yes", row["case"], limits, row["reason"]))
    return rows


def write(rows: list[Row]) -> None:
    with PATH.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["always", "case", *(f.name for f in fields(Limits)), "reason"])
        for row in rows:
            writer.writerow(["yes" if row.always else "", row.command, *asdict(row.limits).values(), row.reason])
