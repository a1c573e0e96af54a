"""Deviations of arrays from recorded ones, their gates (tolerances), and the report."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from a2s_repro.replay.flips import Flip

GATES = {
    "stream": 0.0,
    "blob": 1e-5,
    "gradient": 5e-5,
    "loss": 1e-5,
    "accuracy": 1e-5,
    "weight": 1e-5,
    "history": 1e-3,
    "test map": 1e-5,
    "test label": 0.0,
}
"""Largest allowed deviation by kind, sized for float32 sums in another order over 20 iterations. Losses and accuracies:
absolute. Weights and histories: relative L2 norm of a tensor. Others: relative to the largest recorded value."""

FLOAT32_GATES = GATES | {"loss": 5e-5, "weight": 5e-5, "history": 5e-3}

GATES_AFTER_A_FLIP = dict.fromkeys(GATES) | {"loss": 5e-3}
"""Gates after a flip. A flip near a tie is no error, but all later values differ, so only losses are checked."""

ABSOLUTE = ("loss", "accuracy")
L2 = ("weight", "bias", "history")


def gates_of(dtype: torch.dtype, flipped: bool = False) -> dict[str, float | None]:
    """The gates by kind; `flipped`: a unit near a tie decided differently from float64."""
    if flipped:
        return GATES_AFTER_A_FLIP
    return GATES if dtype == torch.float64 else FLOAT32_GATES


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The comparison of one array with the recorded one."""

    kind: str
    name: str
    absolute: float
    """Largest absolute difference; NaN if the array is missing or has another shape."""
    relative: float
    """Difference relative to the largest recorded value; for weights and histories relative L2 norm."""
    gate: float | None
    """Largest allowed deviation; None: reported without a check."""
    run: str | None = None
    iteration: int | None = None
    recomputed: bool = False
    """Whether this is a blob that the fused operators do not store."""
    by: str = "relative"
    """Deviation that the gate applies to: "absolute" or "relative"."""

    @property
    def deviation(self) -> float:
        return self.absolute if self.by == "absolute" else self.relative

    @property
    def passed(self) -> bool:
        return math.isfinite(self.deviation) if self.gate is None else self.deviation <= self.gate

    @property
    def severity(self) -> float:
        """Sort key, largest for the worst: failures, then by closeness to the gate, then comparisons without a gate."""
        if math.isnan(self.deviation):
            return math.inf
        if self.gate is None:
            return -1 / (1 + self.deviation)
        return self.deviation / self.gate if self.gate else math.inf if self.deviation else 0.0

    def held_to(self, rtol: float) -> "Comparison":
        """The same comparison with `rtol` as the gate of its relative deviation."""
        return dataclasses.replace(self, gate=rtol, by="relative")


def compare(kind: str, name: str, ours: Any, theirs: np.ndarray, gate: float | None, **place: Any) -> Comparison:
    """Compares a tensor or array with a recorded one of the same size.

    A record of weights or a history may hold only the first values. If `ours` is None, the deviations are NaN.
    """
    theirs = np.asarray(theirs, np.float64).ravel()
    ours = np.zeros(0) if ours is None else torch.as_tensor(ours).detach().cpu().double().numpy().ravel()
    if kind in L2:
        ours = ours[: theirs.size]
    absolute = relative = math.nan
    if ours.size == theirs.size:
        difference = ours - theirs
        absolute = float(np.abs(difference).max(initial=0))
        if kind in L2:
            relative = _ratio(np.linalg.norm(difference), np.linalg.norm(theirs))
        else:
            relative = _ratio(absolute, np.abs(theirs).max(initial=0))
    by = "absolute" if kind in ABSOLUTE else "relative"
    return Comparison(kind, name, absolute, relative, gate, by=by, **place)


def _ratio(deviation: float, size: float) -> float:
    return float(deviation / size) if size else 0.0 if deviation == 0 else math.inf


@dataclasses.dataclass(frozen=True)
class Report:
    """The comparisons of a replay."""

    case: str
    dtype: str
    comparisons: list[Comparison]
    flips: dict[str, tuple[int, Flip]]
    """First flip of each run, by the run's name: the iteration, and the unit that differs from float64."""

    @property
    def passed(self) -> bool:
        return bool(self.comparisons) and all(comparison.passed for comparison in self.comparisons)

    def worst(self) -> list[Comparison]:
        """All comparisons, the worst first."""
        return sorted(self.comparisons, key=lambda comparison: -comparison.severity)

    def table(self) -> str:
        """One line per comparison, the worst first; then the worst of each kind, the flips and the verdict."""
        lines = [_line("result", "kind", "run", "iter", "absolute", "relative", "gate", "name")]
        lines += [_row(comparison) for comparison in self.worst()]
        lines.append("")
        for kind in dict.fromkeys(comparison.kind for comparison in self.comparisons):
            of_kind = [comparison for comparison in self.worst() if comparison.kind == kind]
            first = of_kind[0]
            lines.append(f"{kind}: {len(of_kind)} compared, the worst {first.deviation:.1e} {first.by} ({first.name})")
        for run, (iteration, flip) in self.flips.items():
            lines.append(f"run {run}: {flip} in iteration {iteration}, the first unit to differ from float64")
        failed = sum(not comparison.passed for comparison in self.comparisons)
        verdict = f"FAILED ({failed} of {len(self.comparisons)})" if failed else f"passed ({len(self.comparisons)})"
        return "\n".join([*lines, f"{self.case} in {self.dtype}: {verdict}"])

    def plain(self) -> dict[str, Any]:
        """The report as plain values for JSON; NaN and infinity become null."""
        rows = []
        for comparison in self.worst():
            row = dataclasses.asdict(comparison) | {"passed": comparison.passed}
            rows.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
        flips = {run: {"iteration": iteration, **flip._asdict()} for run, (iteration, flip) in self.flips.items()}
        return {"case": self.case, "dtype": self.dtype, "passed": self.passed, "flips": flips, "comparisons": rows}


def _row(comparison: Comparison) -> str:
    result = "FAILED" if not comparison.passed else "shown" if comparison.gate is None else "passed"
    gate = "" if comparison.gate is None else f"{comparison.gate:.0e}{' abs' if comparison.by == 'absolute' else ''}"
    deviations = ("missing", "") if math.isnan(comparison.absolute) else _digits(comparison)
    iteration = "" if comparison.iteration is None else str(comparison.iteration)
    name = comparison.name + (" (recomputed)" if comparison.recomputed else "")
    return _line(result, comparison.kind, comparison.run or "", iteration, *deviations, gate, name)


def _digits(comparison: Comparison) -> tuple[str, str]:
    return f"{comparison.absolute:.1e}", f"{comparison.relative:.1e}"


def _line(*cells: str) -> str:
    widths = (8, 12, 5, 6, 10, 10, 11, 0)
    return "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
