"""Language models asked for a translation by instruction and examples."""

import copy
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import DynamicCache

from shards.translate.fewshot import FewShot
from vlm.translation.checkpoint import Checkpoint

# texts whose prompts have nothing in common but what all prompts have
_PROBES = ("A", "the", "?", "есть", "<x0/>", "7", "—")


class Causal:
    """Greedy decoding to the end of the line.

    What all prompts begin with goes through the model once; its key/value cache is shared by every batch.
    """

    def __init__(self, checkpoint: Checkpoint, prompt: FewShot, max_new_tokens: int) -> None:
        self.checkpoint, self.prompt, self.max_new_tokens = checkpoint, prompt, max_new_tokens
        self.tokenizer = checkpoint.tokenizer
        ends = checkpoint.model.generation_config.eos_token_id
        ends = [self.tokenizer.eos_token_id] if ends is None else [ends] if isinstance(ends, int) else ends
        self.ends = frozenset(ends)
        columns = zip(*map(self.encode, _PROBES), strict=False)
        common = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
        # the last may be a blank that another text's first word takes into its own token
        self.prefix = common[:-1]
        self._cache: DynamicCache | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a whole prompt."""
        if not self.tokenizer.chat_template:
            return list(self.tokenizer(self.prompt.completion(text)).input_ids)
        messages = self.prompt.messages(text)
        try:
            return self._chat(messages)
        except TemplateError:  # such as Gemma's, which knows no system role
            system, first, *rest = messages
            return self._chat([{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest])

    def _chat(self, messages: list[dict[str, str]]) -> list[int]:
        return list(
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        )

    def fits(self, ids: Sequence[int]) -> bool:
        """Whether the model has positions for prompt and translation."""
        limit = self.checkpoint.max_length
        return limit is None or len(ids) + self.max_new_tokens <= limit

    def batches(self, prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
        """Indices of prompts that go together: neighbours in length that share the prefix.

        Of one length, where padding could push tokens out of a sliding window.
        """
        narrow = self._narrow(prompts)
        groups: dict[tuple[bool, int], list[int]] = defaultdict(list)
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            groups[self._shares(prompts[i]), len(prompts[i]) if narrow else 0].append(i)
        return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]

    def _shares(self, ids: Sequence[int]) -> bool:
        return list(ids[: len(self.prefix)]) == self.prefix and len(ids) > len(self.prefix)

    def _narrow(self, prompts: Sequence[Sequence[int]]) -> bool:
        window = getattr(self.checkpoint.model.config.get_text_config(), "sliding_window", None)
        return isinstance(window, int) and max(map(len, prompts), default=0) + self.max_new_tokens > window

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[tuple[str, bool]]:
        """(text, whether it came to its end) of each prompt of a batch."""
        past = len(self.prefix) if self._shares(prompts[0]) else 0
        cache = self._fork(len(prompts)) if past else DynamicCache(config=self.checkpoint.model.config)
        return self._decode(cache, past, [list(ids[past:]) for ids in prompts])

    def _fork(self, rows: int) -> DynamicCache:
        """The prefix's cache, for `rows` prompts; the keys and values themselves are not copied."""
        if self._cache is None:
            ids = torch.tensor([self.prefix], device=self.checkpoint.device)
            self._cache = self.checkpoint.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        # copied layer by layer, so that a sliding window's count of tokens already dropped comes along
        fork = copy.copy(self._cache)
        fork.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in fork.layers:
            layer.keys, layer.values = layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)
        return fork

    def _decode(self, cache: DynamicCache, past: int, suffixes: list[list[int]]) -> list[tuple[str, bool]]:
        """Greedy decoding behind `past` cached tokens; suffixes of different lengths are padded on the left."""
        device, longest = self.checkpoint.device, max(map(len, suffixes))
        pads = torch.tensor([longest - len(suffix) for suffix in suffixes], device=device)[:, None]
        ids = torch.tensor([[0] * (longest - len(suffix)) + suffix for suffix in suffixes], device=device)
        mask = torch.arange(past + longest, device=device).expand(len(ids), -1)
        mask = ((mask < past) | (mask >= past + pads)).long()
        positions = (past + torch.arange(longest, device=device) - pads).clamp(min=0)
        produced: list[list[int]] = [[] for _ in suffixes]
        done = [False] * len(suffixes)
        for _ in range(self.max_new_tokens):
            chosen = self._step(cache, ids, mask, positions)
            for row, token in enumerate(chosen.tolist()):
                if not done[row]:
                    done[row] = self._ends(produced[row], token)
            if all(done):
                break
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        return [(self._text(row), end) for row, end in zip(produced, done, strict=True)]

    def _step(self, cache: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """The likeliest next token of each row, (rows,)."""
        logits = self.checkpoint.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1].argmax(-1)

    def _ends(self, row: list[int], token: int) -> bool:
        """Take a token up, unless it ends the text; a line that has begun ends it too."""
        if token in self.ends:
            return True
        row.append(token)
        return "\n" in self._text(row).lstrip()

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
