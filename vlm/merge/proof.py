"""Whether a merged model is its base with the adapter beside it: both compute the same logits and the same answers.

Base and adapter are asked before anything is written: what is wrong with them is found then. Each reads its weights
layer by layer from the files. Logits are compared for a block of the vocabulary at a time, at positions all over the
probes, so nothing grows with the model.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.errors import BadInput
from vlm.merge.changes import finite
from vlm.merge.layout import Layout
from vlm.merge.probes import Probe, Vocabulary
from vlm.merge.seals import check_sealed
from vlm.merge.stream import Source
from vlm.merge.streamed import StreamedLinear, StreamedModel, Weights
from vlm.stop import Fault

# of the largest logit, by the coarsest dtype of the merged weights; docs/merge.md says where from
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
# of all numbers, for a dtype to count
_SHARE = 0.05
# positions of a probe whose logits are compared, besides those of its answer
_POSITIONS = 96
# numbers that the layers between two hidden states may take, which bounds the tokens of a pass
_ACTIVATIONS = 24 << 20


class Differs(Fault, RuntimeError):
    """The merged model is not what was merged."""


@dataclass(frozen=True)
class Proof:
    """`max_difference` of logits is relative to the largest one, over `positions` of the probes.

    `same_answers` counts those of `answers` greedy answers that no token changes; `first_difference` tells the first.
    """

    probes: int
    positions: int
    max_difference: float
    tolerance: float
    answers: int
    same_answers: int
    first_difference: str = ""

    @property
    def line(self) -> str:
        answers = f"; {self.same_answers} of {self.answers} greedy answers are the same" if self.answers else ""
        more = f" ({self.first_difference})" if self.first_difference else ""
        return f"logits agree to {self.max_difference:.1e} on {self.probes} samples{answers}{more}"


@dataclass(frozen=True)
class Limits:
    """How many of the probes are answered, by at most so many tokens."""

    answers: int
    tokens: int = 8


@dataclass(frozen=True)
class _Said:
    """A probe's `answer`, and its hidden states (N, hidden) at some positions, the last of them before the answer's
    tokens."""

    answer: tuple[int, ...]
    states_NH: Tensor

    @property
    def deciding(self) -> range:
        """Of the states those that the answer's tokens follow."""
        return range(len(self.states_NH) - len(self.answer), len(self.states_NH))


@dataclass(frozen=True)
class Expected:
    """What the base with its changes beside it says to `probes`. `largest` is the largest logit."""

    weights: Weights
    probes: list[Probe]
    said: list[_Said]
    head: StreamedLinear
    largest: float

    @classmethod
    def of(
        cls,
        base: Layout,
        source: Source,
        probes: Callable[[StreamedModel], list[Probe]],
        limits: Limits,
        progress: Callable[[int], None] = lambda read: None,
    ) -> "Expected":
        """Ask `base` and the changes of `source` beside it what `probes` gives for the model.

        BadInput where they do not fit its configuration, or compute nothing that could be compared.
        """
        with torch.inference_mode(), Weights(base, source, progress) as weights:
            model = StreamedModel(weights)
            asked = probes(model)
            said = _answers(model, asked, limits, Vocabulary.of(base.folder, model.config).ends)
            blocks = model.head.blocks(torch.cat([each.states_NH for each in said]))
            largest = float(torch.stack([logits_NV.abs().max() for _, logits_NV in blocks]).max())
        if not 0 < largest < math.inf:
            raise _not_finite(base)
        return cls(weights, asked, said, model.head, largest)

    def compare(self, merged: Layout, progress: Callable[[int], None] = lambda read: None) -> Proof:
        """Ask `merged` the same; Differs, a RuntimeError, beyond the tolerance of the coarsest dtype of its weights."""
        with torch.inference_mode(), self.weights, Weights(merged, None, progress) as after:
            model = StreamedModel(after)
            if model.head.size != self.head.size:
                raise Differs(
                    f"{merged.folder}: a vocabulary of {model.head.size} tokens; it should be {self.head.size}"
                )
            found = _states(model, self.probes, [said.answer for said in self.said])
            return _compare(self, model.head, found, _tolerance(merged))


def _not_finite(base: Layout) -> BadInput:
    for file in base.files:
        check_sealed(base.folder, file.path)
        for stored in file.tensors:
            for block in stored.blocks():
                finite(stored, block)
    return BadInput(f"{base.folder}: with the adapter its logits are all 0 or not finite; nothing can be proven of it")


def _tolerance(merged: Layout) -> float:
    """Of the coarsest dtype that holds a share worth speaking of: a small tensor must not excuse all others."""
    numbers: Counter[torch.dtype] = Counter()
    for tensor in (tensor for file in merged.files for tensor in file.tensors):
        numbers[tensor.dtype] += tensor.bytes // tensor.dtype.itemsize
    return max(TOLERANCE.get(d, 0.0) for d, n in numbers.items() if n >= _SHARE * numbers.total())


