"""Each family of towers and language models, tiny and random: assembled, loaded by transformers alone, trained."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from shards.dataset import ShardDataset
from shards.sample import ImagePart, Message, Sample, Text
from vlm.data.batch import pack
from vlm.data.documents import IGNORE, Tokeniser
from vlm.data.images import Pixels
from vlm.data.processor import LLaVADataProcessor
from vlm.data.template import TEMPLATES
from vlm.model.adapter import AdapterConfig, save_adapter, trainable
from vlm.model.assemble import Assembly, assemble
from vlm.model.attention import choose_backend
from vlm.model.load import load_model, load_tokenizer
from vlm.model.packed import PackedLlava

_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
_SHAPE = {"intermediate_size": 56, "num_hidden_layers": 2, "initializer_range": 0.2}

# language model -> the template its family speaks
SPEAKS = {
    "mistral": "mistral-instruct",
    "llama-2": "vicuna_v1",
    "llama-3": "llama-3",
    "mixtral": "saiga",
    "gemma": "gemma",
}


def write_tower(kind: str, out: Path) -> Path:
    """clip (alone), clip-whole (both towers of CLIP) or siglip; sizes that are no powers of two."""
    torch.manual_seed(1)
    shape = {"hidden_size": 36, "num_attention_heads": 3, "image_size": 45, "patch_size": 14, **_SHAPE}
    if kind == "clip":
        CLIPVisionModel(CLIPVisionConfig(**shape)).save_pretrained(out)
    elif kind == "clip-whole":
        CLIPModel(CLIPConfig(vision_config=shape, text_config=_TEXT, projection_dim=16)).save_pretrained(out)
    else:
        SiglipModel(SiglipConfig(vision_config=shape, text_config=_TEXT)).save_pretrained(out)
    side = {"height": 45, "width": 45}
    processor = SiglipImageProcessor(size=side) if kind == "siglip" else CLIPImageProcessorPil(crop_size=side)
    processor.save_pretrained(out)
    return out


def write_language(kind: str, out: Path, spare: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A language model of a family with a byte-level tokenizer; `spare` rows more than it has tokens."""
    torch.manual_seed(2)
    tokenizer = byte_tokenizer(TEMPLATES[SPEAKS[kind]].markers)
    tokenizer.save_pretrained(out)
    shape = {"vocab_size": len(tokenizer) + spare, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, **_SHAPE}
    _language(kind, shape).to(dtype).save_pretrained(out)
    return out


