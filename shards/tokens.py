"""Lengths of texts in the tokens of a model."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from shards.errors import BadInput

TOKENIZER_FILE = "tokenizer.json"


class TokenCounter:
    """A tokenizer that only counts. Safe from threads."""

    def __init__(self, path: Path | str) -> None:
        """`path` is a tokenizer.json or a folder that holds one; BadInput, with the remedy, otherwise."""
        given = Path(path)
        file = given / TOKENIZER_FILE if given.is_dir() else given
        if not file.is_file():
            raise BadInput(f"tokenizer {path}: no {TOKENIZER_FILE} there; give the file or its folder")
        self.name = file.resolve().parent.name if file.name == TOKENIZER_FILE else file.name
        self._tokenizer = _load(file)
        self.vocabulary: int = self._tokenizer.get_vocab_size()

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, without the special tokens that a model adds at its ends."""
        return list(map(len, self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)))


def _load(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{file}: not a tokenizer of the tokenizers library ({reason}); save it again") from error
    # a saved tokenizer may cut or fill up what it encodes, and then the lengths would be its own
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