def _answers(model: StreamedModel, probes: list[Probe], limits: Limits, ends: frozenset[int]) -> list[_Said]:
    """Greedy answers without a cache, which would grow with the model.

    A pass computes what follows at every position of a guessed answer. It is right as far as the guess was, and one
    token further; what it says beyond is the next guess. At worst that is a pass for each token, as in generation.
    """
    wanted = [limits.tokens if i < limits.answers else 0 for i in range(len(probes))]
    guesses = [(*probe.guess, *[0] * most)[:most] for probe, most in zip(probes, wanted, strict=True)]
    done: dict[int, _Said] = {}
    while left := [i for i in range(len(probes)) if i not in done]:
        for i, states_NH in zip(
            left, _hidden(model, [probes[i] for i in left], [guesses[i] for i in left]), strict=True
        ):
            most = wanted[i]
            said = _best(model.head, states_NH[-most - 1 :])[:most] if most else []
            sure = next((k + 1 for k in range(most) if said[k] != guesses[i][k]), most)
            end = next((k + 1 for k in range(sure) if said[k] in ends), most)
            if sure < end:
                guesses[i] = tuple(said)
                continue
            # the state after the answer decides nothing, nor do those behind an end
            kept = states_NH[: len(states_NH) - (most - end) - 1] if most else states_NH
            done[i] = _Said(tuple(said[:end]), kept)
    return [done[i] for i in range(len(probes))]


def _states(model: StreamedModel, probes: list[Probe], answers: list[tuple[int, ...]]) -> list[_Said]:
    """What a model makes of answers that are given."""
    found = _hidden(model, probes, answers)
    return [
        _Said(answer, states_NH[:-1] if answer else states_NH) for answer, states_NH in zip(answers, found, strict=True)
    ]


def _hidden(model: StreamedModel, probes: Sequence[Probe], answers: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """States (N, hidden) at positions all over each prompt, its last among them, and at all of its answer."""
    found: list[Tensor] = []
    rows = [(*probe.prompt, *answer) for probe, answer in zip(probes, answers, strict=True)]
    for first, last in _batches(rows, model):
        width = max(map(len, rows[first:last]))
        ids_BT = torch.tensor([(*row, *[row[-1]] * (width - len(row))) for row in rows[first:last]])
        images = [probe.pixels for probe in probes[first:last] if probe.pixels is not None]
        hidden_BTH = model.hidden(ids_BT, torch.cat(images) if images else None)
        for i in range(first, last):
            end = len(probes[i].prompt)
            kept = torch.linspace(0, end - 1, min(end, _POSITIONS)).round().long().tolist()
            found.append(hidden_BTH[i - first, [*kept, *range(end, len(rows[i]))]])
    return found


def _batches(rows: Sequence[Sequence[int]], model: StreamedModel) -> list[tuple[int, int]]:
    """Spans of rows that go through the model together, padded to the longest."""
    text = model.config.get_text_config()
    most = _ACTIVATIONS // (3 * getattr(text, "intermediate_size", 4 * text.hidden_size) + 6 * text.hidden_size)
    spans, first = [], 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or max(map(len, rows[first : i + 1])) * (i + 1 - first) > most:
            spans.append((first, i))
            first = i
    return spans


def _best(head: StreamedLinear, states_NH: Tensor) -> list[int]:
    """The tokens of the largest logits."""
    best = _Best(len(states_NH))
    for first, logits_NV in head.blocks(states_NH):
        best.see(first, logits_NV)
    return best.tokens.tolist()


class _Best:
    """The largest of logits that come block by block."""

    def __init__(self, number: int) -> None:
        self.logits, self.tokens = torch.full((number,), -torch.inf), torch.zeros(number, dtype=torch.long)

    def see(self, first: int, logits_NV: Tensor) -> None:
        """Logits of the tokens from `first` on."""
        values, places = logits_NV.max(dim=1)
        better = values > self.logits
        self.logits = torch.where(better, values, self.logits)
        self.tokens = torch.where(better, places + first, self.tokens)


def _compare(expected: Expected, merged_head: StreamedLinear, found: list[_Said], tolerance: float) -> Proof:
    head, probes = expected.head, expected.probes
    before_NH, after_NH = (torch.cat([said.states_NH for said in each]) for each in (expected.said, found))
    best, difference = _Best(len(after_NH)), torch.zeros(())
    for (first, old), (_, new) in zip(head.blocks(before_NH), merged_head.blocks(after_NH), strict=True):
        difference = torch.maximum(difference, (new - old).abs().max())
        best.see(first, new)
    relative = float(difference) / expected.largest
    if not relative <= tolerance:
        raise Differs(
            f"merged logits differ from base + adapter by {relative:.2e} of the largest, more than {tolerance:.0e}"
        )
    same, first_difference, begin = 0, "", 0
    for probe, said in zip(probes, expected.said, strict=True):
        tokens = [int(best.tokens[begin + i]) for i in said.deciding]
        odd = next((k for k, (a, b) in enumerate(zip(said.answer, tokens, strict=True)) if a != b), None)
        same += odd is None and bool(said.answer)
        if odd is not None and not first_difference:
            state_NH = said.states_NH[said.deciding[odd]][None]
            margin = _margin(head, state_NH, said.answer[odd], tokens[odd]) / expected.largest
            first_difference = (
                f"{probe.name}: token {odd + 1} is {tokens[odd]} instead of {said.answer[odd]}, "
                f"by a margin of {margin:.1e} of the largest logit"
            )
        begin += len(said.states_NH)
    answers = sum(bool(said.answer) for said in expected.said)
    return Proof(len(probes), begin, relative, tolerance, answers, same, first_difference)


def _margin(head: StreamedLinear, state_1H: Tensor, token: int, other: int) -> float:
    """How much larger the logit of `token` is."""
    logits: dict[int, float] = {}
    for first, logits_1V in head.blocks(state_1H):
        logits |= {i: float(logits_1V[0, i - first]) for i in (token, other) if first <= i < first + logits_1V.shape[1]}
    return logits[token] - logits[other]
