"""Token ids of a dialogue's pieces, the same in training as in a prompt.

Byte-level tokenizers make the same tokens of a piece alone as inside its text. Those after SentencePiece (Llama 2,
Mistral 7B, Saiga) put a space before every text, so that an answer encoded alone would start with a token that no
prompt is ever followed by. There the whole dialogue is encoded once and cut where the pieces meet.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, repeat

from transformers import PreTrainedTokenizerBase

from shards.errors import BadInput
from shards.sample import Message
from vlm.data.template import IMAGE, ChatTemplate, Piece

_PROBES = (("a:", " b"), ("a\n", "b"), ("a", "\nb"))


class DialogueEncoder:
    """Encodes dialogues with one tokenizer and template; an image is `image_tokens` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, image_tokens: int) -> None:
        if marker := template.foreign_marker(tokenizer):
            raise BadInput(f"data.template: {template.name}: its {marker} is not a token of the language model")
        self.tokenizer, self.image_tokens = tokenizer, image_tokens
        self.template = template.opened(str(tokenizer.bos_token or ""))
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE))
        self._alone = lru_cache(maxsize=65536)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
        self.seamless = all(self._alone(a) + self._alone(b) == self._alone(a + b) for a, b in _PROBES)

    def encode(
        self, messages: Sequence[Message], generation_prompt: bool = False, views: int | Sequence[int] = 1
    ) -> tuple[list[int], list[bool]]:
        """Token ids and, of each, whether it is supervised. An image takes `image_tokens` tokens for each of its views,
        as many in every image or in each by itself."""
        pieces = list(self.template.render(messages, generation_prompt))
        counts = repeat(views) if isinstance(views, int) else chain(views, repeat(1))
        ids: list[int] = []
        supervised: list[bool] = []
        for piece, tokens in zip(pieces, self._tokens(pieces), strict=True):
            wide = [t for i in tokens for t in ([i] * self.image_tokens * next(counts) if i == self.image_id else [i])]
            ids += wide
            supervised += [piece.supervised] * len(wide)
        return ids, supervised

    def _tokens(self, pieces: list[Piece]) -> list[tuple[int, ...]]:
        alone = [self._alone(piece.text) for piece in pieces] if self.seamless or len(pieces) == 1 else []
        return alone or self._cut(pieces)

    def _cut(self, pieces: list[Piece]) -> list[tuple[int, ...]]:
        """Tokens of the whole text, by piece."""
        whole = self.tokenizer("".join(p.text for p in pieces), add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = whole["input_ids"], whole["offset_mapping"]
        found, at, end = [], 0, 0
        for piece in pieces:
            start, end = at, end + len(piece.text)
            while at < len(ids) and offsets[at][1] <= end:
                at += 1
            if at < len(ids) and offsets[at][0] < end:
                # one token holds the end of a prompt and the start of its answer, which no prompt alone can have
                return [self._alone(piece.text) for piece in pieces]
            found.append(tuple(ids[start:at]))
        return found
