"""Images in tiles from training to the merged model: every part sees the same views as plain transformers does."""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoProcessor, LlavaForConditionalGeneration

from launch.recipe import PipelineRecipe, load
from shards.build import build
from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.files import read_json
from shards.readers import ReaderOptions, find_reader
from shards.sample import Message, Text
from tests.vlm.forked import run_ranks
from tests.vlm.merge.by_recipe import merge_recipe
from tests.vlm.test_families import write_language, write_tower
from vlm import checkpoint
from vlm.data.batch import pack
from vlm.data.documents import IGNORE, Tokeniser
from vlm.data.images import Pixels
from vlm.data.lengths import lengths_of
from vlm.data.loader import DataConfig, Source
from vlm.data.processor import LLaVADataProcessor
from vlm.data.template import TEMPLATES
from vlm.eval import generate
from vlm.eval.parts import Part, read_rows
from vlm.eval.run import evaluate
from vlm.events import read_events
from vlm.model.assemble import assemble, weights_digest
from vlm.model.load import load_model, load_tokenizer
from vlm.model.packed import PackedLlava
from vlm.train import losses

# of a tower for 45 pixels: three, three, one, four, five and no views
SIZES = [(90, 40), (88, 45), (45, 45), (40, 130), (90, 90), None] * 2
VIEWS = [3, 3, 1, 4, 5, 0] * 2
TOKENS = 9


