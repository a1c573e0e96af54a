"""The Python in our documents, so that tests can run it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def snippets(document: str, section: str = "") -> list[str]:
    """The python blocks of a document, by its path from the root; only those under the heading `section`, if given."""
    text = (ROOT / document).read_text()
    if section:
        level, rest = re.search(rf"^(#+) {re.escape(section)}\n(.*)", text, re.MULTILINE | re.DOTALL).groups()
        text = re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0]
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
