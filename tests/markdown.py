"""Readers of the project's documents: pages, headings, links, Python snippets."""

import re
from pathlib import Path

from tests.paths import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
"""All pages with links for readers."""

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def snippets(document: str, heading: str) -> list[str]:
    """The Python blocks under a heading of a document, up to the next heading; the path is relative to the root."""
    blocks: dict[str, list[str]] = {}
    current = ""
    for title, language, block in re.findall(
        r"^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL
    ):
        current = title or current
        if language == "python":
            blocks.setdefault(current, []).append(block)
    return blocks[heading]


def anchors(page: Path) -> set[str]:
    """GitHub's link fragments of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    fragments: set[str] = set()
    for heading in headings:
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        fragments.add(slug if slug not in fragments else f"{slug}-1")
    return fragments


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, without those in fenced blocks."""
    text = FENCED.sub("", page.read_text())
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)
