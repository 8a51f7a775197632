"""An evaluation's questions answered: this process's part of them, chunk after chunk, each on the disk before the next.

A killed part goes on where it stood. A chunk that was not whole is answered again whole, so that batches, and with them
the last bit of every answer, stay as in an unbroken run; an engine whose answers are independent of each other gets
only the questions that are left.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shards.crowd import Unfinished
from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.files import write_json
from shards.sample import Sample
from vlm import stop
from vlm.config import Recipe
from vlm.eval.adapter import adapter_digest, adapter_folder
from vlm.eval.asking import Asking
from vlm.eval.chunks import cut, deal
from vlm.eval.engine import Answer, Engine
from vlm.eval.engines import KINDS, Kind
from vlm.eval.folder import RESULT, folder_of
from vlm.eval.journal import Journal, answered
from vlm.eval.locks import alone, at_work
from vlm.eval.memory import note_memory
from vlm.eval.parts import SETTINGS, Answered, Part, Row, claim_settings
from vlm.eval.score import asked
from vlm.model.assemble import weights_digest

Progress = Callable[[int, int], None]

# what of the section `eval` changes no answer, or is bound by a digest or in another way
_UNBOUND = {
    "name", "task", "scorer", "data", "adapter", "protocol", "answers", "instruction", "max_new_tokens", "key_env",
    "concurrency", "requests_per_minute", "retries", "timeout_seconds",
}  # fmt: skip
# tokens of an image for the cost of a part where the model is not at hand, and of a question's text, which the index
# does not know
_IMAGE_TOKENS, _TEXT_TOKENS = 576, 32


@dataclass(frozen=True)
class AnsweredBy:
    """Which model answered.

    `model` is its folder, or what a server calls it; `weights` and `adapter_digest` are digests, `template` is empty
    where it is the model's own. What does not apply is None.
    """

    engine: str
    model: str
    url: str | None
    weights: str | None
    adapter: str | None
    adapter_digest: str | None
    dtype: str | None
    template: str | None


def questions_of(recipe: Recipe) -> ShardDataset:
    """The shards that `eval.data` names; BadInput where they hold no questions."""
    if not recipe.eval.data:
        raise BadInput("eval.data: empty; name the folder of the shards with the questions")
    dataset = ShardDataset.open(Path(recipe.eval.data))
    if not dataset.info.questions:
        raise BadInput(f"eval.data: {recipe.eval.data} holds no questions")
    return dataset


@dataclass(frozen=True)
class Work:
    """The questions of an evaluation and how they are asked; `folder` is RUN/eval/NAME."""

    recipe: Recipe
    folder: Path
    dataset: ShardDataset
    adapter: Path | None
    asking: Asking

    @classmethod
    def of(cls, recipe: Recipe, dataset: ShardDataset) -> "Work":
        """What a recipe asks of these questions; BadInput where that cannot be."""
        asking, folder = Asking.of(recipe.eval, dataset.info.lang), folder_of(recipe.run, recipe.eval.name)
        return cls(recipe, folder, dataset, adapter_folder(recipe), asking)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides the answers."""
        recipe, by = self.recipe, self.answered_by
        return {
            **{name: value for name, value in asdict(recipe.eval).items() if name not in _UNBOUND},
            "data": self.dataset.digest,
            "instruction": self.asking.instruction,
            "max_new_tokens": self.asking.max_new_tokens,
            "choices": self.asking.task.name if self.asking.constrain else None,
            "weights": by.weights,
            "adapter": by.adapter_digest,
            "dtype": by.dtype,
            "template": by.template,
        }

    @property
    def kind(self) -> Kind:
        """Of the engine."""
        return KINDS[self.recipe.eval.engine]

    @cached_property
    def answered_by(self) -> AnsweredBy:
        """The model that answers."""
        recipe, config, local = self.recipe, self.recipe.eval, self.kind.local
        return AnsweredBy(
            engine=config.engine,
            model=recipe.model.base if local else config.model,
            url=None if local else config.url,
            weights=weights_digest(Path(recipe.model.base)) if local else None,
            adapter=str(self.adapter) if self.adapter else None,
            adapter_digest=adapter_digest(self.adapter) if self.adapter else None,
            dtype=recipe.model.dtype if local else None,
            template=recipe.data.template if local else None,
        )

    @property
    def generation(self) -> dict[str, Any]:
        """How answers were made, for the result."""
        keys = set(asdict(self.recipe.eval)) - _UNBOUND - {"limit"} | {"max_new_tokens"}
        used = {name: value for name, value in self.settings.items() if name in keys and value != ""}
        return used | {"do_sample": self.recipe.eval.temperature > 0}

    @cached_property
    def counts(self) -> list[int]:
        """Questions of each sample that is asked of."""
        entries = self.dataset.entries
        return [entries[i].questions for i in range(len(entries))][: self.recipe.eval.limit or None]

    @property
    def samples(self) -> Iterator[Sample]:
        """Those that are asked of, read one after the other."""
        return (self.dataset.read(i) for i in range(len(self.counts)))

    @cached_property
    def order(self) -> list[int]:
        """Samples, those of one picture side by side as far as the index tells: MMBench's rotations stand far apart.

        Pictures of one length and size are taken for one; where that is wrong, only the order is another.
        """
        entries, together = self.dataset.entries, dict[object, list[int]]()
        for i in range(len(self.counts)):
            entry = entries[i]
            picture = (entry.members[entry.image_ext][1], entry.image_size) if entry.image_ext else i
            together.setdefault(picture, []).append(i)
        return [i for samples in together.values() for i in samples]

    @cached_property
    def chunks(self) -> list[list[int]]:
        """Samples that are answered together."""
        counts = [self.counts[i] for i in self.order]
        return [self.order[chunk.start : chunk.stop] for chunk in cut(counts, self.kind.chunk(self.recipe))]

    def mine(self, part: Part) -> list[list[int]]:
        """The part's chunks."""
        image, question = self._image_tokens(), _TEXT_TOKENS + self.asking.max_new_tokens
        costs = [sum(image(i) + self.counts[i] * question for i in chunk) for chunk in self.chunks]
        return [self.chunks[number] for number in deal(costs, part.of)[part.index]]

    def _image_tokens(self) -> Callable[[int], int]:
        entries = self.dataset.entries
        if not self.kind.local:
            return lambda i: _IMAGE_TOKENS if entries[i].image_size else 0
        from vlm.data.images import Pixels
        from vlm.model.assemble import Assembly

        folder = Path(self.recipe.model.base)
        tokens, pixels = Assembly.read(folder).image_tokens, Pixels.of(folder)
        return lambda i: tokens * pixels.count(*size) if (size := entries[i].image_size) else 0

    def questions(self, chunk: Sequence[int]) -> dict[str, int]:
        """Questions of each of its samples, by key."""
        return {self.dataset.entries.key(i): self.counts[i] for i in chunk}