def _lines(folder: Path, stem: str) -> Iterator[str]:
    for i, size in enumerate(SIZES):
        answer = ["yes", "no", "it is not so"][i % 3]
        words = {"type": "text", "text": f"Is it number {i}?"}
        row = {"key": f"{stem}-{i}", "id": str(i), "source": "s", "lang": "en", "messages": [
            {"role": "user", "content": [{"type": "image"}, words] if size else [words]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ], "questions": [{"question_id": f"{stem}-{i}-{n}", "question": f"What is it{' now' * n}?", "answers": [answer]}
                         for n in range(2)]}  # fmt: skip
        if size:
            row["image"] = f"{stem}-{i}.png"
            noise = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{stem}-{i}.png")
        yield json.dumps(row) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `tiled` and `whole` of the same weights, sets `train` and `held`, and two steps of training in `run`."""
    folder = tmp_path_factory.mktemp("tiles")
    parts = write_tower("clip", folder / "tower"), write_language("mistral", folder / "language")
    assemble(*parts, folder / "tiled", template="mistral-instruct", tiles=4)
    assemble(*parts, folder / "whole", template="mistral-instruct")
    for name in ("train", "held"):
        (folder / f"{name}.jsonl").write_text("".join(_lines(folder, name)))
        options = ReaderOptions(input=folder / f"{name}.jsonl", images=folder)
        build(find_reader("jsonl"), options, folder / name, samples_per_shard=5)
    assert run_ranks(_arguments(folder, folder / "run"), folder / "log", ranks=1) == [0], (folder / "log").read_text()
    return folder


def _arguments(folder: Path, run: Path, model: str = "tiled") -> list[str]:
    return [
        "demo", f"run={run}", f"model.base={folder / model}", f"data.train={folder / 'train'}", "data.turns=joint",
        f"data.cache={folder / 'cache'}", "data.batch_size=6", "data.micro_batch_tokens=150", "engine.ranks=1",
        "checkpoint.every=1", f"heldout.data={folder / 'held'}",
    ]  # fmt: skip


def _recipe(folder: Path, model: str = "tiled") -> PipelineRecipe:
    more = [f"eval.data={folder / 'held'}", "eval.adapter=latest", "eval.name=test", "eval.max_new_tokens=4"]
    return load("demo", [*_arguments(folder, folder / "run", model)[1:], *more])


def _tokeniser(folder: Path) -> Tokeniser:
    return Tokeniser(load_tokenizer(folder / "tiled"), TEMPLATES["mistral-instruct"], TOKENS)


def test_two_steps_train_and_a_resumed_one_is_equal_to_the_bit(folder: Path, tmp_path: Path) -> None:
    run, again = folder / "run", tmp_path / "run"
    assert list(losses(run)) == [1, 2]
    assert [e["event"] for e in read_events(run)].count("heldout") == 2
    shutil.copytree(run, again)
    shutil.rmtree(checkpoint.step_folder(again, 2))
    assert run_ranks(_arguments(folder, again), tmp_path / "log", ranks=1) == [0], (tmp_path / "log").read_text()
    assert [e["step"] for e in read_events(again) if e["event"] == "start"] == [0, 1]
    assert losses(again) == losses(run)
    name = Path("adapter") / "adapter_model.safetensors"
    first, second = (load_file(checkpoint.step_folder(r, 2) / name) for r in (run, again))
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_the_same_weights_without_tiles_are_another_model(folder: Path) -> None:
    assert weights_digest(folder / "tiled") != weights_digest(folder / "whole") == weights_digest(folder / "whole")
    with pytest.raises(BadInput, match=r"was trained on another model\.base"):
        merge_recipe(_recipe(folder, "whole"), folder / "wrong")


def test_lengths_are_kept_apart(folder: Path, tmp_path: Path) -> None:
    dataset, tokeniser, pixels = ShardDataset.open(folder / "train"), _tokeniser(folder), Pixels.of(folder / "tiled")
    views = lengths_of(dataset, tokeniser, pixels, tmp_path, 1)
    whole = lengths_of(dataset, tokeniser, replace(pixels, tiles=0), tmp_path, 1)
    assert views.images.tolist() == VIEWS and whole.images.tolist() == [min(1, n) for n in VIEWS]
    assert (views.tokens - whole.tokens == TOKENS * (views.images - whole.images)).all()
    assert len([path for path in tmp_path.iterdir() if path.suffix != ".lock"]) == 2


def test_tiles_are_not_mirrored_one_by_one(folder: Path, tmp_path: Path) -> None:
    config = DataConfig(train=str(folder / "train"), shift=2, cache=str(tmp_path))
    with pytest.raises(BadInput, match=r"data\.shift=2: each tile"):
        Source(config, _tokeniser(folder), Pixels.of(folder / "tiled"), 0)


def test_a_packed_step_is_transformers_own(folder: Path) -> None:
    """Loss and gradients of samples with different numbers of views in one row; transformers takes them one by one."""
    processor, samples = LLaVADataProcessor(folder / "tiled"), list(ShardDataset.open(folder / "train"))
    plain = LlavaForConditionalGeneration.from_pretrained(folder / "tiled")
    expected = torch.zeros(())
    for sample, count in zip(samples, VIEWS, strict=True):
        inputs = processor(sample)
        labels = inputs.pop("labels")[0, 1:]
        assert ("pixel_values" in inputs and len(inputs["pixel_values"])) == count
        logits = plain(**inputs).logits[0, :-1]
        expected = expected + cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
    expected.backward()
    source = Source(DataConfig(train=str(folder / "train")), _tokeniser(folder), processor.pixels, 0)
    loaded = [source.load(0, i) for i in range(len(source))]
    row = pack([d for d, _ in loaded], [view for _, views in loaded for view in views], processor.pixels.size)
    packed = PackedLlava(load_model(folder / "tiled", "float32", packed=True), processor.pixels)
    loss = packed(row)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    wanted = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    for name, parameter in packed.llava.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("at_once", [32, 4])
def test_evaluation_merge_and_plain_transformers_agree(
    folder: Path, tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "_AT_ONCE", at_once)
    recipe = _recipe(folder)
    proof = merge_recipe(recipe, tmp_path / "merged")
    assert proof.same_answers == proof.probes > 1 and proof.max_difference <= 1e-5
    monkeypatch.setattr(recipe.eval, "name", f"at-once-{at_once}")
    assert evaluate(recipe, Part(0, 1)) is not None
    rows = {r.question_id: r for r in read_rows(folder / "run" / "eval" / recipe.eval.name / "predictions.jsonl")}
    # tiles go on into what is merged, and plain transformers takes what the processor there makes
    processor = LLaVADataProcessor(tmp_path / "merged")
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    for sample, count in zip(ShardDataset.open(folder / "held"), VIEWS, strict=True):
        for question in sample.questions:
            content = (*sample.messages[0].content[:-1], Text(question.question))
            inputs = processor([Message("user", content)], [sample.image] if sample.image else [])
            assert int((inputs["input_ids"] == processor.encoder.image_id).sum()) == count * TOKENS
            said = plain.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
            answer = processor.tokenizer.decode(said, skip_special_tokens=True).strip()
            assert rows[question.question_id].prediction == answer
    assert len({r.prediction for r in rows.values()}) > 1


def test_the_card_tells_how_plain_transformers_gets_tiles(folder: Path, tmp_path: Path) -> None:
    """Its own processor gives the whole alone; views written as images of their own are the processor's tensors."""
    merge_recipe(_recipe(folder), tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "up to 4 tiles" in card and read_json(tmp_path / "merged" / "assembly.json")["tiles"] == 4
    sample = ShardDataset.open(folder / "held").read(0)
    ours, theirs = LLaVADataProcessor(tmp_path / "merged"), AutoProcessor.from_pretrained(tmp_path / "merged")
    inputs = ours([sample.messages[0]], [sample.image or b""])
    text = theirs.apply_chat_template([sample.messages[0].to_json()], add_generation_prompt=True)
    image = Image.open(io.BytesIO(sample.image or b""))
    whole = theirs(images=image, text=text, return_tensors="pt", add_special_tokens=False)
    torch.testing.assert_close(whole.pixel_values, inputs["pixel_values"][:1], rtol=0, atol=2e-6)
    views = [Image.fromarray(view.transpose(1, 2, 0)) for view in ours.pixels.views(image)]
    cut = theirs(
        images=views, text=text.replace("<image>", "<image>" * 3), return_tensors="pt", add_special_tokens=False
    )
    assert torch.equal(cut.input_ids, inputs["input_ids"])
    torch.testing.assert_close(cut.pixel_values, inputs["pixel_values"], rtol=0, atol=2e-6)
