"""The GPU report keeps its time limits and loses no results: tested with a simulated clock and simulated commands."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from a2s_repro.bench.gpu_report import BUDGET, Step, freshness, ncu_kernels, run_steps, steps
from a2s_repro.bench.provenance import provenance

SANITIZER_CLEAN = "========= ERROR SUMMARY: 0 errors\n"
SANITIZER_RACE = "========= Error: race\n===== at void a2s::interp(float*)\n========= RACECHECK SUMMARY: 1 hazard\n"
NCU = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n"0","a2s::interp","dram__bytes.sum","byte","42"\n'


class Machine:
    """A simulated clock, and commands with the given durations and results."""

    def __init__(self, **behaviour: tuple[float, str, int] | Callable) -> None:
        self.now, self.behaviour, self.ran = 0.0, behaviour, []

    def clock(self) -> float:
        return self.now

    def execute(self, command: Sequence[str], limit: float) -> tuple[str, int | None]:
        seconds, output, status = self.behaviour[command[-1]]
        self.ran.append(command[-1])
        self.now += min(seconds, limit)
        return (output, status) if seconds <= limit else (output, None)


def step(name: str, limit: int = 100, needless_if: str = "") -> Step:
    return Step(name, limit, ("python3", name), ("python3", needless_if) if needless_if else ())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcomes(path: Path) -> dict[str, str]:
    return {line["step"]: line["outcome"] for line in lines(path)}


def test_a_bad_step_does_not_affect_the_others(tmp_path, monkeypatch):
    report = tmp_path / "report.jsonl"
    machine = Machine(a=(1, "", 1), b=(10_000, "half of it", 0), d=(5, "", 0))
    monkeypatch.setattr("a2s_repro.bench.gpu_report.shutil.which", lambda name: name)
    broken = Step("c", 50, ("ncu", "c"))
    machine.behaviour["c"] = (1, '"ID","Kernel Name"\n"0","x"\n', 0)  # rows without metrics
    passed = run_steps([step("a"), step("b"), broken, step("d")], report, machine.execute, machine.clock)
    assert not passed
    ended = outcomes(report)
    assert ended["a"].startswith("failed with exit status 1")
    assert ended["b"] == "stopped at its limit of 100 s"
    assert ended["c"] == "its output was not understood: KeyError: 'Metric Value'"
    assert ended["d"] == "passed"


def test_steps_share_the_budget_and_the_last_are_skipped(tmp_path):
    report = tmp_path / "report.jsonl"
    machine = Machine(a=(90, "", 0), b=(90, "", 0), c=(90, "", 0))
    assert not run_steps([step("a"), step("b"), step("c")], report, machine.execute, machine.clock, budget=185)
    assert outcomes(report) == {"a": "passed", "b": "passed", "c": "left out: no time left"}
    assert machine.now <= 185


def test_the_last_step_gets_the_rest_of_the_budget(tmp_path):
    report = tmp_path / "report.jsonl"
    machine = Machine(a=(90, "", 0), b=(90, "", 0))
    run_steps([step("a"), step("b")], report, machine.execute, machine.clock, budget=120)
    assert outcomes(report)["b"] == "stopped at its limit of 30 s"
    assert machine.now == 120


@pytest.mark.parametrize(("probe", "ran"), [(0, ["probe"]), (1, ["probe", "build"])])
def test_working_libraries_are_not_rebuilt(tmp_path, probe, ran):
    report = tmp_path / "report.jsonl"
    machine = Machine(probe=(3, "", probe), build=(60, "", 0))
    assert run_steps([step("build", needless_if="probe")], report, machine.execute, machine.clock)
    assert machine.ran == ran


def test_lines_are_written_immediately(tmp_path):
    """A report killed during a step holds all earlier measurements and the step's name."""
    report = tmp_path / "report.jsonl"
    seen = []

    def execute(command: Sequence[str], limit: float) -> tuple[str, int]:
        seen.append(lines(report)[-1])
        return "", 0

    run_steps([step("a"), step("b")], report, execute, lambda: 0.0)
    assert [(line["step"], line["outcome"]) for line in seen] == [("a", "started"), ("b", "started")]


def test_a_sanitizer_is_judged_by_our_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr("a2s_repro.bench.gpu_report.shutil.which", lambda name: name)
    for output, outcome in (
        (SANITIZER_CLEAN, "passed"),
        (SANITIZER_RACE, "reports in kernels of ours: 1; the report holds the end of its output"),
        ("Killed", "compute-sanitizer printed no summary; the report holds the end of its output"),
    ):
        report = tmp_path / f"{len(output)}.jsonl"
        machine = Machine(tests=(5, output, 0))
        run_steps([Step("memcheck", 60, ("compute-sanitizer", "tests"))], report, machine.execute, machine.clock)
        assert outcomes(report) == {"memcheck": outcome}


def test_metrics_of_a_kernel():
    assert ncu_kernels(f"==PROF== Connected\n{NCU}") == [{"kernel": "a2s::interp", "dram__bytes.sum": "42 byte"}]


def test_correctness_runs_first_and_the_ten_operators_next():
    names = [step.name for step in steps(Path("report.jsonl"))]
    assert names[:4] == ["build", "tests", "ten operators", "whole net"]
    assert sum(step.limit for step in steps(Path("report.jsonl"))[:4]) < BUDGET
    assert set(names[4:]) == {"memcheck", "racecheck", "initcheck", "all operators", "ncu"}


def test_figures_of_a_report_are_current_or_stale(tmp_path):
    assert "none in benchmarks/results/" in freshness(tmp_path)
    (tmp_path / "cpu.json").write_text(json.dumps({"provenance": provenance() | {"gpu": "none"}}))
    assert "none in benchmarks/results/" in freshness(tmp_path)
    facts = {"gpu": "NVIDIA Test", "date": "2026-01-02T03:04:05Z", "csrc": "0" * 16}
    (tmp_path / "report.jsonl").write_text(json.dumps({"provenance": facts}) + "\n" + json.dumps({"step": "a"}) + "\n")
    assert "stale (2026-01-02, NVIDIA Test)" in freshness(tmp_path)
    facts = provenance() | {"gpu": "NVIDIA Test", "date": "2026-01-03T03:04:05Z"}
    (tmp_path / "kernels.json").write_text(json.dumps({"provenance": facts}))
    assert freshness(tmp_path) == "GPU figures: of this csrc/ (2026-01-03, NVIDIA Test)."
