"""Fixed translations of whole texts: one answer has one translation. Of some words, what must be left of them inside
a longer text: a colour that turns into another one is damage that no likeness to the source shows."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import BadInput
from shards.translate.shape import like, split_end

GLOSSARIES = Path(__file__).parent / "glossaries"

_MAX_BYTES = 16 * 1024 * 1024
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Glossary:
    """Text, without case and final marks → its translation."""

    target_lang: str = ""
    entries: Mapping[str, str] = field(default_factory=dict)
    stems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    "word of the source language → beginnings, one of which a word of the translation must have"
    version: str = "none"
    "digest of both: part of what translations are cached under"

    @classmethod
    def load(cls, path: Path, source: str, target: str) -> "Glossary":
        """Read a TSV file whose header names the two languages, in either direction.

        A third column of a line holds beginnings of the right word's forms, with | between; it counts from left to
        right only. Where several texts have one translation, the first line holds for the way back. BadInput, naming
        file and line, on a malformed line or a text of the left column that occurs twice.
        """
        lines = _lines(path)
        header = lines[0].split("\t")
        if header not in ([source, target], [target, source]):
            raise BadInput(f"{path}:1: the header {lines[0]!r:.100} should be {source}<TAB>{target}")
        forward = header == [source, target]
        left: dict[str, int] = {}
        stems: dict[str, tuple[str, ...]] = {}
        entries: dict[str, str] = {}
        for number, line in enumerate(lines[1:], 2):
            cells = line.split("\t")
            stem = cells.pop() if len(cells) == 3 else ""
            if len(cells) != 2 or not all(map(str.strip, cells)) or "\0" in line:
                raise BadInput(f"{path}:{number}: two texts with one tab between are wanted, and perhaps stems")
            if (first := left.setdefault(_key(cells[0]), number)) != number:
                raise BadInput(f"{path}:{number}: {cells[0]!r:.100} stands in line {first} already")
            if stem and forward:
                stems[_key(cells[0])] = tuple(map(_key, stem.split("|")))
            text, translation = cells if forward else reversed(cells)
            entries.setdefault(_key(text), translation.strip())
        listed = json.dumps([sorted(entries.items()), sorted(stems.items())], ensure_ascii=False)
        return cls(target, entries, stems, hashlib.sha256(listed.encode()).hexdigest()[:16])

    @classmethod
    def named(cls, name: str, source: str, target: str) -> "Glossary":
        """The glossary of `translate.glossary`: a file, `none`, or if empty the packaged one of the two languages."""
        if name == "none":
            return cls()
        if name:
            return cls.load(Path(name), source, target)
        files = [GLOSSARIES / f"{a}-{b}.tsv" for a, b in ((source, target), (target, source))]
        packaged = [path for path in files if path.is_file()]
        return cls.load(packaged[0], source, target) if packaged else cls()

    def lookup(self, text: str) -> str | None:
        """The fixed translation of a whole text, with its case, final mark and no blanks around."""
        found = self.entries.get(_key(text))
        return None if found is None else like(text.strip(), found, self.target_lang, caps_from=2)

    def lost_word(self, source: str, translation: str) -> str | None:
        """A word of `source` that must be left in `translation` in some form and is not."""
        if not self.stems:
            return None
        said = [_key(word) for word in _WORD.findall(translation)]
        for word in _common_words(source):
            if word in self.stems and not any(form.startswith(self.stems[word]) for form in said):
                return word
        return None


def _key(text: str) -> str:
    """ё and е are one letter here: Russian texts write either."""
    return split_end(text.strip())[0].rstrip().casefold().replace("ё", "е")


def _common_words(text: str) -> list[str]:
    """Words but for names: those with a capital in the midst of a text, or before another such word."""
    words = _WORD.findall(text)
    capital = [*map(str.istitle, words), False]
    return [_key(word) for i, word in enumerate(words) if not capital[i] or (i == 0 and not capital[1])]


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadInput(f"{path}: larger than {_MAX_BYTES} bytes")
        return [line.removesuffix("\r") for line in path.read_text("utf-8").removesuffix("\n").split("\n")]
    except OSError as error:
        raise BadInput(f"translate.glossary: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
