"""The documents' links resolve, and the tests that they name exist."""

import ast
import re
from pathlib import Path

import pytest

from tests.markdown import PAGES, anchors, links
from tests.paths import ROOT

SOURCES = [
    path
    for folder, pattern in (("a2s_repro", "*.py"), ("caffe_weights", "*.py"), ("tools", "*.py"), ("csrc", "*.*"))
    for path in sorted((ROOT / folder).rglob(pattern))
]

BEHAVIOURS = ROOT / "docs" / "fidelity" / "behaviours.md"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_and_their_anchors_resolve(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"\w+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            todo += [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if ":" not in link]
    assert not set(PAGES) - reached


def test_pages_named_in_the_sources_exist() -> None:
    missing = {
        f"{name(path)}: {mention}"
        for path in SOURCES
        for mention in re.findall(r"\bdocs/[\w/]+\.md", path.read_text())
        if not (ROOT / mention).exists()
    }
    assert not missing


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tests_named_on_a_page_exist(page: Path) -> None:
    """References are `tests/FILE.py`, `tests/FILE.py::NAME`, or `::NAME`, which refers to the file named before."""
    missing, file = [], None
    for path, test in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", page.read_text()):
        if not path and not test:
            continue
        file = ROOT / path if path else file
        if not file or not file.exists() or (test and test not in functions(file)):
            missing.append(f"{path}::{test}")
    assert not missing


def test_names_in_the_column_here_of_the_behaviours_exist() -> None:
    """`ops.interp`, `CaffeSGD(iter_size=)`, `--seed N`: every identifier occurs in the sources."""
    words = {word for path in SOURCES if path.suffix == ".py" for word in re.findall(r"\w+", path.read_text())}
    rows = re.findall(r"^\|(?:[^|]*\|){2}([^|]*)\|[^|]*\|$", BEHAVIOURS.read_text(), re.MULTILINE)
    spans = [span for here in rows for span in re.findall(r"`([^`]+)`", here) if not span.startswith("tests/")]
    names = {name for span in spans for name in re.findall(r"[A-Za-z_]\w{3,}", span)}
    assert len(names) > 30
    assert not names - words
