"""Translation memory: a closed set of texts with translations made by hand."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import BadInput
from shards.translate.tmx import tmx_pairs

MEMORIES = Path(__file__).parent / "memories"

_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class TranslationMemory:
    """Source text → target text."""

    name: str
    source_lang: str
    target_lang: str
    pairs: dict[str, str]

    @classmethod
    def load(cls, path: Path, source: str, target: str) -> "TranslationMemory":
        """Read TMX (by the name's ending), or TSV whose header names the two languages in either order.

        BadInput, naming the file and, in TSV, the line, on malformed content; a source text twice is such in TSV.
        """
        if path.suffix.lower() == ".tmx":
            return cls(path.stem, source, target, tmx_pairs(path, source, target))
        rows = _rows(path)
        _, header = next(rows, (0, ("", "")))
        if header not in ((source, target), (target, source)):
            raise BadInput(f"{path}:1: the header {' '.join(header)!r:.100} should be {source}<TAB>{target}")
        pairs: dict[str, str] = {}
        lines: dict[str, int] = {}
        for number, (text, translation) in rows:
            if text in pairs:
                what = "stands" if pairs[text] == translation else "is translated differently"
                raise BadInput(f"{path}:{number}: {text!r:.100} {what} in line {lines[text]} already")
            pairs[text], lines[text] = translation, number
        memory = cls(path.name.removesuffix(".tsv"), *header, pairs)
        return memory if header == (source, target) else memory.inverse()

    def inverse(self) -> "TranslationMemory":
        """The memory of the other direction; BadInput when two texts share a translation."""
        turned: dict[str, str] = {}
        for text, translation in self.pairs.items():
            other = turned.setdefault(translation, text)
            if other != text:
                raise BadInput(f"memory {self.name}: {other!r} and {text!r} are both {translation!r}: no inverse")
        return TranslationMemory(self.name, self.target_lang, self.source_lang, turned)

    def lookup(self, text: str) -> str | None:
        """The translation of `text`: exact, or of the same text with a small first letter or without the final
        period, which the result then gets back."""
        if text in self.pairs:
            return self.pairs[text]
        body, period = (text[:-1], ".") if text.endswith(".") else (text, "")
        if period and body in self.pairs:
            return self.pairs[body] + period
        lowered = text[:1].lower() + text[1:]
        if lowered == text:
            return None
        found = self.lookup(lowered)
        return None if found is None else found[:1].upper() + found[1:]

    @property
    def digest(self) -> str:
        """SHA-256 of the pairs in sorted order."""
        lines = "".join(f"{text}\t{translation}\n" for text, translation in sorted(self.pairs.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def _rows(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """(line number, (left, right)) of a TSV file."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadInput(f"{path}: larger than {_MAX_BYTES} bytes")
        text = path.read_text("utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        cells = line.removesuffix("\r").split("\t")
        if len(cells) != 2 or not all(cell.strip() for cell in cells) or "\0" in line:
            raise BadInput(f"{path}:{number}: two texts with one tab between are wanted")
        yield number, (cells[0], cells[1])


class MemoryEngine:
    """Engine that knows what stands in its memory and nothing else."""

    def __init__(self, memory: TranslationMemory) -> None:
        self.memory = memory
        self.name = "memory"
        self.model = f"{memory.name}@{memory.digest[:16]}"
        self.source_lang = memory.source_lang
        self.target_lang = memory.target_lang
        self.batch_size = 1024

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        """Look every text up."""
        return [self.memory.lookup(text) for text in texts]
