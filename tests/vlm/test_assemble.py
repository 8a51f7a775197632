"""Assembly: sizes follow the configs, the vocabulary grows without moving, foreign folders are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from shards.errors import BadInput
from shards.files import verify_manifest
from shards.texts import dataset_texts
from vlm.demo.models import write_language, write_vision
from vlm.model.assemble import Assembly, assemble


@pytest.fixture(scope="module")
def parts(english: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_vision(folder / "vision", 0)
    write_language(folder / "language", dataset_texts(english), 0)
    return folder


def test_projector_takes_its_sizes_from_the_configs(parts: Path, tmp_path: Path) -> None:
    """Another tower width, another family of language model: nothing is typed in (row A1)."""
    vision, language = tmp_path / "vision", tmp_path / "language"
    shutil.copytree(parts / "vision", vision)
    CLIPVisionModel(
        CLIPVisionConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3,
                         image_size=64, patch_size=16)
    ).save_pretrained(vision)  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(parts / "language")
    tokenizer.save_pretrained(language)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=80, intermediate_size=96, num_hidden_layers=1,
                    num_attention_heads=4, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(language)  # fmt: skip
    made = assemble(vision, language, tmp_path / "out", template="vicuna_v1")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    projector = model.model.multi_modal_projector
    assert projector.linear_1.weight.shape == (80, 48) and projector.linear_2.weight.shape == (80, 80)
    assert made.image_tokens == 16 == model.config.image_seq_length and not verify_manifest(tmp_path / "out")


def test_old_text_keeps_its_tokens_and_weights(parts: Path, model: Path, english: Path, russian: Path) -> None:
    old, new = AutoTokenizer.from_pretrained(parts / "language"), AutoTokenizer.from_pretrained(model)
    for text in dataset_texts(english):
        assert old.encode(text) == new.encode(text)
    added = set(Assembly.read(model).new_token_ids)
    for text in dataset_texts(russian):
        ids = new.encode(text)
        assert new.decode(ids) == text and len(ids) < len(old.encode(text)) and added & set(ids)
    # the bytes of any other text are still there
    assert new.decode(new.encode("Їжак 漢字 🙂")) == "Їжак 漢字 🙂"
    assembled = LlavaForConditionalGeneration.from_pretrained(model)
    language = assembled.model.language_model
    assert language.embed_tokens.weight.shape[0] == len(new) == assembled.lm_head.weight.shape[0]
    assert min(added) == len(old) and max(added) == len(new) - 1


def test_assembled_twice_is_the_same(parts: Path, russian: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assemble(
            parts / "vision", parts / "language", tmp_path / name, template="saiga",
            new_language_texts=dataset_texts(russian), new_tokens=40, seed=3,
        )  # fmt: skip
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_parts_reach_the_whole_unchanged(parts: Path, tmp_path: Path) -> None:
    assemble(parts / "vision", parts / "language", tmp_path / "out", template="saiga")
    whole = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    tower = CLIPVisionModel.from_pretrained(parts / "vision")
    for name, weight in tower.state_dict().items():
        assert torch.equal(whole.model.vision_tower.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "is not a CLIP vision tower"),
        ({"model_type": "clip_vision_model", "auto_map": {"AutoModel": "x.Y"}}, "remote code"),
    ],
)
def test_foreign_folders_are_refused(config: dict[str, object], message: str, parts: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=message):
        assemble(odd, parts / "language", tmp_path / "out", template="saiga")
    with pytest.raises(BadInput, match="not a causal language model"):
        assemble(parts / "vision", parts / "vision", tmp_path / "out", template="saiga")
    assert not (tmp_path / "out").exists()
