"""Case, final period and blanks of a source text, given to its translation."""

import re
import unicodedata

_ENDS = ".!?…:;。！？।؟：；؛"
# marks of other scripts that say the same: a translation may keep its own
_SAME = str.maketrans("。！？।؟：；؛", ".!?.?:;;")
# p.m., т. д. and г.: their period belongs to them, whatever the other language writes
_ABBREVIATED = re.compile(r"(?:\.\s?[^\W\d_]|\s[a-zа-я])\.$")
_FIRST = re.compile(r"[\"'«“„(\[¿¡]*([^\W\d_])")
_PLACEHOLDER = re.compile(r"(<x\d+/>)")


def split_end(text: str) -> tuple[str, str]:
    """A text and the run of final marks (. ! ? … : ;) after it."""
    body = text.rstrip(_ENDS)
    return (body, text[len(body) :]) if body else (text, "")


def like(source: str, translation: str, lang: str, caps_from: int = 4) -> str:
    """`translation` in NFC with the case and the final mark of `source`, no blanks around.

    A text all in capitals is one of at least `caps_from` letters: shorter ones may be abbreviations. `lang` is the
    translation's; German nouns and the English `I` keep their capitals.
    """
    return _cased(source, _ended(source, unicodedata.normalize("NFC", translation).strip()), lang, caps_from)


def _ended(source: str, translation: str) -> str:
    stem, wanted = split_end(source)
    if not stem[-1:].isalnum() and stem[-1:] not in "%>":  # after a quote or bracket, marks follow the language
        return translation
    body, end = split_end(translation)
    same = end.translate(_SAME) == wanted.translate(_SAME)
    if same or any(map(_ABBREVIATED.search, (source, translation))):
        return translation
    return body.rstrip() + wanted


def _cased(source: str, translation: str, lang: str, caps_from: int) -> str:
    pieces = _PLACEHOLDER.split(source)
    letters = [char for piece in pieces[::2] for char in piece if char.lower() != char.upper()]
    if len(letters) >= caps_from and all(char.isupper() for char in letters):
        parts = _PLACEHOLDER.split(translation)
        return "".join(part if i % 2 else part.upper() for i, part in enumerate(parts))
    first, other = _FIRST.match(source), _FIRST.match(translation)
    if first is None or other is None:
        return translation
    at = other.start(1)
    if translation[at:].split(maxsplit=1)[0] in source.split():  # a name, such as iPhone or Ford
        return translation
    if first[1].isupper():
        return translation[:at] + translation[at].upper() + translation[at + 1 :]
    if first[1].islower() and not _keeps_capital(translation[at:], lang):
        return translation[:at] + translation[at].lower() + translation[at + 1 :]
    return translation


def _keeps_capital(text: str, lang: str) -> bool:
    word = re.split(r"[^\w]", text, maxsplit=1)[0]
    abbreviation = sum(char.isupper() for char in word) > 1
    return abbreviation or lang.split("-")[0] == "de" or (lang.split("-")[0] == "en" and word == "I")
