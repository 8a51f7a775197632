"""docs/operations.md as a page, for the links beside the alerts."""

import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

# beside the packages in a checkout; an installation from a wheel has no documents
FILE = Path(__file__).parents[2] / "docs" / "operations.md"


@lru_cache(maxsize=1)
def runbook(file: Path = FILE) -> str | None:
    """HTML whose headings have anchors as on GitHub; raw HTML in the document is escaped. None where there is none."""
    if not file.is_file():
        return None
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(file.read_text("utf-8"))
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", anchor(inline.content))
        for child in inline.children or []:
            # other documents are not served
            if child.type == "link_open" and not str(child.attrGet("href")).startswith(("#", "https://")):
                child.attrs.pop("href")
    return str(markdown.renderer.render(tokens, markdown.options, {}))


def anchor(heading: str) -> str:
    """The name that GitHub gives to a heading's anchor."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
