"""The Python in our documents, so that tests can run it."""

import re

from tests.paths import ROOT


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
