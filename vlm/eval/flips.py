"""Whether speed changes answers: questions asked alone in plain transformers, and together as `vlm eval` does."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.errors import BadInput
from shards.files import write_json
from shards.sample import Sample
from vlm.config import Recipe
from vlm.eval.answering import Work, questions_of
from vlm.eval.config import QUANTISED, Decoding
from vlm.eval.engine import Answer, Engine
from vlm.eval.engines import KINDS
from vlm.eval.folder import FLIPS
from vlm.eval.generate import Answerer
from vlm.eval.pool import Prefix
from vlm.model.adapter import load_adapter
from vlm.model.adapters.quantised import quantise
from vlm.model.load import load_model, model_folder

# two-sided 95 %
_Z = 1.96

Choices = Sequence[Sequence[Sequence[str]]] | None


@dataclass(frozen=True)
class Flip:
    """A question with two answers."""

    question_id: str
    question: str
    alone: str
    together: str


@dataclass(frozen=True)
class Flips:
    """`rate` of `n` questions have another answer; with 95 % certainty at most `at_most` of all such questions do.

    `seconds` of the clock went into the answers `alone` and `together`.
    """

    n: int
    flips: int
    rate: float
    at_most: float
    reference: str
    alone_seconds: float
    together_seconds: float
    flipped: list[Flip]

    def lines(self) -> list[str]:
        """For people."""
        times = f"{self.alone_seconds:.1f} s alone, {self.together_seconds:.1f} s together"
        head = f"{self.flips} of {self.n} answers differ from those of {self.reference} ({times})"
        bound = f"{self.rate:.2%}; with 95 % certainty at most {self.at_most:.2%}"
        each = [f"{f.question_id}: {f.question} | alone: {f.alone} | together: {f.together}" for f in self.flipped]
        return [head, bound, *each]


def flips(
    recipe: Recipe, questions: int, beside: bool = False, progress: Callable[[int, int], None] | None = None
) -> Flips:
    """Ask at least `questions` questions, about images that lie evenly in the set, both ways.

    Alone means: batch 1, image and all, by transformers' own attention and cache; where answers are drawn, beams or
    choices, by our engine with nothing else in it. With `beside` the adapter is not merged into the weights there.
    Writes `flips.json` beside the evaluation's result, with the settings that it holds for.
    """
    if not KINDS[recipe.eval.engine].local:
        raise BadInput("eval.engine: a server's answers are not batched here; flips are counted with eval.engine=hf")
    work = Work.of(recipe, questions_of(recipe))
    dataset, asking, adapter = work.dataset, work.asking, work.adapter
    work.kind.check(recipe)
    samples = [dataset.read(i) for i in _spread(work.counts, questions)]
    prompts = [asking.prompts(sample.questions) for sample in samples]
    choices = asking.choices(samples)
    engine = work.kind.make(recipe, asking, adapter)
    assert isinstance(engine, Answerer)
    start = time.perf_counter()
    together = engine.answer(samples, prompts, choices)
    middle = time.perf_counter()
    reference, name = _reference(recipe, engine, adapter if beside else None)
    alone = _one_by_one(reference, samples, prompts, choices, progress)
    took = middle - start, time.perf_counter() - middle
    found = _counted(samples, alone, together, name, took)
    work.folder.mkdir(parents=True, exist_ok=True)
    write_json(work.folder / FLIPS, {**asdict(found), "settings": work.settings})
    return found


def _reference(recipe: Recipe, engine: Answerer, adapter: Path | None) -> tuple[Engine, str]:
    """What answers one question at a time, and what it is called."""
    if adapter is not None and (recipe.eval.constrain or engine.decoding != Decoding()):
        raise BadInput("--beside: only for greedy answers of any text; leave it out")
    if recipe.eval.constrain:
        return engine, "this engine, one question at a time, choices"
    if engine.decoding != Decoding():
        return engine, "this engine, one question at a time"
    if adapter is None:
        return Plain(engine, engine.model), "transformers, batch 1"
    base = load_model(model_folder(recipe.model), recipe.model.dtype, packed=False)
    model = load_adapter(quantise(base) if recipe.eval.quantize == QUANTISED else base, adapter)
    return Plain(engine, model.to(engine.model.device)), "transformers, batch 1, adapter beside the base"


def _one_by_one(
    reference: Engine,
    samples: Sequence[Sample],
    prompts: Sequence[Sequence[str]],
    choices: Choices,
    progress: Callable[[int, int], None] | None,
) -> list[list[Answer]]:
    found = []
    for i, sample in enumerate(samples):
        row = []
        for j, question in enumerate(sample.questions):
            one = None if choices is None else [[choices[i][j]]]
            [[answer]] = reference.answer([replace(sample, questions=(question,))], [[prompts[i][j]]], one)
            row.append(answer)
        found.append(row)
        if progress:
            progress(i + 1, len(samples))
    return found


def _counted(
    samples: Sequence[Sample],
    alone: Sequence[Sequence[Answer]],
    together: Sequence[Sequence[Answer]],
    reference: str,
    took: tuple[float, float],
) -> Flips:
    flipped = [
        Flip(question.question_id, question.question, one.text, other.text)
        for sample, row, others in zip(samples, alone, together, strict=True)
        for question, one, other in zip(sample.questions, row, others, strict=True)
        if one.text != other.text
    ]
    n = sum(len(sample.questions) for sample in samples)
    rate = len(flipped) / n
    return Flips(n, len(flipped), rate, _upper(rate, n), reference, took[1], took[0], flipped)


def _spread(counts: Sequence[int], questions: int) -> list[int]:
    """Samples with at least so many questions in all, evenly from the first to the last."""
    asked = [i for i, count in enumerate(counts) if count]
    if not asked:
        raise BadInput("eval.data: holds no questions; name another folder of shards")
    share = min(1.0, questions / sum(counts))
    images = min(len(asked), math.ceil(share * len(asked)))
    while True:
        chosen = sorted({asked[k * len(asked) // images] for k in range(images)})
        if images == len(asked) or sum(counts[i] for i in chosen) >= questions:
            return chosen
        images += 1


def _upper(rate: float, n: int) -> float:
    """Upper end of Wilson's interval."""
    z = _Z * _Z / n
    return min(1.0, (rate + z / 2 + _Z * math.sqrt(rate * (1 - rate) / n + z / (4 * n))) / (1 + z))


