"""A text as segments to translate and, between them, what no translation may touch.

Kept are line structure, columns and blank space, fenced and inline code, LaTeX, tags such as `<image>`, links, e-mail
addresses, coordinates, emoji, list bullets and numbers, option letters with their order, and whatever has no word in
it. What stands inside a sentence is replaced by placeholders `<x0/>`, which the translation must bring back.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from shards.prompts import prompts

# Every quantifier below is bounded or stops at its own opening: hostile texts take linear time.
_TAG = r"""</?[A-Za-z][\w:.-]*(?:[ \t]+[\w:.-]+[ \t]*=[ \t]*(?:"[^"<>\n]*"|'[^'<>\n]*'|[^\s<>"'=]+))*[ \t]*/?>"""
_EMOJI = r"[\u2600-\u27bf\U0001f000-\U0001faff][\u200d\ufe0f\u2600-\u27bf\U0001f000-\U0001faff]*"
_NUMBER = r"-?\d+(?:\.\d+)?%?"
_INLINE = re.compile(
    "|".join(
        (
            r"(?P<tag>" + _TAG + r"|<\|[^<>|\n]{1,60}\|>|<!--(?:(?!-->|<!--)[^\n])*-->|" + _EMOJI + ")",
            r"`{1,3}[^`\n]+`{1,3}",
            r"\$\$[^$\n]+\$\$",
            r"\$(?=[^\s$])[^$\n]*(?<=\S)\$(?!\d)",  # pandoc's rule, which leaves sums of money alone
            r"\\\((?:(?!\\[()])[^\n])*\\\)|\\\[(?:(?!\\[\[\]])[^\n])*\\\]",
            r"\\[A-Za-z]+(?:\{[^{}\n]{0,200}\})*",
            r"(?:(?:https?|ftp)://|www\.)[^\s<>\"«»]*[^\s<>\"«».,;:!?)\]'*_]",
            r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",
            r"\]\([^()\s]{1,2000}\)",
            r"&(?:#\d{1,7}|#x[0-9A-Fa-f]{1,6}|[A-Za-z]{2,10});",
            r"\{\{?[A-Za-z_][\w.]{0,50}\}?\}",
            rf"[\[(] ?{_NUMBER}(?:[ ]?,[ ]?{_NUMBER}){{1,63}} ?[\])]",
        )
    )
)
_MARKER = r"(?:[-*+•◦▪–—>]|#{1,6}|\d{1,3}[.)]|\(\d{1,3}\))"
_INITIALS = r"[^\W\d_]\.[ \t]*[^\W\d_]\."
_LETTER = r"(?:\([^\W\d_]\)[ \t]*|\[[^\W\d_]\][ \t]*|[^\W\d_][.):][ \t]+)"
_START = re.compile(rf"\s*(?:{_MARKER}[ \t]+){{0,4}}(?:(?!{_INITIALS}){_LETTER})?")
_OPTION = re.compile(rf"(?<![\w.])(?!{_INITIALS}){_LETTER}")
# the first option follows a mark, if anything: "vitamins (a) and (b)" are none
_BEFORE_OPTIONS = re.compile(r"(?:^|[-*•>.:?!;,])\s*$")
# cells of a table, columns of a text
_COLUMNS = re.compile(r"((?:^|[ \t]{1,100})\|(?:[ \t]{1,100}|$)|\t[ \t]*|[ ]{3,})")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[^`\n]*\s*")
_DISPLAY = {"$$": "$$", r"\[": r"\]"}
_WORD = re.compile(r"[^\W\d_]{2,}")
_PLACEHOLDER = re.compile(r"<x(\d+)/>")
# what engines make of a placeholder: capitals, blanks, the Cyrillic letter
_BENT = re.compile(r"<[ ]?[xXхХ][ ]?(\d{1,6})[ ]?/?[ ]?>")


@dataclass(frozen=True, slots=True)
class Segment:
    """One line or a part of one, without blanks around it; `inline[i]` is what `<xi/>` stands for."""

    text: str
    inline: tuple[str, ...] = ()

    def fill(self, translation: str) -> str:
        """A translation with the inline pieces put back."""
        return _PLACEHOLDER.sub(lambda found: self.inline[int(found[1])], translation)

    @property
    def source(self) -> str:
        """The segment as it stood in the text."""
        return self.fill(self.text)


Piece = str | Segment


def protect(text: str, prompts: Mapping[str, str] | None = None) -> tuple[Piece, ...]:
    """The pieces of `text` in order: kept strings and segments.

    `prompts` are lines with fixed translations, which take their place; one that ends in a colon is also known at the
    start of a line, and what follows it is kept.
    """
    return tuple(piece for piece in _pieces(text, prompts or {}) if piece)


def restore(pieces: tuple[Piece, ...], translate: Callable[[Segment], str]) -> str:
    """The text again, each segment replaced by what `translate` gives for it, placeholders filled."""
    return "".join(piece.fill(translate(piece)) if isinstance(piece, Segment) else piece for piece in pieces)


def placeholders(text: str) -> list[int]:
    """Numbers of the placeholders in a segment's text, sorted."""
    return sorted(int(found[1]) for found in _PLACEHOLDER.finditer(text))


def straighten(translation: str) -> str:
    """A translation whose placeholders are written as ours are."""
    return _BENT.sub(r"<x\1/>", translation)


def without_placeholders(text: str) -> str:
    """A segment's text with blanks for placeholders."""
    return _PLACEHOLDER.sub(" ", text)


def prompt_lines(source_lang: str, target_lang: str) -> dict[str, str]:
    """Response-format prompts of the source language → those of the target language, where the table has both."""
    source, target = source_lang.split("-")[0], target_lang.split("-")[0]
    return {row[source]: row[target] for row in prompts().values() if row.get(source) and row.get(target)}


def _pieces(text: str, prompts: Mapping[str, str]) -> Iterator[Piece]:
    end: Callable[[str], bool] | None = None
    for line in text.splitlines(keepends=True):
        if end is None:
            end = _block_end(line)
            if end is None:
                yield from _line(line, prompts)
                continue
        elif end(line):
            end = None
        yield line


def _block_end(line: str) -> Callable[[str], bool] | None:
    """How a block of code or LaTeX that `line` opens ends, if it opens one."""
    if close := _DISPLAY.get(line.strip()):
        return lambda other: other.strip() == close
    fence = _FENCE.fullmatch(line)
    if fence is None:
        return None
    mark = fence[1]
    return lambda other: other.strip().startswith(mark) and not other.strip(f" \t\r\n{mark[0]}")


def _line(line: str, prompts: Mapping[str, str]) -> Iterator[Piece]:
    body = line.strip()
    lead, trail = _around(line)
    if fixed := prompts.get(body):
        yield from (lead, fixed, trail)
        return
    head, colon, tail = body.partition(":")
    if tail and (fixed := prompts.get(head + colon)):
        yield from (lead, fixed, tail, trail)
        return
    start = _START.match(line)
    assert start is not None
    at = 0
    for begin, end in _options(line) or [start.span()]:
        yield from _columns(line[at:begin])
        yield line[begin:end]
        at = end
    yield from _columns(line[at:])


def _options(line: str) -> list[tuple[int, int]]:
    """Where the letters of options stand that share a line and are consecutive, such as `(A) … (B) …`."""
    found = list(_OPTION.finditer(line))
    letters = [next(filter(str.isalpha, option[0])) for option in found]
    if len(found) < 2 or not _BEFORE_OPTIONS.search(line[max(0, found[0].start() - 100) : found[0].start()]):
        return []
    consecutive = all(ord(after) == ord(before) + 1 for before, after in pairwise(letters))
    return [option.span() for option in found] if consecutive else []


def _columns(text: str) -> Iterator[Piece]:
    for i, part in enumerate(_COLUMNS.split(text)):
        if i % 2:
            yield part
        else:
            yield from _sentence(part)


def _sentence(text: str) -> Iterator[Piece]:
    """Blanks and tags around, and the segment inside."""
    tokens = list(_tokens(text))
    left, right = 0, len(tokens)
    while left < right and _outer(tokens[left]):
        left += 1
    while right > left and _outer(tokens[right - 1]):
        right -= 1
    inner = tokens[left:right]
    if not any(kind == "text" and _has_word(token) for kind, token in inner):
        yield text
        return
    yield "".join(token for _, token in tokens[:left])
    inline = [token for kind, token in inner if kind != "text"]
    numbers = iter(range(len(inline)))
    masked = "".join(token if kind == "text" else f"<x{next(numbers)}/>" for kind, token in inner)
    lead, trail = _around(masked)
    yield lead
    yield Segment(masked.strip(), tuple(inline))
    yield trail
    yield "".join(token for _, token in tokens[right:])


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """("text", …), ("tag", …) or ("inline", …), in order."""
    at = 0
    for found in _INLINE.finditer(text):
        if found.start() > at:
            yield "text", text[at : found.start()]
        yield "tag" if found["tag"] else "inline", found[0]
        at = found.end()
    if at < len(text):
        yield "text", text[at:]


def _outer(token: tuple[str, str]) -> bool:
    kind, text = token
    return kind == "tag" or (kind == "text" and not text.strip())


def _has_word(text: str) -> bool:
    """Two letters in a row, or one letter of a script without words of letters, such as Chinese."""
    return bool(_WORD.search(text)) or any(unicodedata.category(char) == "Lo" for char in text)


def _around(text: str) -> tuple[str, str]:
    """Blanks before and after what `text` says."""
    stripped = text.lstrip()
    return text[: len(text) - len(stripped)], stripped[len(stripped.rstrip()) :]
