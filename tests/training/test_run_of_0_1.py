"""A run of version 0.1, as it stood when it was stopped after 3 of 6 iterations, goes on to the same end, bit for bit.

`run_of_0.1/` was made by `tools/train_voc.py` of version 0.1 (torch 2.13, one thread, a processor of capability AVX2):
`data/`, the run's folder `run/`, and in `finished/` the weights and the log of the same run when it was not stopped.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from a2s_repro.checkpoint import load_weights
from a2s_repro.inference import load_model
from a2s_repro.recipes import Recipe
from a2s_repro.training import Run, train

HERE = Path(__file__).parent / "run_of_0.1"
SAME_KERNELS = torch.__version__.startswith("2.13.") and torch.backends.cpu.get_cpu_capability() == "AVX2"
"""Whether convolutions round here as they did where the run was made; elsewhere they differ in the last bits."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the run's folder, to go on in."""
    return Path(shutil.copytree(HERE / "run", tmp_path / "run"))


def losses(log: Path) -> list[dict]:
    return [json.loads(line)["losses"] for line in log.read_text().splitlines()]


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_run_goes_on_to_the_same_weights(folder):
    config = json.loads((folder / "config.json").read_text())
    settings = {"resume": "auto", "precision": config["run"]["precision"], "seed": config["run"]["seed"], "workers": 0}
    files = {"train_list": HERE / "data/ImageSets/Segmentation/train.txt", "classes": HERE / "data/classes.txt"}
    recipe = Recipe.of_config(config["recipe"])
    outcome = train(recipe, Run(data_root=HERE / "data", out=folder, **files, **settings))

    ours, theirs = losses(folder / "log.jsonl"), losses(HERE / "finished/log.jsonl")
    tolerance = {"rtol": 0, "atol": 0} if SAME_KERNELS else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(ours, theirs, **tolerance)
    ours, theirs = load_weights(outcome.file).state_dict, load_weights(HERE / "finished/final.pth").state_dict
    assert list(ours) == list(theirs)
    torch.testing.assert_close(ours, theirs, **tolerance)


def test_its_weights_make_the_same_net():
    model, meta = load_model(HERE / "finished/final.pth", "cpu")
    stored = torch.load(HERE / "finished/final.pth", weights_only=True)
    assert meta["classes"] == ["background", "disc", "square", "triangle", "ring", "cross"]
    tensors = {name: value for part in stored.values() if isinstance(part, dict) for name, value in part.items()}
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[name]), name