def answer(work: Work, part: Part, progress: Progress | None = None) -> bool:
    """Answer what is left of a part, and write its file; whether anything was left.

    Raises Requeue after the chunk at hand when a stop was asked for, BadInput when the folder holds answers of other
    settings, or another process answers the part.
    """
    folder = work.folder
    # what cannot be answered or scored is not begun, nor is the folder bound to it
    if not (folder / SETTINGS).exists():
        work.kind.check(work.recipe)
    if work.asking.checks:
        work.asking.check(work.samples)
    with alone(folder):
        if (folder / RESULT).exists() and not (folder / SETTINGS).exists():
            raise BadInput(f"{folder}: holds answers translated back; choose another eval.name or remove the folder")
        claim_settings(folder, work.settings)
        # for those who watch: how many there will be
        write_json(folder / "total.json", {"questions": sum(work.counts)})
    with at_work(folder, part):
        journal, known = Journal(folder, part), answered(folder)
        mine = work.mine(part)
        left = [chunk for chunk in mine if not known.whole(work.questions(chunk))]
        if left:
            with alone(folder):
                (folder / RESULT).unlink(missing_ok=True)
            total = sum(map(len, mine))
            peak = work.kind.peak_memory
            done = total - sum(map(len, left))
            for chunk in _answer(work, left, known, journal):
                done += len(chunk)
                if (used := peak()) is not None:
                    note_memory(folder, part, used)
                if progress:
                    progress(done, total)
        journal.finish()
    return bool(left)


def _answer(work: Work, left: Sequence[Sequence[int]], known: Answered, journal: Journal) -> Iterator[Sequence[int]]:
    """Each chunk once its answers are in the journal."""
    _stop_if_asked()
    engine = work.kind.make(work.recipe, work.asking, work.adapter)
    for chunk in left:
        _stop_if_asked()
        samples = [work.dataset.read(i) for i in chunk]
        if work.kind.apart:
            samples = _unanswered(samples, known)
        _ask(work, engine, samples, journal)
        yield chunk


def _stop_if_asked() -> None:
    if stop.asked():
        raise stop.obey()


def _unanswered(samples: Sequence[Sample], known: Answered) -> list[Sample]:
    left = [(s, tuple(q for q in s.questions if q.question_id not in known.rows)) for s in samples]
    return [replace(sample, questions=questions) for sample, questions in left if questions]


def _ask(work: Work, engine: Engine, samples: Sequence[Sample], journal: Journal) -> None:
    prompts = [work.asking.prompts(sample.questions) for sample in samples]
    try:
        answers = engine.answer(samples, prompts, work.asking.choices(samples))
        found = {(i, j): each for i, row in enumerate(answers) for j, each in enumerate(row)}
    except Unfinished as unfinished:
        journal.add(_rows(samples, unfinished.done))
        raise unfinished.fault from None
    journal.add(_rows(samples, found))


def _rows(samples: Sequence[Sample], answers: Mapping[tuple[int, int], Answer]) -> list[Row]:
    return [
        Row(q.question_id, sample.key, q.question, a.text, list(q.answers), q.type, item.image, a.cut, a.refused)
        for i, sample in enumerate(samples)
        for j, (q, item) in enumerate(zip(sample.questions, asked([sample]), strict=True))
        if (a := answers.get((i, j)))
    ]


def complete(folder: Path, part: Part) -> bool:
    """Whether the files of all parts are there. Only looked at: another process may be writing its journal."""
    return all((folder / "parts" / Part(i, part.of).name).exists() for i in range(part.of))


def all_rows(work: Work) -> list[Row]:
    """The answers to all questions in the dataset's order; BadInput where some are missing."""
    found = answered(work.folder)
    return found.in_order(work.folder, (q.question_id for sample in work.samples for q in sample.questions))
