"""LLaVA 1.5's response-format prompts, in every language we have them in."""

import csv
from functools import cache
from pathlib import Path

from shards.errors import BadInput

TABLE = Path(__file__).with_name("prompts.tsv")


@cache
def prompts() -> dict[str, dict[str, str]]:
    """Name of a prompt → language → its text.

    English is LLaVA 1.5's own wording (arXiv 2310.03744, the tables of its data mixture and of the prompts of its
    evaluation), as is the one prompt in Chinese (`model_vqa_mmbench.py`).
    """
    with open(TABLE, encoding="utf-8", newline="") as handle:
        rows = csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["name"]: {lang: text for lang, text in row.items() if lang != "name" and text} for row in rows}


def prompt(name: str, lang: str) -> str:
    """The prompt of that name; BadInput when the table does not have it in the language."""
    texts = prompts()[name]
    if lang not in texts:
        raise BadInput(
            f"no response-format prompt {name!r} in {lang!r:.20}; leave out --format-prompts, or add it to {TABLE.name}"
        )
    return texts[lang]
