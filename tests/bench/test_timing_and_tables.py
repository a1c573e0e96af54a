"""The benchmarks' timing helpers, and the pages made from their results. No test depends on measured times."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from a2s_repro.bench.charts import draw
from a2s_repro.bench.tables import PAGES, RESULTS, write_docs
from a2s_repro.bench.timing import memory_of_call, paired, rotation, spread
from a2s_repro.errors import InputError
from tests.paths import ROOT
from tests.processes import run_tool

CPU = torch.device("cpu")


def test_paired_functions_run_in_every_round_over_all_input_sets() -> None:
    seen: dict[str, set[int]] = {"a": set(), "b": set()}
    times = paired({name: seen[name].add for name in seen}, sets=3, device=CPU, budget=0)
    assert len(times["a"]) == len(times["b"]) == 3
    assert all(seconds > 0 for values in times.values() for seconds in values)
    assert seen == {"a": {0, 1, 2}, "b": {0, 1, 2}}


def test_peak_memory_is_results_and_intermediates() -> None:
    def result_alone(_: int) -> torch.Tensor:
        return torch.empty(1 << 18)

    def through_a_larger_one(_: int) -> torch.Tensor:
        return torch.empty(1 << 20)[: 1 << 18].clone()

    assert memory_of_call(result_alone, CPU) == 1 << 20
    assert memory_of_call(through_a_larger_one, CPU) == (1 << 22) + (1 << 20)


def test_merge_allocates_only_its_results() -> None:
    """The merge stores no resized score map, and on the CPU no other intermediate."""
    from a2s_repro import ops

    scores, logits = [torch.randn(2, 21, side, side) for side in (65, 49, 33)], torch.randn(2, 3, 65, 65)
    results = sum(y.numel() * 4 for y in ops.scale_merge(scores, logits))
    assert memory_of_call(lambda _: ops.scale_merge(scores, logits), CPU) == results


def test_inputs_rotate_over_more_than_a_cache() -> None:
    assert [rotation(size) for size in (1 << 10, 16 << 20, 1 << 30)] == [512, 8, 2]


def test_spread_gives_median_and_quartiles() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}


def bench(*arguments: str, tool: str = "bench_kernels") -> subprocess.CompletedProcess:
    return run_tool(f"dev/{tool}", *arguments)


@pytest.mark.long
def test_kernel_results_become_a_table(tmp_path: Path) -> None:
    few = ("--operators", "scale_softmax", "--dtypes", "float32", "--layouts", "nchw", "--cases", "quick")
    run = bench("--device", "cpu", *few, "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.glob("kernels-cpu-*.json")
    measured = json.loads(file.read_text())
    assert {"date", "cpu", "torch", "csrc"} <= set(measured["provenance"])
    assert [row["pass"] for row in measured["rows"]] == ["forward", "forward+backward"]
    for row in measured["rows"]:
        assert set(row["seconds"]) == {"fused", "eager"}
        assert row["peak_bytes"]["fused"] >= row["result_bytes"]

    page = tmp_path / "performance.md"
    parts = ("kernels-cpu", "kernels-cpu selected", "kernels-cpu chart", "kernels-cuda", "kernels-cuda chart")
    page.write_text("above\n" + "".join(f"<!-- {part} -->\nold\n<!-- end -->\n" for part in parts))
    write_docs([page], tmp_path)
    text = page.read_text()
    bodies = [text.split(f"<!-- {part} -->\n")[1].split("<!-- end")[0] for part in parts]
    full, selected, chart, cuda, cuda_chart = bodies
    assert text.startswith("above\n") and "old" not in text
    assert [full.count(f"| scale_softmax | {work} |") for work in ("forward", "forward+backward")] == [1, 1]
    assert [selected.count(f"| scale_softmax | {work} |") for work in ("forward", "forward+backward")] == [0, 1]
    assert all(f'"images/kernels-cpu-{theme}.png"' in chart for theme in ("light", "dark"))
    assert (cuda, cuda_chart) == ("Not measured yet.\n", "")
    write_docs([page], tmp_path)
    assert page.read_text() == text


@pytest.mark.parametrize("kind", ["kernels", "model"])
def test_charts_are_drawn_in_both_themes(kind: str, tmp_path: Path) -> None:
    measured = json.loads(sorted(RESULTS.glob(f"{kind}-cpu-*.json"))[-1].read_text())
    title = draw(kind, measured, tmp_path / kind)
    assert measured["provenance"]["date"][:10] in title
    light, dark = (cv2.imread(str(tmp_path / f"{kind}-{theme}.png")) for theme in ("light", "dark"))
    assert light.shape == dark.shape
    assert light[0, 0].tolist() == [255, 255, 255] and dark[0, 0].max() < 32
    assert light.std() > 10


def test_the_pages_show_the_newest_results(tmp_path: Path) -> None:
    """The committed pages equal the output of `--write-docs`."""
    copies = [tmp_path / page.relative_to(ROOT) for page in PAGES]
    for page, copy in zip(PAGES, copies, strict=True):
        copy.parent.mkdir()
        copy.write_text(page.read_text())
    shutil.copytree(RESULTS, tmp_path / RESULTS.relative_to(ROOT))
    write_docs(copies, tmp_path / RESULTS.relative_to(ROOT))
    assert [copy.read_text() for copy in copies] == [page.read_text() for page in PAGES]


@pytest.mark.long
def test_results_of_a_net_become_a_table(tmp_path: Path) -> None:
    """A thin net on small images: every version runs, and the authors' full-size times are left out."""
    sizes = ("--width", "0.03125", "--crop", "65", "--test-crop", "65", "--threads", "1", "--quick", "--workers", "0")
    sizes += ("--precisions", "fp32", "bf16")
    run = bench("--device", "cpu", *sizes, "--out", str(tmp_path), tool="bench_model")
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.glob("model-cpu-*.json")
    measured = json.loads(file.read_text())
    versions = [("ours", "fp32"), ("ours", "bf16"), ("eager", "float32"), ("eager-channels_last", "bf16")]
    rows = [(row["work"], row["version"], row["precision"]) for row in measured["rows"]]
    works = ("forward", "update")
    from_files = [(work, "ours, files", precision) for work in works for precision in ("fp32", "bf16")]
    assert rows == [(work, *version) for work in works for version in versions] + from_files
    assert all(row["seconds"]["median"] > 0 and not row.get("authors_seconds") for row in measured["rows"])
    assert measured["loader"]["samples_per_second"]["median"] > 0

    page = tmp_path / "performance.md"
    page.write_text("<!-- model-cpu -->\n<!-- end -->\n")
    write_docs([page], tmp_path)
    assert "| update | 1 | ours | bf16 |" in page.read_text()


