"""How a language model is asked for a translation, and what of its reply is the translation."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from shards.errors import BadInput
from shards.translate.languages import language_name
from shards.translate.memory import TranslationMemory

EXAMPLES = Path(__file__).parent / "examples"

_QUOTES = (('"', '"'), ("'", "'"), ("«", "»"), ("“", "”"), ("„", "“"), ("`", "`"))
_THOUGHT = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_QUOTE_MARKS = frozenset("".join(left + right for left, right in _QUOTES))


@dataclass(frozen=True)
class FewShot:
    """Instruction and example pairs, (source, target), of one direction."""

    source_lang: str
    target_lang: str
    examples: tuple[tuple[str, str], ...]

    @classmethod
    def load(cls, name: str, source_lang: str, target_lang: str) -> "FewShot":
        """Examples of a file in the form of a translation memory, which works both ways.

        Without a name: those that come along for the two languages, else none. BadInput when a named one is missing.
        """
        packaged = {path.name.removesuffix(".tsv"): path for path in sorted(EXAMPLES.glob("*.tsv"))}
        pair = (f"{source_lang}-{target_lang}", f"{target_lang}-{source_lang}")
        chosen = name or next((candidate for candidate in pair if candidate in packaged), "")
        if not chosen:
            return cls(source_lang, target_lang, ())
        path = packaged.get(chosen, Path(chosen))
        if not path.is_file():
            raise BadInput(f"translate.examples={chosen!r:.300}: no such file, nor one of {', '.join(packaged)}")
        memory = TranslationMemory.load(path, source_lang, target_lang)
        return cls(source_lang, target_lang, tuple(memory.pairs.items()))

    @property
    def instruction(self) -> str:
        """What the model is told first."""
        source, target = language_name(self.source_lang), language_name(self.target_lang)
        return (
            f"Translate from {source} into {target}. Reply with one line: the translation alone. "
            "Copy every marker such as <x0/> unchanged."
        )

    def messages(self, text: str) -> list[dict[str, str]]:
        """A chat: the instruction as system message, examples as turns, `text` last."""
        turns = [
            {"role": role, "content": content}
            for pair in self.examples
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
        return [{"role": "system", "content": self.instruction}, *turns, {"role": "user", "content": text}]

    def completion(self, text: str) -> str:
        """The same as plain text that a base model goes on writing."""
        source, target = language_name(self.source_lang), language_name(self.target_lang)
        pairs = [f"{source}: {left}\n{target}: {right}\n\n" for left, right in self.examples]
        return f"{self.instruction}\n\n{''.join(pairs)}{source}: {text}\n{target}:"

    @property
    def digest(self) -> str:
        """SHA-256 of all that a model is told besides the text."""
        return hashlib.sha256(f"{self.messages('')}{self.completion('')}".encode()).hexdigest()


def clean(text: str, reply: str, finished: bool) -> str | None:
    """The translation in a reply: its first line after the thinking, without quotation marks that `text` has not.

    None when nothing is there, or when the reply was cut off (not `finished`) within that line.
    """
    line, line_end, _ = _THOUGHT.sub("", reply).strip().partition("\n")
    if not (finished or line_end):
        return None
    line = line.strip()
    quoted = len(line) > 1 and (line[0], line[-1]) in _QUOTES and not _QUOTE_MARKS & set(line[1:-1])
    if quoted and not _QUOTE_MARKS & set(text):
        line = line[1:-1].strip()
    return line or None
