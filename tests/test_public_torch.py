"""The package and the tools use torch's public interfaces: an underscored name may change in any release."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

EXCEPTIONS: dict[str, str] = {}
"""Underscored names in use, each with the reason for which no public one serves: none."""

PRIVATE_OF_MODULES = {"_parameters", "_buffers", "_modules", "_forward_hooks"}
"""Attributes in which torch.nn.Module stores its parts."""


def torch_names(tree: ast.AST) -> Iterator[str]:
    """The fully qualified names in a file that begin with torch."""
    roots = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch":
                    roots[alias.asname or "torch"] = alias.name if alias.asname else "torch"
                    yield alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for alias in node.names:
                roots[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts = [node.attr]
            while isinstance(value := node.value, ast.Attribute):
                parts.append(value.attr)
                node = value
            if isinstance(value, ast.Name) and value.id in roots:
                yield ".".join((roots[value.id], *reversed(parts)))


def private_names(source: str) -> set[str]:
    """Underscored torch names used in a file."""
    tree = ast.parse(source)
    attributes = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    dotted = {
        name
        for name in torch_names(tree)
        if any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
    }
    return dotted | (attributes & PRIVATE_OF_MODULES)


FILES = sorted(path for folder in ("a2s_repro", "caffe_weights", "tools") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_underscored_names_of_torch_are_those_listed(path: Path) -> None:
    assert private_names(path.read_text()) <= set(EXCEPTIONS)


def test_listed_names_are_in_use() -> None:
    used = set().union(*(private_names(path.read_text()) for path in FILES))
    assert used == set(EXCEPTIONS)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._foreach_add(a, b)",
        "from torch import _C",
        "import torch._dynamo",
        "import torch.nn.functional as F\nF._pad_circular(x)",
        "from torch import nn\nnn.modules.module._global_forward_hooks",
        "net._modules['conv']",
    ],
)
def test_private_names_are_found(source: str) -> None:
    assert private_names(source)
