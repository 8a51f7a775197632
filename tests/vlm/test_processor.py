"""LLaVADataProcessor: what it returns is what training and evaluation use, and transformers' own processor makes."""

import io
import shutil
from itertools import groupby
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.files import read_json, write_json
from shards.sample import ImagePart, Message, Text
from vlm.data.documents import Tokeniser
from vlm.data.images import Pixels
from vlm.data.processor import Dialogue, LLaVADataProcessor, Picture
from vlm.data.template import TEMPLATES
from vlm.model.assemble import Assembly
from vlm.model.load import load_tokenizer


@pytest.fixture(scope="module")
def processor(model: Path) -> LLaVADataProcessor:
    return LLaVADataProcessor(model)


def test_a_sample_is_what_training_sees(processor: LLaVADataProcessor, model: Path, russian: Path) -> None:
    tokeniser = Tokeniser(load_tokenizer(model), TEMPLATES["mistral-instruct"], Assembly.read(model).image_tokens)
    pixels = Pixels.of(model)
    for sample in ShardDataset.open(russian):
        inputs, document = processor(sample), tokeniser.document(sample)
        assert inputs["input_ids"].tolist() == [document.input_ids.tolist()]
        # transformers shifts labels itself, a document's are shifted already
        assert inputs["labels"][0, 1:].tolist() == document.labels[:-1].tolist()
        trained = torch.from_numpy(pixels.decode(sample.image or b"").copy())[None]
        assert torch.equal(inputs["pixel_values"], pixels.normalise(trained, torch.float32))
        assert inputs["attention_mask"].all() and inputs["attention_mask"].shape == inputs["input_ids"].shape


def test_several_images_and_none(processor: LLaVADataProcessor, model: Path, english: Path) -> None:
    """Two images in one question, and a dialogue of text alone, as transformers' processor has them."""
    pictures = [ShardDataset.open(english).read(i).image or b"" for i in (0, 1)]
    opened = [Image.open(io.BytesIO(data)) for data in pictures]
    theirs = AutoProcessor.from_pretrained(model)
    for messages, images in (
        ([Message("user", (ImagePart(), ImagePart(), Text("Which is red?")))], opened),
        (
            [Message("user", (Text("Hello?"),)), Message("assistant", (Text("Yes."),)), Message("user", (Text("?"),))],
            [],
        ),
    ):
        ours = processor(messages, images)
        text = theirs.apply_chat_template([m.to_json() for m in messages], add_generation_prompt=True)
        expected = theirs(images=images or None, text=text, add_special_tokens=False, return_tensors="pt")
        assert torch.equal(ours["input_ids"], expected.input_ids) and "labels" not in ours
        assert ("pixel_values" in ours) == bool(images)
        if images:
            torch.testing.assert_close(ours["pixel_values"], expected.pixel_values, rtol=0, atol=2e-6)


