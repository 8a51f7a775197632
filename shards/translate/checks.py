"""What makes a translation wrong beyond doubt, or doubtful enough to ask another engine."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from shards.errors import BadInput
from shards.sample import check_text
from shards.translate.config import QualityConfig
from shards.translate.glossary import Glossary
from shards.translate.numbers import lost_numbers
from shards.translate.protect import placeholders, without_placeholders

Kind = Literal[
    "untranslated", "text", "lines", "placeholders", "markup", "letters", "numbers", "word", "repetition", "copy",
    "script", "length", "language", "chrf",
]  # fmt: skip
KINDS: Mapping[Kind, str] = {
    "untranslated": "no translation, or one without a word",
    "text": "no text that a dataset can hold",
    "lines": "several lines for one",
    "placeholders": "a placeholder lost or made up",
    "markup": "asterisks or bars of markup lost or made up",
    "letters": "the letter of an option lost",
    "numbers": "a number lost or made up",
    "word": "a word of the glossary lost, such as a colour",
    "repetition": "the same words again and again",
    "copy": "the source itself",
    "script": "too many letters of another script",
    "length": "far too short or too long",
    "language": "another language",
    "chrf": "too unlike its source when translated back",
}

# First words of Unicode's names of letters, for languages that are not written in Latin letters.
_SCRIPTS = {
    **dict.fromkeys(("ru", "uk", "be", "bg", "sr", "mk", "kk", "ky", "tg", "tt", "mn", "ba", "cv"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL", "CJK"),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "hy": ("ARMENIAN",),
    "ka": ("GEORGIAN",),
    "th": ("THAI",),
    "bn": ("BENGALI",),
    "ta": ("TAMIL",),
}
# Languages that an engine may slip into. More of them would take probability from short texts for nothing.
_CANDIDATES = frozenset(
    ("ar", "bg", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "uk", "vi", "zh")
)

_LOOP = re.compile(r"(\S.{0,60}?)\1{4,}", re.IGNORECASE)
_LETTER_RUN = re.compile(r"[^\W\d_]+")
_MARKUP = re.compile(r"\*\*|\|")
# a capital alone, such as names an option: no article or pronoun, initial, unit (5 V) or part of a word (T-shirt)
_LETTER = re.compile(
    r"(?<![\w.&'’/+°-])(?<!\d\s)(?:[B-HJ-Z]|(?<=\()A(?=\))|(?<=\w\s)A(?=[.!?]*$))(?![\w&'’/+-]|\.\s?\w)"
)
_LATIN_CAPITAL = re.compile(r"(?<!\w)[A-Z](?!\w)")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a translation is not taken."""

    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class Figures:
    """A translation in figures.

    `language` is None where the text is too short to say; `script` is the share of letters in the language's script,
    None without letters; `ratio` is length ÷ length of the source, in characters.
    """

    language: str | None
    probability: float | None
    script: float | None
    ratio: float


