"""What a merged model is asked beside its base and adapter: samples of a set, or drawn tokens where there is none."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.errors import BadInput
from shards.files import read_json
from vlm.merge.companions import end_tokens

# drawn probes are so long; a prompt of a set that is longer than _MOST is passed over
_DRAWN, _MOST = 24, 768
_SEED = 7


@dataclass(frozen=True)
class Probe:
    """A prompt's token ids, and the image in it as the tower takes it, (1, 3, H, W). `guess` may begin its answer."""

    name: str
    prompt: tuple[int, ...]
    pixels: Tensor | None = None
    guess: tuple[int, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """Of a model: how many tokens, those that end an answer, and the image's place (None without a tower)."""

    size: int
    ends: frozenset[int]
    image: int | None

    @classmethod
    def of(cls, folder: Path, config: Any) -> "Vocabulary":
        """From the model's configuration and the folder's generation configuration; BadInput where that is garbage."""
        path = folder / "generation_config.json"
        told = read_json(path) if path.exists() else {}
        text = config.get_text_config()
        end = told.get("eos_token_id") if isinstance(told, dict) else None
        end = getattr(text, "eos_token_id", None) if end is None else end
        return cls(text.vocab_size, frozenset(end_tokens(end, path)), getattr(config, "image_token_id", None))


def drawn(number: int, vocabulary: Vocabulary, config: Any) -> list[Probe]:
    """Drawn tokens, the same each time; before those of the first stands an image of noise where there is a tower."""
    generator = torch.Generator().manual_seed(_SEED)
    found = []
    for i in range(number):
        ids = torch.randint(vocabulary.size, (_DRAWN,), generator=generator).tolist()
        ids, pixels = [0 if token == vocabulary.image else token for token in ids], None
        if i == 0 and vocabulary.image is not None:
            side = config.vision_config.image_size
            pixels = torch.randn(1, 3, side, side, generator=generator)
            ids = [ids[0], *[vocabulary.image] * config.image_seq_length, *ids[1:]]
        found.append(Probe(f"drawn-{i}", tuple(ids), pixels))
    return found


def of_set(number: int, folder: Path, base: Path) -> list[Probe]:
    """The first questions of samples from all over a folder of shards, as the base's template puts them.

    BadInput where `base` was not assembled by us, or no sample has a prompt short enough.
    """
    from shards.dataset import ShardDataset
    from vlm.data.documents import Tokeniser
    from vlm.data.images import Pixels
    from vlm.model.assemble import Assembly
    from vlm.model.load import load_tokenizer

    dataset, assembly, pixels = ShardDataset.open(folder), Assembly.read(base), Pixels.of(base)
    tokeniser = Tokeniser(load_tokenizer(base), assembly.chat(""), assembly.image_tokens, max_length=2**20)
    found: list[Probe] = []
    for i in _spread(len(dataset)):
        if len(found) == number:
            break
        sample = dataset.read(i)
        document = tokeniser.document(sample)
        supervised = (document.labels >= 0).tolist()
        if True not in supervised or supervised.index(True) >= _MOST or document.images > 1:
            continue
        first = supervised.index(True)
        last = supervised.index(False, first) if False in supervised[first:] else len(supervised)
        prompt, guess = document.input_ids[: first + 1].tolist(), document.labels[first:last].tolist()
        shown = None
        if sample.image is not None and tokeniser.image_id in prompt:
            shown = pixels.normalise(torch.tensor(pixels.decode(sample.image))[None], torch.float32)
        found.append(Probe(sample.key, tuple(prompt), shown, tuple(guess)))
    if not found:
        raise BadInput(f"{folder}: no sample has a question of at most {_MOST} tokens; give another set")
    return found


def _spread(total: int) -> Iterator[int]:
    """All of 0 to total - 1, from afar to near: halves, quarters and so on."""
    seen: set[int] = set()
    parts = 1
    while len(seen) < total:
        for k in range(parts):
            if (i := k * total // parts) not in seen:
                seen.add(i)
                yield i
        parts *= 2
