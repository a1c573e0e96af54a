"""What the benchmarks measure with, and the page that their results become. Nothing here is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from a2s_repro.benchmark import paired, peak_memory, rotation, spread
from a2s_repro.errors import InputError
from a2s_repro.performance import write_docs

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def test_paired_functions_run_in_every_round_over_all_input_sets() -> None:
    seen: dict[str, set[int]] = {"a": set(), "b": set()}
    times = paired({name: seen[name].add for name in seen}, sets=3, device=CPU, budget=0)
    assert len(times["a"]) == len(times["b"]) == 3
    assert all(seconds > 0 for values in times.values() for seconds in values)
    assert seen == {"a": {0, 1, 2}, "b": {0, 1, 2}}


def test_peak_memory_is_results_and_what_was_held_on_the_way() -> None:
    def result_alone(_: int) -> torch.Tensor:
        return torch.empty(1 << 18)

    def through_a_larger_one(_: int) -> torch.Tensor:
        return torch.empty(1 << 20)[: 1 << 18].clone()

    assert peak_memory(result_alone, CPU) == 1 << 20
    assert peak_memory(through_a_larger_one, CPU) == (1 << 22) + (1 << 20)


def test_merging_holds_its_results_and_nothing_else() -> None:
    """No resized score map, and on the CPU no tensor beside the results."""
    from a2s_repro import ops

    scores, logits = [torch.randn(2, 21, side, side) for side in (65, 49, 33)], torch.randn(2, 3, 65, 65)
    results = sum(y.numel() * 4 for y in ops.scale_merge(scores, logits))
    assert peak_memory(lambda _: ops.scale_merge(scores, logits), CPU) == results


def test_inputs_rotate_over_more_than_a_cache() -> None:
    assert [rotation(size) for size in (1 << 10, 16 << 20, 1 << 30)] == [64, 8, 2]


def test_spread_gives_median_and_quartiles() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}


def bench(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "bench_kernels.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_kernel_results_become_a_table(tmp_path: Path) -> None:
    few = ("--operators", "scale_softmax", "--dtypes", "float32", "--layouts", "nchw", "--quick")
    run = bench("--device", "cpu", *few, "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.glob("kernels-cpu-*.json")
    found = json.loads(file.read_text())
    assert {"date", "cpu", "torch", "csrc"} <= set(found["provenance"])
    assert [row["pass"] for row in found["rows"]] == ["forward", "forward+backward"]
    for row in found["rows"]:
        assert set(row["seconds"]) == {"fused", "eager"}
        assert row["peak_bytes"]["fused"] >= row["result_bytes"]

    page = tmp_path / "performance.md"
    filled = "<!-- kernels-cpu -->\nold\n<!-- end kernels-cpu -->\n"
    empty = "<!-- kernels-cuda -->\n<!-- end kernels-cuda -->\n"
    page.write_text("above\n" + filled + empty)
    write_docs(page, tmp_path)
    text = page.read_text()
    assert text.startswith("above\n<!-- kernels-cpu -->\n") and "old" not in text
    assert text.count("| scale_softmax | forward |") == 1
    assert text.endswith("<!-- kernels-cuda -->\nNot measured yet.\n<!-- end kernels-cuda -->\n")
    write_docs(page, tmp_path)
    assert page.read_text() == text


def test_a_missing_page_and_a_missing_gpu_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkout"):
        write_docs(tmp_path / "none.md", tmp_path)
    if not torch.cuda.is_available():
        run = bench("--device", "cuda")
        assert run.returncode == 2
        assert run.stderr.startswith("error: device cuda cannot be used")