class Checker:
    """Checks of one direction; without a config only those that keep a sample whole."""

    def __init__(
        self, config: QualityConfig | None, source_lang: str, target_lang: str, glossary: Glossary | None = None
    ) -> None:
        self.config, self.glossary = config, glossary or Glossary()
        self.source_lang, self.target_lang = _primary(source_lang), _primary(target_lang)

    def figures(self, source: str, translation: str) -> Figures:
        """The figures of a translation, for the checks and for the report."""
        source, translation = without_placeholders(source).strip(), without_placeholders(translation).strip()
        language, probability = None, None
        if self.config and self.config.languages and _letters(translation) >= self.config.min_letters:
            language, probability = identify(translation, self.source_lang, self.target_lang)
        script = _script_share(source, translation, self.target_lang)
        return Figures(language, probability, script, round(len(translation) / max(len(source), 1), 4))

    def structure(self, source: str, translation: str | None) -> Problem | None:
        """What would spoil the text that the translation goes into."""
        if translation is None or not translation.strip():
            return Problem("untranslated", "the engine has none")
        try:
            check_text(translation, "translation")
        except BadInput as error:
            return Problem("text", str(error))
        if not _letters(bare := without_placeholders(translation)) and not (_has_digit(bare) and _has_digit(source)):
            return Problem("untranslated", f"no word in {translation!r:.100}")
        if len(translation.strip().splitlines()) > 1:
            return Problem("lines", f"{len(translation.strip().splitlines())} lines for one")
        if (found := placeholders(translation)) != (wanted := placeholders(source)):
            return Problem("placeholders", f"{_tags(found)} instead of {_tags(wanted)}")
        return None

    def quality(self, source: str, translation: str, figures: Figures) -> Problem | None:
        """What the config does not let pass."""
        if self.config is None:
            return None
        source, translation = without_placeholders(source), without_placeholders(translation)
        checks: tuple[Callable[[str, str, Figures, QualityConfig], Problem | None], ...] = (
            self._markup,
            self._option_letters,
            self._numbers,
            self._words,
            self._repetition,
            self._copy,
            self._script,
            self._length,
            self._language,
        )
        return next((p for check in checks if (p := check(source, translation, figures, self.config))), None)

    def _markup(self, source: str, translation: str, figures: Figures, config: QualityConfig) -> Problem | None:
        found, wanted = (sorted(_MARKUP.findall(text)) for text in (translation, source))
        reason = f"{' '.join(found) or 'none':.100} instead of {' '.join(wanted) or 'none':.100}"
        return None if found == wanted else Problem("markup", reason)

    def _option_letters(self, source: str, translation: str, figures: Figures, config: QualityConfig) -> Problem | None:
        lost = Counter(_LETTER.findall(source)) - Counter(_LATIN_CAPITAL.findall(translation))
        return Problem("letters", f"{' '.join(sorted(lost.elements())):.100} lost") if lost else None

    def _numbers(self, source: str, translation: str, figures: Figures, config: QualityConfig) -> Problem | None:
        if not config.numbers:
            return None
        lost, new = lost_numbers(source, translation, self.source_lang, self.target_lang)
        parts = [f"{' '.join(numbers):.100} {what}" for numbers, what in ((lost, "lost"), (new, "new")) if numbers]
        return Problem("numbers", ", ".join(parts)) if parts else None

    def _words(self, source: str, translation: str, figures: Figures, config: QualityConfig) -> Problem | None:
        word = self.glossary.lost_word(source, translation) if config.words else None
        return None if word is None else Problem("word", f"{word!r:.50} is lost")

    def _repetition(self, source: str, translation: str, figures: Figures, config: QualityConfig) -> Problem | None:
        loop = _loop(translation)
        if loop is None or _loop(source):
            return None
        return Problem("repetition", f"{loop!r:.100} again and again")

    def _copy(self, source: str, translation: str, figures: Figures, config: QualityConfig) -> Problem | None:
        same = source.strip().casefold() == translation.strip().casefold()
        if not same or _letters(source) < config.min_letters:
            return None
        return Problem("copy", "the source itself")

    def _script(self, source: str, translation: str, figures: Figures, config: QualityConfig) -> Problem | None:
        if figures.script is None or figures.script >= config.min_script:
            return None
        return Problem("script", f"{figures.script:.2f} of the letters are in the script of {self.target_lang}")

    def _length(self, source: str, translation: str, figures: Figures, config: QualityConfig) -> Problem | None:
        within = config.min_length_ratio <= figures.ratio <= config.max_length_ratio
        if within or len(source.strip()) < config.length_from:
            return None
        return Problem("length", f"{figures.ratio:.2f} times as long as the source")

    def _language(self, source: str, translation: str, figures: Figures, config: QualityConfig) -> Problem | None:
        if figures.probability is None or figures.probability >= config.min_language_probability:
            return None
        reason = f"it looks like {figures.language}; {self.target_lang} has probability {figures.probability:.3f}"
        return Problem("language", reason)


def identify(text: str, source_lang: str, target_lang: str) -> tuple[str | None, float | None]:
    """(most probable language, probability of `target_lang`); (None, None) where the target is not known."""
    identifier = _identifier(frozenset((source_lang, target_lang)))
    if target_lang not in identifier.nb_classes:
        return None, None
    ranked = identifier.rank(text)
    return str(ranked[0][0]), round(float(dict(ranked)[target_lang]), 4)


@cache
def chrf_metric() -> Callable[[str, str], float]:
    """chrF of (hypothesis, reference), 0 to 100."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    return lambda hypothesis, reference: round(float(metric.sentence_score(hypothesis, [reference]).score), 2)


@cache
def _identifier(pair: frozenset[str]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = set(identifier.nb_classes)
    identifier.set_languages(sorted(known & (_CANDIDATES | pair)))
    return identifier


def _primary(lang: str) -> str:
    return lang.split("-")[0].lower()


def _loop(text: str) -> str | None:
    """Words or letters that come at least five times in a row."""
    return next((found[1].strip() for found in _LOOP.finditer(text + " ") if _letters(found[1])), None)


def _tags(numbers: list[int]) -> str:
    return " ".join(f"<x{number}/>" for number in numbers[:20]) or "no placeholder"


def _letters(text: str) -> int:
    return sum(char.isalpha() for char in text)


def _has_digit(text: str) -> bool:
    return any(char.isdigit() for char in text)


def _script_share(source: str, translation: str, lang: str) -> float | None:
    """Names, which are words with a capital that stand in the source too, do not count."""
    names = set(_LETTER_RUN.findall(source))
    words = [w for w in _LETTER_RUN.findall(translation) if w == w.lower() or w not in names]
    letters = [char for word in words for char in word]
    scripts = _SCRIPTS.get(lang, ("LATIN",))
    return round(sum(_script(char) in scripts for char in letters) / len(letters), 4) if letters else None


@cache
def _script(char: str) -> str:
    return unicodedata.name(char, "").split(" ")[0]
