"""The order of imports between the subpackages (rooms), and the files at the package's root."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from a2s_repro.inference import CRF
from tests.paths import ROOT

PACKAGE = ROOT / "a2s_repro"

ORDER = (
    ("errors",),
    ("files",),
    ("ops", "solver"),
    ("info", "models"),
    ("runtime",),
    ("checkpoint",),
    ("data",),
    ("inference",),
    ("recipes", "bench"),
    ("caffe",),
    ("training", "export"),
    ("replay",),
    ("reproduction", "analysis"),
    ("commands",),
)
"""Floors from the ground up: a room imports only from lower floors. `lib` holds the compiled libraries."""

FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in FLOOR)


def room(module: str) -> str:
    return module.split(".")[1]


def imports(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports, at any level of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "a2s_repro":
            names = [f"a2s_repro.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide the room"
            names = [node.module or ""]
        else:
            continue
        yield from (name for name in names if name.startswith("a2s_repro."))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_lower_floors(path: Path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imports(path):
        if room(module) not in (own, "lib", "__version__"):
            assert FLOOR[room(module)] < FLOOR[own], f"{module} is imported"


def test_the_root_holds_few_files():
    assert {path.stem for path in PACKAGE.glob("*.py")} <= {
        *("__init__", "__main__", "errors", "files", "info", "solver", "export"),
    }


def test_documented_names_of_version_0_1_still_import():
    names = {}
    exec("from a2s_repro.crf import CRF", names)
    exec("from a2s_repro.devices import keep_freed_memory", names)
    exec("import a2s_repro; same = a2s_repro.crf.CRF", names)
    exec("from a2s_repro.training import Run, train", names)
    exec("from a2s_repro.models import ResNetDilated8", names)
    assert names["CRF"] is names["same"] is CRF
    assert callable(names["keep_freed_memory"])


def test_caffe_weights_stands_alone():
    for path in (ROOT / "caffe_weights").rglob("*.py"):
        text = path.read_text()
        assert "a2s_repro" not in text and "import torch" not in text, path


def test_only_training_imports_both_models_and_data():
    for path in (PACKAGE / "models").rglob("*.py"):
        assert not any(room(module) == "data" for module in imports(path)), path
    for path in (PACKAGE / "data").rglob("*.py"):
        assert not any(room(module) == "models" for module in imports(path)), path
