"""A weights file, a snapshot and a run's folder are each the net that training left."""

from pathlib import Path

import pytest
import torch

import a2s_repro
from a2s_repro.checkpoint import Snapshot, save_snapshot, save_weights
from a2s_repro.checkpoint.trained import load_trained
from a2s_repro.commands import command, parser_of
from a2s_repro.errors import InputError
from a2s_repro.models import ShareNet, Widths

NET = ShareNet(3, (1, 0.5), widths=Widths().scaled(1 / 64))
META = {"model": NET.config(), "classes": ["ground", "tree", "sky"]}


def state(value: float) -> dict[str, torch.Tensor]:
    """The net's weights, each `value`, by which a test knows them again."""
    return {name: torch.full_like(tensor, value) for name, tensor in NET.state_dict().items()}


def save(path: Path, value: float, iteration: int, meta: dict = META) -> Path:
    if path.name.startswith("snapshot"):
        solver = {"state": {}, "param_groups": []}
        save_snapshot(path, Snapshot(iteration, state(value), solver, {}, [], {}, meta=meta))
    else:
        save_weights(path, state(value), {**meta, "iteration": iteration, "mean_iou": 0.625})
    return path


def value_of(path: Path) -> float:
    return float(a2s_repro.load(path).model.fc8.bias.detach()[0])


def test_a_folder_stands_for_its_best_weights_else_its_newest_and_names_them(tmp_path, capsys):
    with pytest.raises(InputError, match=r"holds neither final\.pth nor a snapshot yet"):
        load_trained(tmp_path)
    save(tmp_path / "snapshot_iter_20.pth", 1, iteration=20)
    assert value_of(tmp_path) == 1
    save(tmp_path / "final.pth", 2, iteration=40)
    assert value_of(tmp_path) == 2
    save(tmp_path / "snapshot_iter_60.pth", 3, iteration=60)  # the run was made longer
    assert value_of(tmp_path) == 3
    save(tmp_path / "best.pth", 4, iteration=30)
    assert value_of(tmp_path) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.removeprefix(f"{tmp_path}: ") for line in said.err.splitlines()] == [
        "snapshot_iter_20.pth (iteration 20)",
        "final.pth (iteration 40, mIoU 62.50 % in validation)",
        "snapshot_iter_60.pth (iteration 60)",
        "best.pth (iteration 30, mIoU 62.50 % in validation)",
    ]


def test_a_snapshot_of_version_0_1_is_described_by_the_config_beside_it(tmp_path):
    path = save(tmp_path / "snapshot_iter_20.pth", 5, iteration=20, meta={})
    with pytest.raises(InputError, match=r"does not describe its net: put the config\.json of its run beside it"):
        load_trained(path)
    run = Path(__file__).parents[1] / "training/run_of_0.1/run"
    assert a2s_repro.load(run / "snapshot_iter_3.pth").classes == a2s_repro.load(run).classes


def test_commands_take_a_run_and_a_snapshot_in_place_of_a_model(tmp_path, capsys):
    snapshot = save(tmp_path / "snapshot_iter_20.pth", 1, iteration=20)
    for trained in (snapshot, tmp_path):
        words = ["export", str(trained), str(tmp_path / "exported.safetensors")]
        command("export").main(parser_of("export").parse_args(words[1:]))
        exported = load_trained(tmp_path / "exported.safetensors").weights
        assert torch.equal(exported.state_dict["fc8.bias"], torch.ones(3))