def _language(kind: str, shape: dict[str, Any]) -> PreTrainedModel:
    grouped = {"hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**shape, **grouped, sliding_window=12, tie_word_embeddings=False))
    if kind == "mixtral":
        experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": None}
        return MixtralForCausalLM(MixtralConfig(**shape, **grouped, **experts))
    if kind == "llama-2":
        return LlamaForCausalLM(LlamaConfig(**shape, hidden_size=36, num_attention_heads=3, tie_word_embeddings=False))
    if kind == "llama-3":
        return LlamaForCausalLM(LlamaConfig(**shape, **grouped, tie_word_embeddings=True, rope_theta=500000.0))
    layers = ["sliding_attention", "full_attention"]
    one_key = {"hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}
    return Gemma3ForCausalLM(Gemma3TextConfig(**shape, **one_key, sliding_window=12, layer_types=layers))


def byte_tokenizer(markers: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Bytes only. The first marker opens a text, the last ends one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=0,
        special_tokens=list(markers),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([""], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=markers[0], eos_token=markers[-1])


PAIRS = [
    ("clip", "mistral"),
    ("clip-whole", "llama-2"),
    ("siglip", "llama-3"),
    ("siglip", "gemma"),
    ("clip", "mixtral"),
]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """An assembled model with its tower's and its language model's kind."""
    tower, language = request.param
    folder = tmp_path_factory.mktemp(f"{tower}-{language}")
    parts = write_tower(tower, folder / "tower"), write_language(language, folder / "language")
    assemble(*parts, folder / "out", template=SPEAKS[language])
    yield folder, tower, language


def test_transformers_alone_loads_and_generates(pair: tuple[Path, str, str], english: Path) -> None:
    folder, tower, language = pair
    model, report = LlavaForConditionalGeneration.from_pretrained(folder / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.image_seq_length == (45 // 14) ** 2
    assert model.config.vision_feature_select_strategy == ("full" if tower == "siglip" else "default")
    head, embeddings = model.lm_head.weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == embeddings.data_ptr()) == (language in ("llama-3", "gemma"))
    source = LlavaForConditionalGeneration.from_pretrained(folder / "out").state_dict()
    part = AutoModelForCausalLM.from_pretrained(folder / "language").model.state_dict()
    for name, weight in part.items():
        assert torch.equal(source[f"model.language_model.{name}"][: len(weight)], weight), name
    sample = ShardDataset.open(english).read(0)
    inputs = LLaVADataProcessor(folder / "out")([sample.messages[0]], [sample.image or b""])
    answer = model.generate(**inputs, max_new_tokens=4)
    assert answer.shape[1] > inputs["input_ids"].shape[1]
    assert model.generation_config.eos_token_id == load_tokenizer(folder / "out").eos_token_id
    assert load_tokenizer(folder / "out").eos_token == TEMPLATES[SPEAKS[language]].stop


def test_a_packed_step_is_transformers_own(pair: tuple[Path, str, str], english: Path) -> None:
    """Documents longer than the window, one without an image: loss and gradients of each alone, summed (to 1e-5)."""
    folder, _, language = pair
    torch.manual_seed(0)
    processor, choice = LLaVADataProcessor(folder / "out"), choose_backend("sdpa", torch.device("cpu"), torch.float32)
    assert choice == "sdpa"
    dialogue = Message("user", (Text("Is it so?"),)), Message("assistant", (Text("No, it is not."),))
    samples = [*(ShardDataset.open(english).read(i) for i in (0, 7)), Sample("t", "t", "s", "en", dialogue * 2)]
    theirs = LlavaForConditionalGeneration.from_pretrained(folder / "out")
    losses = []
    for sample in samples:
        inputs = processor(sample)
        logits = theirs(**{k: v for k, v in inputs.items() if k != "labels"}).logits[0, :-1]
        labels = inputs["labels"][0, 1:]
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE))
    expected = torch.stack(losses).sum()
    expected.backward()
    tokeniser = Tokeniser(processor.tokenizer, TEMPLATES[SPEAKS[language]], Assembly.read(folder / "out").image_tokens)
    pixels = Pixels.of(folder / "out")
    images = [pixels.decode(s.image) for s in samples if s.image]
    row = pack([tokeniser.document(s) for s in samples], images, pixels.size)
    ours = load_model(folder / "out", "float32", packed=True)
    loss = PackedLlava(ours, pixels)(row)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    for name, parameter in ours.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers with a window of 12 tokens and without, under a tower."""
    folder = tmp_path_factory.mktemp("gemma")
    parts = write_tower("clip", folder / "tower"), write_language("gemma", folder / "language")
    assemble(*parts, folder / "out", template="gemma")
    return folder / "out"


@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig(r=4, alpha=8),
        AdapterConfig(method="ia3"),
        AdapterConfig(method="prompt", virtual_tokens=5),
        AdapterConfig(method="ptuning", virtual_tokens=5, encoder_width=16),
        AdapterConfig(method="prefix", virtual_tokens=5),
        AdapterConfig(method="prefix", virtual_tokens=20),
    ],
    ids=lambda config: f"{config.method}-{config.virtual_tokens}",
)
def test_adapters_over_mixed_layers_are_pefts_own(
    config: AdapterConfig, gemma: Path, english: Path, tmp_path: Path
) -> None:
    """A packed row gives what plain PEFT gives one by one, where the window counts the prompt in one layer in two."""
    choose_backend("sdpa", torch.device("cpu"), torch.float32)
    pixels, assembly = Pixels.of(gemma), Assembly.read(gemma)
    torch.manual_seed(0)
    ours = PackedLlava(trainable(load_model(gemma, "float32", packed=True), config, assembly), pixels).eval()
    weights = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    for parameter in weights.values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    save_adapter(ours, {n: p.detach() for n, p in weights.items()}, tmp_path)
    base = LlavaForConditionalGeneration.from_pretrained(gemma).eval()
    tokeniser = Tokeniser(load_tokenizer(gemma), TEMPLATES["gemma"], assembly.image_tokens, "joint")
    samples = [ShardDataset.open(english).read(i) for i in (0, 7)]
    documents = [tokeniser.document(sample) for sample in samples]
    images = [pixels.decode(sample.image or b"") for sample in samples]
    with torch.inference_mode():
        row = pack(documents, images, pixels.size)
        found = ours.llava.lm_head(ours.hidden(row))
        plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        at = 0
        for number, document in enumerate(documents):
            ids = torch.from_numpy(document.input_ids)[None]
            seen = pixels.normalise(row.pixels[number : number + 1], torch.float32)
            expected = plain(input_ids=ids, pixel_values=seen).logits[0, -len(document) :]
            torch.testing.assert_close(found[at : at + len(document)], expected, atol=1e-4, rtol=1e-4)
            at += len(document)


def test_prompt_and_pixels_equal_the_processors(pair: tuple[Path, str, str], english: Path) -> None:
    folder, _, _ = pair
    sample = ShardDataset.open(english).read(3)
    ours = LLaVADataProcessor(folder / "out")([sample.messages[0]], [sample.image or b""])
    processor = AutoProcessor.from_pretrained(folder / "out")
    text = processor.apply_chat_template([sample.messages[0].to_json()], add_generation_prompt=True)
    image = Image.open(io.BytesIO(sample.image or b""))
    theirs = processor(images=image, text=text, add_special_tokens=False, return_tensors="pt")
    assert torch.equal(ours["input_ids"], theirs.input_ids)
    torch.testing.assert_close(ours["pixel_values"], theirs.pixel_values, rtol=0, atol=2e-6)
    assert ImagePart() in sample.messages[0].content


def test_spare_rows_are_kept_and_drawn_anew(tmp_path: Path) -> None:
    """Models with more rows than tokens do not shrink, and an added token does not start as a row nobody trained."""
    language = write_language("llama-2", tmp_path / "language", spare=9)
    old = AutoModelForCausalLM.from_pretrained(language)
    with torch.no_grad():
        for layer in (old.get_input_embeddings(), old.lm_head):
            layer.weight[-9:] = 100.0
    old.save_pretrained(language)
    made = assemble(write_tower("clip", tmp_path / "tower"), language, tmp_path / "out", template="vicuna_v1")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    tokens = len(load_tokenizer(tmp_path / "out"))
    assert made.new_token_ids == [tokens - 2, tokens - 1]
    for old_layer, layer in ((old.get_input_embeddings(), model.get_input_embeddings()), (old.lm_head, model.lm_head)):
        assert layer.weight.shape == old_layer.weight.shape and layer.weight[made.new_token_ids].abs().max() < 1
        assert torch.equal(layer.weight[: tokens - 2], old_layer.weight[: tokens - 2])
        assert torch.equal(layer.weight[tokens:], old_layer.weight[tokens:])


def test_dtype_is_the_language_models_own_or_as_asked(tmp_path: Path) -> None:
    tower = write_tower("siglip", tmp_path / "tower")
    language = write_language("gemma", tmp_path / "language", dtype=torch.bfloat16)
    for asked, dtype in (("", torch.bfloat16), ("float16", torch.float16)):
        assemble(tower, language, tmp_path / "out", template="gemma", dtype=asked)
        with safe_open(tmp_path / "out" / "model.safetensors", "pt") as weights:
            names = list(weights.keys())
            assert {weights.get_tensor(name).dtype for name in names} == {dtype}
        # neither a tied head nor the pooling head of SigLIP is written
        assert "lm_head.weight" not in names and not any(".head." in name for name in names)
        assert LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="auto").dtype == dtype
