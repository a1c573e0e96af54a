"""What tests read from our documents: pages, headings, links, Python snippets."""

import re
from pathlib import Path

from tests.paths import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
"""Every page that a reader is sent to."""

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def snippets(document: str, heading: str) -> list[str]:
    """The python blocks under a heading, up to the next, of a document by its path from the root."""
    found: dict[str, list[str]] = {}
    current = ""
    for title, language, block in re.findall(
        r"^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL
    ):
        current = title or current
        if language == "python":
            found.setdefault(current, []).append(block)
    return found[heading]


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    found: set[str] = set()
    for heading in headings:
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, those inside fenced blocks left out."""
    text = FENCED.sub("", page.read_text())
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)