@pytest.mark.long
def test_results_of_convolutions_become_a_table(tmp_path: Path) -> None:
    """Small maps of two layers: one with Winograd's algorithm, and fc6, whose dilation is as large as the map."""
    run = bench(
        "--layers", "conv4_1", "fc6", "--crop", "97", "--seconds", "0", "--out", str(tmp_path), tool="bench_conv2d"
    )
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.glob("conv2d-cpu-*.json")
    rows = json.loads(file.read_text())["rows"]
    assert [(row["name"], row["winograd"]) for row in rows] == [("conv4_1", True)] * 2 + [("fc6", False)] * 2
    assert all(0 < row["deviation"][version] < 1e-5 for row in rows for version in ("ours", "torch"))

    page = tmp_path / "performance.md"
    page.write_text("<!-- conv2d-cpu -->\n<!-- end -->\n")
    write_docs([page], tmp_path)
    assert page.read_text().count("| 13x13 | 1 | 1 | forward | Winograd |") == 1


def test_the_eager_model_is_the_same_net() -> None:
    """Compares maps and conv1_1's gradient of a thin net without dropout, in float64 with float32 coordinates."""
    sys.path.insert(0, str(ROOT / "tools" / "dev"))
    import bench_model

    from a2s_repro.models import ShareNet, Widths
    from a2s_repro.models.losses import training_loss

    torch.manual_seed(0)
    net = bench_model.filled(ShareNet(5, dropout=0, widths=Widths().scaled(1 / 32))).double().train()
    eager = bench_model.EagerNet(net).double().eval()  # without its dropout
    image = torch.randn(1, 3, 65, 65, dtype=torch.float64)
    labels = torch.randint(5, (1, 65, 65), dtype=torch.uint8)
    sum(training_loss(net(image), labels, extra_supervision=True).values()).backward()
    eager.losses(image, labels).backward()
    ours, theirs = net.conv1_1.weight.grad, eager.conv1_1.weight.grad
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert (net(image).scores - eager(image)[0]).abs().max() < 1e-5 * net(image).scores.abs().max()


@pytest.mark.slow
def test_precisions_are_compared(tmp_path: Path) -> None:
    few = ("--max-iter", "3", "--width", "0.03125", "--train", "8", "--val", "1")
    run = bench("--device", "cpu", *few, "--out", str(tmp_path), tool="bench_precision")
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.glob("precision-cpu-*.json")
    page = tmp_path / "performance.md"
    page.write_text("<!-- precision-cpu -->\n<!-- end -->\n")
    write_docs([page], tmp_path)
    runs = json.loads(file.read_text())["runs"]
    last = {name: run["losses"][-1]["values"]["loss"] for name, run in runs.items()}
    assert last["fp32"] == pytest.approx(last["bf16"], rel=0.01)
    assert last["fp32"] != last["bf16"]
    assert f"| 2 | {last['fp32']:.4f} | {last['bf16']:.4f} |" in page.read_text()


def test_missing_page_size_0_and_missing_gpu_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkout"):
        write_docs([tmp_path / "none.md"], tmp_path)
    run = bench("--crop", "0", tool="bench_conv2d")
    assert run.returncode == 2 and run.stderr.endswith("argument --crop: 0 is not a positive whole number\n")
    if not torch.cuda.is_available():
        run = bench("--device", "cuda")
        assert run.returncode == 2
        assert run.stderr.startswith("error: device cuda cannot be used")