def test_a_question_with_an_image_goes_into_the_model(
    processor: LLaVADataProcessor, model: Path, english: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(ShardDataset.open(english).read(0).image or b"")
    by_path, by_bytes = processor("Which shape?", [path]), processor("Which shape?", [path.read_bytes()])
    by_image = processor("Which shape?", [Image.open(path)])
    for name, tensor in by_path.items():
        assert torch.equal(tensor, by_bytes[name]) and torch.equal(tensor, by_image[name])
    llava = LlavaForConditionalGeneration.from_pretrained(model)
    assert llava.generate(**by_path, max_new_tokens=2).shape[1] > by_path["input_ids"].shape[1]


def test_tiles_are_images_of_their_own(model: Path, tmp_path: Path) -> None:
    """A wide image as two tiles and the whole: three times the tokens, and plain transformers runs it."""
    folder = tmp_path / "tiled"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "assembly.json").unlink()
    write_json(folder / "assembly.json", {**read_json(model / "assembly.json"), "tiles": 3})
    inputs = LLaVADataProcessor(folder)("What?", [Image.new("RGB", (128, 60), "red")])
    llava = LlavaForConditionalGeneration.from_pretrained(model)
    assert inputs["pixel_values"].shape == (3, 3, 64, 64)
    assert int((inputs["input_ids"] == llava.config.image_token_id).sum()) == 3 * 64
    assert llava(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_images_of_one_dialogue_may_have_other_numbers_of_tiles(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "tiled")
    write_json(folder / "assembly.json", {**read_json(model / "assembly.json"), "tiles": 4})
    pictures = [Image.new("RGB", size, "red") for size in ((128, 60), (60, 60), (128, 128))]
    inputs = LLaVADataProcessor(folder)([Message("user", (ImagePart(), ImagePart(), ImagePart(), Text("?")))], pictures)
    images = (inputs["input_ids"][0] == load_tokenizer(model).convert_tokens_to_ids("<image>")).int().tolist()
    runs = [len(list(group)) for flag, group in groupby(images) if flag]
    assert runs == [3 * 64, 64, 5 * 64] and len(inputs["pixel_values"]) == 9


def test_a_batch_is_its_dialogues(processor: LLaVADataProcessor, model: Path, russian: Path) -> None:
    """Padded, and with one of text alone; answered, and its labels weighed, as one by one."""
    llava = LlavaForConditionalGeneration.from_pretrained(model)
    samples = [ShardDataset.open(russian).read(i) for i in (0, 5)]
    image = samples[0].image or b""
    texts, images = ["Which shape is in the image?", "Hello", "Red?"], [[image], [], [image]]
    together = processor.batch(texts, images)
    assert together["input_ids"].shape == together["attention_mask"].shape and len(together["pixel_values"]) == 2
    said = llava.generate(**together, max_new_tokens=4, min_new_tokens=4)[:, together["input_ids"].shape[1] :]
    for i, (text, own) in enumerate(zip(texts, images, strict=True)):
        alone = processor(text, own)
        answer = llava.generate(**alone, max_new_tokens=4, min_new_tokens=4)
        assert torch.equal(said[i], answer[0, alone["input_ids"].shape[1] :])
    trained = processor.batch(samples)
    logits = llava(**{name: tensor for name, tensor in trained.items() if name != "labels"}).logits
    for i, sample in enumerate(samples):
        alone = processor(sample)
        length = alone["input_ids"].shape[1]
        assert torch.equal(trained["labels"][i, -length:], alone["labels"][0])
        assert (trained["labels"][i, :-length] == -100).all()
        torch.testing.assert_close(logits[i, -length:], llava(**alone).logits[0], rtol=1e-4, atol=1e-4)
    assert "pixel_values" not in processor.batch(["a", "b"]) and processor.batch(["a"]).to("cpu")["input_ids"].shape[0]
    cases: tuple[tuple[list[Dialogue], list[list[Picture]], str], ...] = (
        ([], [], "0 texts"), (["a"], [[], []], "1 texts with the images of 2"),
        (["a", samples[0]], [], "end with an answer and some with a question"),
    )  # fmt: skip
    for wrong, pictures, match in cases:
        with pytest.raises(BadInput, match=match):
            processor.batch(wrong, pictures)


def test_what_does_not_fit_is_refused(processor: LLaVADataProcessor, english: Path, tmp_path: Path) -> None:
    sample = ShardDataset.open(english).read(0)
    image = sample.image or b""
    for text, images, said in (
        ([Message("user", (Text("?"),))], [image], "name 0 images and 1 are given"),
        ([Message("user", (ImagePart(), Text("?")))], [], "name 1 images and 0 are given"),
        ("Is <image> here?", [image], "holds <image>"),
        (sample, [image], "its own image"),
        ([], [], "at least one message"),
        ("?", [b"no image"], "not a JPEG"),
        ("?", [tmp_path / "none.png"], "none.png: cannot be read"),
        ("?", [Image.new("L", (60000, 1))], "too long to be made square"),
    ):
        with pytest.raises(BadInput, match=said):
            processor(text, images)