class Plain:
    """Greedy answers in plain transformers, one question after the other; `model` as `load_answering` gives it."""

    def __init__(self, engine: Answerer, model: nn.Module) -> None:
        self.engine, self.model = engine, model.eval()

    @torch.inference_mode()
    def answer(
        self, samples: Sequence[Sample], prompts: Sequence[Sequence[str]], choices: Choices = None
    ) -> list[list[Answer]]:
        """See `vlm.eval.engine.Engine`; there are no choices."""
        assert choices is None
        return [
            [self._one(*self.engine.split(sample, text)) for text in texts]
            for sample, texts in zip(samples, prompts, strict=True)
        ]

    def _one(self, prefix: Prefix, suffix: tuple[int, ...]) -> Answer:
        engine, device = self.engine, self.engine.model.device
        inputs: dict[str, Any] = {"input_ids": torch.tensor([[*prefix.ids, *suffix]], device=device)}
        if prefix.views is not None:
            pixels = torch.from_numpy(prefix.views).to(device)
            inputs["pixel_values"] = engine.pixels.normalise(pixels, engine.model.dtype)
        cache, past = None, len(prefix.ids) + len(suffix)
        made: list[int] = []
        while len(made) < engine.max_new_tokens:
            outputs = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = int(outputs.logits[0, -1].argmax())
            if token == engine.eos:
                return Answer(engine.text(made))
            made.append(token)
            cache = outputs.past_key_values
            inputs = {"input_ids": torch.tensor([[token]], device=device)}
            inputs["position_ids"] = torch.tensor([[past + len(made) - 1]], device=device)
        return Answer(engine.text(made), cut=True)
