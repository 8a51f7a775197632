"""Engine that translates with a model in memory."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache

import torch

from shards.translate.config import TranslateConfig
from shards.translate.fewshot import FewShot, clean
from vlm.translation.causal import Causal
from vlm.translation.checkpoint import Checkpoint, load_checkpoint
from vlm.translation.seq2seq import Seq2Seq, find_direction


class HfEngine:
    """Texts in batches of like length, in the order of their lengths; results in the order of the texts.

    A translation is a function of its text but for the rounding of floating-point sums, which differs with what shares
    a batch: where two tokens are likely to six digits alike, the other may be chosen. A text that is too long for the
    model, or whose translation does not end within `max_new_tokens`, has no translation.
    """

    def __init__(
        self, checkpoint: Checkpoint, method: Seq2Seq | Causal, settings: Sequence[object], config: TranslateConfig
    ) -> None:
        """`settings` is all that decides the translations besides the weights."""
        self.method = method
        digest = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()
        self.name = "hf"
        self.model = f"{checkpoint.identity}#{digest[:16]}"
        self.source_lang, self.target_lang = config.source_lang, config.target_lang
        self.batch_size = config.batch_size

    @torch.inference_mode()
    def translate(self, texts: Sequence[str]) -> list[str | None]:
        """One translation a text."""
        prompts = {
            number: ids for number, text in enumerate(texts) if self.method.fits(ids := self.method.encode(text))
        }
        numbers = list(prompts)
        translations: list[str | None] = [None] * len(texts)
        for batch in self.method.batches([prompts[n] for n in numbers], self.batch_size):
            group = [numbers[i] for i in batch]
            replies = self.method.generate([prompts[n] for n in group])
            for number, (reply, finished) in zip(group, replies, strict=True):
                translations[number] = clean(texts[number], reply, finished)
        return translations


_loaded = lru_cache(maxsize=2)(load_checkpoint)


def make(config: TranslateConfig) -> HfEngine:
    """Load a config's model; whether it has an encoder says how it is asked."""
    # a chain and its way back may name one model
    checkpoint = _loaded(config.model, config.device, config.dtype)
    common = [config.max_new_tokens, str(checkpoint.model.dtype)]
    if checkpoint.model.config.is_encoder_decoder:
        direction = find_direction(checkpoint, config.source_lang, config.target_lang)
        seq2seq = Seq2Seq(checkpoint, direction, config.max_new_tokens)
        return HfEngine(checkpoint, seq2seq, [*common, str(direction)], config)
    prompt = FewShot.load(config.examples, config.source_lang, config.target_lang)
    return HfEngine(checkpoint, Causal(checkpoint, prompt, config.max_new_tokens), [*common, prompt.digest], config)
