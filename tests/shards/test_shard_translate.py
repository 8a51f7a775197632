"""Translation memory and resumable translation of a dataset."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.files import read_json
from shards.readers.easy_vqa_questions import COLORS, FORMS, SHAPES
from shards.sample import Sample
from shards.translate.config import TranslateConfig, make_engine
from shards.translate.memory import MEMORIES, MemoryEngine, TranslationMemory
from shards.translate.run import translate_dataset
from shards.verify import verify

MakeSample = Callable[..., Sample]
MakeDataset = Callable[..., Path]


@pytest.fixture
def memory() -> TranslationMemory:
    return TranslationMemory.load(MEMORIES / "easy_vqa.en-ru.tsv", "en", "ru")


@pytest.fixture
def source(make_sample: MakeSample, make_dataset: MakeDataset) -> Path:
    """Four shards; the third has a text that no memory knows."""
    questions = ["is there a circle?", "is no red shape present?", "what is up?", "is there a triangle?"]
    return make_dataset([make_sample(i, questions[i // 2], "yes") for i in range(8)], "source")


def load(tmp_path: Path, text: str, source: str = "en", target: str = "ru") -> TranslationMemory:
    (tmp_path / "m.tsv").write_text(text, "utf-8")
    return TranslationMemory.load(tmp_path / "m.tsv", source, target)


class Aborting:
    """An engine that dies in call `after`."""

    def __init__(self, engine: MemoryEngine, after: int) -> None:
        self.engine, self.left, self.texts = engine, after, 0
        self.name, self.model = engine.name, engine.model
        self.source_lang, self.target_lang = engine.source_lang, engine.target_lang

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        if self.left == 0:
            raise ConnectionError("engine gone")
        self.left -= 1
        self.texts += len(texts)
        return self.engine.translate(texts)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_packaged_memory_covers_easy_vqa_both_ways(memory: TranslationMemory) -> None:
    texts = [*FORMS, *SHAPES, *COLORS, "yes", "no"]
    assert set(memory.pairs) == set(texts)
    inverse = memory.inverse()
    assert [inverse.lookup(memory.lookup(text) or "") for text in texts] == texts
    assert all(memory.pairs[text].endswith("?") for text in FORMS)


def test_packaged_memory_keeps_negation(memory: TranslationMemory) -> None:
    for text, form in FORMS.items():
        asks_for_absence = "правда ли, что" in memory.pairs[text] or "отсутствует" in memory.pairs[text]
        assert asks_for_absence == form.negated, text


def test_lookup_keeps_first_letter_and_period(tmp_path: Path) -> None:
    memory = load(tmp_path, "en\tru\na cat\tкот\nUSA\tСША\n")
    cases = {"a cat": "кот", "A cat": "Кот", "a cat.": "кот.", "A cat.": "Кот.", "USA": "США"}
    assert {text: memory.lookup(text) for text in cases} == cases
    assert [memory.lookup(text) for text in ("a dog", "a  cat", "a cat!", "a CAT", "", ".")] == [None] * 6


def test_memory_turned_around(tmp_path: Path) -> None:
    memory = load(tmp_path, "en\tru\na cat\tкот\n", "ru", "en")
    assert memory.lookup("кот") == "a cat"
    assert (memory.source_lang, memory.target_lang) == ("ru", "en")
    with pytest.raises(BadInput, match="no inverse"):
        load(tmp_path, "en\tru\ncat\tкот\ntomcat\tкот\n", "ru", "en")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "m.tsv:1"),
        ("en\tde\na\tб\n", "m.tsv:1"),
        ("en\tru\na\tб\nb\tв\na\tб\n", "m.tsv:4: 'a' stands in line 2"),
        ("en\tru\na\tб\na\tв\n", "m.tsv:3: 'a' is translated differently in line 2"),
        ("en\tru\na\n", "m.tsv:2"),
        ("en\tru\na\tб\tв\n", "m.tsv:2"),
        ("en\tru\n\n", "m.tsv:2"),
        ("en\tru\na\t \n", "m.tsv:2"),
    ],
)
def test_bad_memory_is_named_by_line(tmp_path: Path, text: str, where: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text)
    assert where in str(caught.value)


def test_memory_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_bytes(b"en\tru\n\xff\t\xfe\n")
    with pytest.raises(BadInput, match="UTF-8"):
        TranslationMemory.load(tmp_path / "m.tsv", "en", "ru")


def test_config(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text("en\tru\na\tб\n")
    assert make_engine(TranslateConfig(memory="easy_vqa.en-ru")).translate(["red", "pink"]) == ["красный", None]
    assert make_engine(TranslateConfig(memory=str(tmp_path / "m.tsv"))).translate(["a"]) == ["б"]
    for memory in ("", "nothing", "missing/easy_vqa.en-ru"):
        with pytest.raises(BadInput, match=r"easy_vqa\.en-ru"):
            make_engine(TranslateConfig(memory=memory))
    for wrong in ({"engine": "oracle"}, {"limit_missing": 2.0}, {"target_lang": "en"}):
        with pytest.raises(BadInput, match="translate"):
            TranslateConfig(**wrong)


def test_there_and_back(memory: TranslationMemory, make_dataset: MakeDataset, tmp_path: Path) -> None:
    before = make_dataset()
    info = translate_dataset(before, tmp_path / "ru", MemoryEngine(memory))
    translate_dataset(tmp_path / "ru", tmp_path / "en", MemoryEngine(memory.inverse()))
    english, russian, back = (ShardDataset.open(tmp_path / name) for name in ("data", "ru", "en"))
    assert (info.name, info.lang, info.samples, info.questions, info.images) == ("set-ru", "ru", 5, 5, 5)
    assert info.translated_from == {"name": "set", "digest": english.digest}
    assert russian.info == info
    assert english.keys == russian.keys == back.keys
    first = russian.read(0)
    assert first.questions[0].question == "есть ли круг?"
    assert first.questions[0].answers == ("да",)
    assert first.original == {"lang": "en", **english.read(0).dialogue()}
    assert (first.lang, first.image, first.image_ext) == ("ru", english.read(0).image, "png")
    assert first.translation is not None
    assert first.translation["engine"] == "memory"
    assert [replace(sample, original=None, translation=None) for sample in back] == list(english)
    assert verify(tmp_path / "ru") == verify(tmp_path / "en") == []
    assert read_json(tmp_path / "ru" / "quality.json") == {
        "texts": 20,
        "distinct": 2,
        "untranslated": 0,
        "rejected_samples": 0,
        "cyrillic_share": 1.0,
        "length_ratio_mean": round((13 / 18 + 2 / 3) / 2, 6),
    }
    assert {path.name for path in (tmp_path / "ru").iterdir() if path.suffix not in (".tar",)} == {
        "dataset.json",
        "quality.json",
        *(f"set-ru-{i:06d}.index.json" for i in range(3)),
    }


def test_missing_translation_names_text_and_key(memory: TranslationMemory, source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'what is up\?' \(sample 's-0004'\)"):
        translate_dataset(source, tmp_path / "ru", MemoryEngine(memory))
    with pytest.raises(BadInput, match="s-0005"):
        translate_dataset(source, tmp_path / "ru", MemoryEngine(memory), limit_missing=1 / 8)
    with pytest.raises(BadInput, match=r"no dataset\.json"):
        ShardDataset.open(tmp_path / "ru")


def test_samples_within_the_limit_are_rejected(memory: TranslationMemory, source: Path, tmp_path: Path) -> None:
    info = translate_dataset(source, tmp_path / "ru", MemoryEngine(memory), limit_missing=0.25)
    assert (info.samples, [shard.samples for shard in info.shards]) == (6, [2, 2, 2])
    assert verify(tmp_path / "ru") == []
    lines = (tmp_path / "ru" / "rejected.jsonl").read_text().splitlines()
    assert lines[0] == '{"key": "s-0004", "text": "what is up?"}'
    quality = read_json(tmp_path / "ru" / "quality.json")
    assert (quality["untranslated"], quality["rejected_samples"]) == (1, 2)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_aborted_and_resumed_equals_uninterrupted(
    memory: TranslationMemory, source: Path, tmp_path: Path, after: int
) -> None:
    engine = MemoryEngine(memory)
    translate_dataset(source, tmp_path / "whole", engine, limit_missing=0.25)
    out = tmp_path / "resumed"
    with pytest.raises(ConnectionError):
        translate_dataset(source, out, Aborting(engine, after), limit_missing=0.25)
    resumed = Aborting(engine, 9)
    translate_dataset(source, out, resumed, limit_missing=0.25)
    assert contents(out) == contents(tmp_path / "whole")
    assert 9 - resumed.left == 4 - after  # a shard that stood was not done again


def abort_after_two(memory: TranslationMemory, source: Path, out: Path) -> None:
    with pytest.raises(ConnectionError):
        translate_dataset(source, out, Aborting(MemoryEngine(memory), 2), limit_missing=0.25)


@pytest.mark.parametrize("name", ["set-ru-000001.tar", "set-ru-000001.index.json", ".progress.jsonl"])
def test_damage_to_unfinished_work_is_made_good(
    memory: TranslationMemory, source: Path, tmp_path: Path, name: str
) -> None:
    translate_dataset(source, tmp_path / "whole", MemoryEngine(memory), limit_missing=0.25)
    out = tmp_path / "out"
    abort_after_two(memory, source, out)
    (out / name).write_bytes((out / name).read_bytes()[:-7])
    again = Aborting(MemoryEngine(memory), 9)
    translate_dataset(source, out, again, limit_missing=0.25)
    assert contents(out) == contents(tmp_path / "whole")
    assert 9 - again.left == 3


def test_flipped_bit_in_unfinished_work_is_made_good(memory: TranslationMemory, source: Path, tmp_path: Path) -> None:
    abort_after_two(memory, source, tmp_path / "out")
    path = tmp_path / "out" / "set-ru-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    (tmp_path / "out" / "set-ru-000077.tar").touch()  # left by work that was larger
    translate_dataset(source, tmp_path / "out", MemoryEngine(memory), limit_missing=0.25)
    assert verify(tmp_path / "out") == []


def test_rejections_before_an_abort_count(
    memory: TranslationMemory, make_sample: MakeSample, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    questions = ["what is up?", "is there a circle?", "who is there?"]
    source = make_dataset([make_sample(i, question) for i, question in enumerate(questions)], samples_per_shard=1)
    with pytest.raises(ConnectionError):
        translate_dataset(source, tmp_path / "ru", Aborting(MemoryEngine(memory), 1), limit_missing=0.4)
    with pytest.raises(BadInput, match="who is there"):
        translate_dataset(source, tmp_path / "ru", MemoryEngine(memory), limit_missing=0.4)


def test_work_of_another_engine_or_source_does_not_count(
    memory: TranslationMemory, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    abort_after_two(memory, source, out)
    other = replace(memory, pairs={**memory.pairs, "yes": "ага", "what is up?": "как дела?"})
    again = Aborting(MemoryEngine(other), 9)
    translate_dataset(source, out, again)
    assert 9 - again.left == 4
    assert {sample.questions[0].answers for sample in ShardDataset.open(out)} == {("ага",)}


def test_finished_work_is_not_done_again(memory: TranslationMemory, source: Path, tmp_path: Path) -> None:
    first = translate_dataset(source, tmp_path / "ru", MemoryEngine(memory), limit_missing=0.25)
    again = Aborting(MemoryEngine(memory), 0)
    assert translate_dataset(source, tmp_path / "ru", again, limit_missing=0.25) == first
    with pytest.raises(ConnectionError):  # a smaller limit is other work
        translate_dataset(source, tmp_path / "ru", again)


def test_each_distinct_text_is_looked_up_once(
    memory: TranslationMemory, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    engine = Aborting(MemoryEngine(memory), 9)
    translate_dataset(make_dataset(5), tmp_path / "ru", engine)
    assert engine.texts == 2


def test_wrong_language_and_places(memory: TranslationMemory, source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'en'"):
        translate_dataset(source, tmp_path / "en", MemoryEngine(memory.inverse()))
    with pytest.raises(BadInput, match="source itself"):
        translate_dataset(source, source, MemoryEngine(memory))
    with pytest.raises(BadInput, match=r"no dataset\.json"):
        translate_dataset(tmp_path / "none", tmp_path / "ru", MemoryEngine(memory))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(BadInput, match="something else"):
        translate_dataset(source, tmp_path / "full", MemoryEngine(memory))
    assert list(tmp_path.glob("ru")) == []
