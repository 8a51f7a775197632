"""Every method of training: it learns, saves, resumes to the bit, and plain PEFT loads what it saved."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from shards.dataset import ShardDataset
from shards.errors import BadInput
from vlm import checkpoint
from vlm.data.batch import MicroBatch, pack
from vlm.data.documents import Document, Tokeniser
from vlm.data.images import Pixels
from vlm.data.template import load_template
from vlm.engine import Engine, EngineConfig, deepspeed_config, start_world
from vlm.model.adapter import (
    NEW_TOKENS,
    PROJECTOR,
    AdapterConfig,
    load_adapter,
    load_answering,
    save_adapter,
    trainable,
)
from vlm.model.assemble import Assembly
from vlm.model.load import load_model, load_tokenizer
from vlm.model.packed import PackedLlava
from vlm.optim import OptimConfig, parameter_groups
from vlm.saver import Saver

CONFIGS = {
    "lora": AdapterConfig(r=4, alpha=8),
    "rslora": AdapterConfig(r=4, alpha=8, rslora=True, targets=["q_proj", "v_proj"], projector=False),
    "dora": AdapterConfig(r=4, alpha=8, dora=True, new_tokens=False),
    "qlora": AdapterConfig(method="qlora", r=4, alpha=8),
    "qdora": AdapterConfig(method="qlora", r=4, alpha=8, dora=True, new_tokens=False),
    "tokens": AdapterConfig(method="tokens"),
    "ia3": AdapterConfig(method="ia3"),
    "bottleneck": AdapterConfig(method="bottleneck", width=8),
    "prompt": AdapterConfig(method="prompt", virtual_tokens=5),
    "ptuning": AdapterConfig(method="ptuning", virtual_tokens=5, encoder_width=16),
    "prefix": AdapterConfig(method="prefix", virtual_tokens=5, projector=False),
    "projector": AdapterConfig(method="projector"),
    "full": AdapterConfig(method="full"),
}
QUANTISED = ("qlora", "qdora")
ADAPTERS = [name for name in CONFIGS if name not in ("projector", "full")]


class Rows:
    """A model folder, and rows of documents of both shapes for it."""

    def __init__(self, model: Path, data: Path) -> None:
        self.folder, self.pixels, self.assembly = model, Pixels.of(model), Assembly.read(model)
        self.samples = [ShardDataset.open(data).read(i) for i in range(3)]

    def documents(self, turns: str) -> list[Document]:
        template = load_template("mistral-instruct")
        tokeniser = Tokeniser(load_tokenizer(self.folder), template, self.assembly.image_tokens, turns)
        return [tokeniser.document(s) for s in self.samples]

    def row(self, documents: list[Document], first: int = 0) -> MicroBatch:
        images = [self.pixels.decode(s.image or b"") for s in self.samples[first : first + len(documents)]]
        return pack(documents, images, self.pixels.size)

    def packed(self, name: str) -> PackedLlava:
        if name in QUANTISED:
            pytest.importorskip("bitsandbytes")
        torch.manual_seed(0)
        return PackedLlava(
            trainable(load_model(self.folder, "float32", packed=True), CONFIGS[name], self.assembly), self.pixels
        )


@pytest.fixture(scope="module")
def rows(model: Path, russian: Path) -> Rows:
    return Rows(model, russian)


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    """A process group of this process alone."""
    start_world(EngineConfig())
    yield
    dist.destroy_process_group()


def _shaken(packed: PackedLlava) -> PackedLlava:
    """Trained weights far from where they start, so that each of them shows."""
    torch.manual_seed(1)
    for parameter in (p for p in packed.parameters() if p.requires_grad):
        parameter.data += 0.05 * torch.randn_like(parameter)
    return packed.eval()


def _weights(packed: PackedLlava) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in packed.named_parameters() if p.requires_grad}


def _base(folder: Path, name: str) -> LlavaForConditionalGeneration:
    """The base as somebody loads it who has transformers alone."""
    small = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )
    quantisation = {"quantization_config": small, "device_map": "cpu"} if name in QUANTISED else {}
    base = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, **quantisation)
    assert isinstance(base, LlavaForConditionalGeneration)
    return base.eval()


@torch.inference_mode()
def _logits(model: Any, document: Document, row: MicroBatch, pixels: Pixels) -> Tensor:
    ids = torch.from_numpy(document.input_ids)[None]
    logits: Tensor = model(input_ids=ids, pixel_values=pixels.normalise(row.pixels, torch.float32)).logits[0]
    return logits[-len(document) :]


@pytest.mark.parametrize("name", ADAPTERS)
def test_plain_peft_gives_the_logits_of_the_packed_row(name: str, rows: Rows, tmp_path: Path) -> None:
    packed = _shaken(rows.packed(name))
    assert save_adapter(packed, _weights(packed), tmp_path)
    folder, base = tmp_path / "adapter", _base(rows.folder, name)
    documents = rows.documents("joint")
    # longer than the window, so that a slot that is not counted shows
    assert all(len(d) > 128 for d in documents)
    with torch.inference_mode():
        found = packed.llava.lm_head(packed.hidden(rows.row(documents)))
    # bitsandbytes evaluates in bfloat16 on some CPUs; nothing here has dropout
    base.train(name in QUANTISED)
    untouched = _logits(base, documents[0], rows.row(documents[:1]), rows.pixels)
    adapted = load_answering(base, folder) if name == "bottleneck" else PeftModel.from_pretrained(base, folder)
    adapted.train(name in QUANTISED)
    at = 0
    for number, document in enumerate(documents):
        expected = _logits(adapted, document, rows.row([document], number), rows.pixels)
        torch.testing.assert_close(found[at : at + len(document)], expected, atol=1e-4, rtol=1e-5)
        at += len(document)
    assert (found[: len(documents[0])] - untouched).abs().max() > 0.1


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_every_question_behind_a_shared_image_sees_the_prompt(name: str, rows: Rows) -> None:
    packed = _shaken(rows.packed(name))
    one, other = rows.documents("separate")[:2]
    # the first question about the other image, asked of this one too
    asked = slice(other.prefix, other.prefix + other.segments[0])
    both = replace(
        one,
        input_ids=np.concatenate([one.input_ids, other.input_ids[asked]]),
        labels=np.concatenate([one.labels, other.labels[asked]]),
        position_ids=np.concatenate([one.position_ids, other.position_ids[asked]]),
        segments=(*one.segments, other.segments[0]),
    )
    lone = replace(
        other,
        input_ids=other.input_ids[: asked.stop],
        labels=other.labels[: asked.stop],
        position_ids=other.position_ids[: asked.stop],
        prefix=0,
        segments=(asked.stop,),
    )
    with torch.inference_mode():
        found = packed.hidden(rows.row([both, other]))[len(one) : len(both)]
        expected = packed.hidden(rows.row([lone]))[asked]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def _learn(packed: PackedLlava, row: MicroBatch, run: Path, steps: range, resumed: Path | None) -> list[float]:
    """Steps on one row with DeepSpeed, a checkpoint after each; the losses."""
    if resumed:
        checkpoint.load_parameters(packed, resumed)
    optim = OptimConfig(lr=1e-3)
    engine = Engine(packed, deepspeed_config(EngineConfig(), optim, "float32", 1), optim)
    if resumed:
        checkpoint.load_optimizer(engine, packed, resumed, steps.start)
    losses = []
    for step in steps:
        loss = engine.ds(row)
        losses.append(float(loss.detach()))
        engine.backward(loss, int((row.labels != -100).sum()), last=True)
        engine.step()
        state = checkpoint.State(step + 1, "plan", "base", 0, 0)
        Saver(packed, run, checkpoint.CheckpointConfig(keep=0)).save(state)
    return losses


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("name", list(CONFIGS))
def test_it_learns_and_resumes_to_the_bit(name: str, rows: Rows, tmp_path: Path) -> None:
    row = rows.row(rows.documents("separate"))
    losses = _learn(rows.packed(name), row, tmp_path / "whole", range(2), None)
    assert losses[1] < losses[0]
    middle = checkpoint.step_folder(tmp_path / "whole", 1)
    assert _learn(rows.packed(name), row, tmp_path / "again", range(1, 2), middle) == losses[1:]
    files = ["optimizer/state.safetensors"]
    files.append("adapter/adapter_model.safetensors" if name in ADAPTERS else "model.safetensors")
    for file in files:
        expected, found = (load_file(checkpoint.step_folder(tmp_path / r, 2) / file) for r in ("whole", "again"))
        assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)


def test_an_evaluation_leaves_a_quantised_base_trainable(rows: Rows) -> None:
    packed, row = rows.packed("qlora"), rows.row(rows.documents("joint"))
    before = packed.train()(row)
    with torch.no_grad():
        assert torch.equal(packed.eval()(row), before)
    packed.train()(row).backward()
    # of the projector, which lies before all frozen layers
    trained = {n: p.grad for n, p in packed.named_parameters() if p.requires_grad and "modules_to_save" in n}
    assert trained and all(grad is not None and bool(grad.any()) for grad in trained.values())


@pytest.mark.parametrize("name", ["prompt", "ptuning", "prefix", "bottleneck", "ia3", "tokens"])
def test_answers_go_on_from_the_adapter(name: str, rows: Rows, tmp_path: Path) -> None:
    """Generation with a cache, token by token, sees what the whole text sees."""
    packed = _shaken(rows.packed(name))
    save_adapter(packed, _weights(packed), tmp_path)
    model = load_answering(load_model(rows.folder, "float32", packed=False), tmp_path / "adapter").eval()
    document = rows.documents("joint")[0]
    row = rows.row([document])
    cut = max(i for i, t in enumerate(document.input_ids) if t == packed.llava.config.image_token_id) + 1
    with torch.inference_mode():
        expected = packed.llava.lm_head(packed.hidden(row))[-1]
        ids = torch.from_numpy(document.input_ids)[None]
        images = rows.pixels.normalise(row.pixels, torch.float32)
        first = model(input_ids=ids[:, :cut], pixel_values=images, use_cache=True, logits_to_keep=1)
        rest = model(
            input_ids=ids[:, cut:],
            position_ids=torch.arange(cut, len(document))[None],
            past_key_values=first.past_key_values,
            use_cache=True,
        )
    torch.testing.assert_close(rest.logits[0, -1], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "ia3", "dora": True},
            r"adapter\.dora: method ia3 has no such option .it takes targets, projector",
        ),
        ({"method": "prompt", "targets": ["q_proj"]}, r"adapter\.targets: .* set it to \[\]"),
        (
            {"method": "full", "projector": True},
            r"adapter\.projector: method full has no .* \(it takes tower\)",
        ),
        ({"method": "projector", "r": 8}, r"adapter\.r: .* \(it takes none\)"),
        ({"method": "tokens", "new_tokens": False}, r"adapter\.new_tokens"),
        ({"tower": False}, r"adapter\.tower: method lora"),
        ({"r": 0}, r"adapter\.r=0"),
        ({"method": "bottleneck", "width": 0}, r"adapter\.width: 0"),
        ({"method": "bottleneck", "activation": "tanh"}, r"adapter\.activation: 'tanh' is not one of gelu, relu, silu"),
        ({"method": "prefix", "virtual_tokens": 0}, r"adapter\.virtual_tokens: 0"),
        ({"method": "ptuning", "encoder_width": 0}, r"adapter\.encoder_width: 0"),
        ({"method": "adapters"}, r"adapter\.method: 'adapters' is not one of lora, qlora"),
    ],
)
def test_options_of_another_method_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        AdapterConfig(**options)


@pytest.mark.parametrize("method", ["lora", "ia3", "bottleneck"])
def test_an_unknown_layer_is_refused_with_the_known_ones(method: str, rows: Rows) -> None:
    config = AdapterConfig(method=method, targets=["q_proj", "qq_proj"])
    model = load_model(rows.folder, "float32", packed=True)
    with pytest.raises(BadInput, match=r"no layer 'qq_proj'; the language model has down_proj, gate_proj, .*, v_proj"):
        trainable(model, config, rows.assembly)


def test_a_model_without_added_tokens_has_none_to_train(rows: Rows) -> None:
    assembly = replace(rows.assembly, new_token_ids=[])
    with pytest.raises(BadInput, match="tokens: `vlm assemble` added no tokens"):
        trainable(load_model(rows.folder, "float32", packed=True), AdapterConfig(method="tokens"), assembly)


def test_an_images_place_and_padding_are_no_words(rows: Rows) -> None:
    """A model whose added tokens are only these trains none: PEFT would copy the whole vocabulary in every pass."""
    model = load_model(rows.folder, "float32", packed=True)
    markers = [model.config.image_token_id, model.config.pad_token_id]
    assert set(markers) < set(rows.assembly.new_token_ids)
    names = [n for n, p in rows.packed("tokens").named_parameters() if p.requires_grad]
    assert names and all(NEW_TOKENS in n.split(".") for n in names)
    assembly = replace(rows.assembly, new_token_ids=markers)
    adapted = trainable(model, CONFIGS["lora"], assembly)
    assert not any(NEW_TOKENS in n.split(".") for n, p in adapted.named_parameters())
    with pytest.raises(BadInput, match="added no tokens"):
        trainable(load_model(rows.folder, "float32", packed=True), CONFIGS["tokens"], assembly)


@pytest.mark.usefixtures("world")
def test_added_tokens_alone_learn(rows: Rows) -> None:
    """The rows of the tokens that a text holds move; every other weight of the model stays as it was, to the bit."""
    packed = rows.packed("tokens")
    before = {n: p.detach().clone() for n, p in packed.named_parameters()}
    row = rows.row(rows.documents("separate"))
    optim = OptimConfig(lr=1e-3)
    engine = Engine(packed, deepspeed_config(EngineConfig(), optim, "float32", 1), optim)
    engine.backward(engine.ds(row), int((row.labels != -100).sum()), last=True)
    engine.step()
    moved = {n for n, p in packed.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert moved == {n for n in before if NEW_TOKENS in n.split(".")}


def test_every_part_has_its_own_rate(rows: Rows) -> None:
    optim = OptimConfig(lr=1e-4, projector_lr=2e-5, token_lr=3e-3)
    packed = rows.packed("lora")
    names = {id(p): n.split(".") for n, p in packed.named_parameters()}
    rates = {n: g["peak_lr"] for g in parameter_groups(packed, optim) for n in _parts(g["params"], names)}
    assert rates == {PROJECTOR: 2e-5, NEW_TOKENS: 3e-3, "lora_A": 1e-4, "lora_B": 1e-4}
    alone = parameter_groups(packed, OptimConfig(lr=1e-4))
    assert {g["peak_lr"] for g in alone} == {1e-4}


def _parts(parameters: Any, names: dict[int, list[str]]) -> set[str]:
    known = (PROJECTOR, NEW_TOKENS, "lora_A", "lora_B")
    return {next(part for part in known if part in names[id(p)]) for p in parameters}


@pytest.mark.parametrize(("name", "scale"), [("lora", 8 / 4), ("rslora", 8 / 4**0.5), ("dora", 8 / 4)])
def test_the_scale_is_that_of_the_paper(name: str, scale: float, rows: Rows) -> None:
    packed = rows.packed(name)
    layers = [m for m in packed.modules() if isinstance(m, LoraLayer) and m.lora_A]
    assert layers and {layer.scaling["default"] for layer in layers} == {scale}
    magnitudes = [n for n, p in packed.named_parameters() if "lora_magnitude_vector" in n and p.requires_grad]
    assert len(magnitudes) == (len(layers) if name == "dora" else 0)


def test_what_cannot_be_merged_or_does_not_fit_is_refused(rows: Rows, tmp_path: Path) -> None:
    packed = rows.packed("bottleneck")
    save_adapter(packed, _weights(packed), tmp_path)
    folder = tmp_path / "adapter"
    with pytest.raises(BadInput, match="cannot be merged: BOTTLENECK"):
        load_adapter(load_model(rows.folder, "float32", packed=False), folder)
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(n for n in weights if n.endswith("down.weight"))
    for wrong, message in (({name: weights[name][:2]}, "does not fit the base"), ({"x": weights[name]}, "first ")):
        save_file({n: t for n, t in weights.items() if n != name} | wrong, folder / "adapter_model.safetensors")
        with pytest.raises(BadInput, match=message):
            load_answering(load_model(rows.folder, "float32", packed=False), folder)
