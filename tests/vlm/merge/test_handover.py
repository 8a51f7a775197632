"""What others take of a model: plain transformers, PEFT, vLLM's LoRA, the original LLaVA, llama.cpp, a hub."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jinja2 import Template
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
)

from shards.errors import BadInput
from shards.files import read_json, sha256_file, verify_manifest, write_json
from tests.vlm.merge.handed import merge, write_run
from vlm.data.template import IMAGE, TEMPLATES
from vlm.handover.gguf import IMAGES, LANGUAGE, write_gguf
from vlm.handover.peft_folder import peft_folder
from vlm.handover.projector_file import write_projector
from vlm.handover.vllm import vllm_folders
from vlm.merge.card import Card
from vlm.merge.companions import Facts, companions
from vlm.model.assemble import Assembly
from vlm.model.projector import load_projector
from vlm.stop import Fault

CARD, OWN = Card("a model", ["me/base"]), Facts()
ROOT = str(Path(__file__).parents[3])


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), model, r=4)


@pytest.fixture(scope="module")
def merged(model: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "merged"
    merge(model, adapter, out, Facts(card=CARD.text()))
    return out


@pytest.fixture
def base(model: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(model, tmp_path / "base", ignore=shutil.ignore_patterns("MANIFEST.json")))


def change(path: Path, **fields: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **fields})


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    ids = torch.randint(5, 300, (1, 9))
    image = torch.full((1, 64), model.config.image_token_id)
    pixels = torch.randn(1, 3, 64, 64)
    found: torch.Tensor = model.eval()(input_ids=torch.cat([image, ids], 1), pixel_values=pixels).logits
    return found


def load(folder: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def hand_over(base: Path, folder: Path, facts: Facts = OWN) -> dict[str, Any]:
    """Companions beside the base's own weights; the generation settings."""
    folder.mkdir(exist_ok=True)
    if not (folder / "model.safetensors").exists():
        shutil.copyfile(base / "model.safetensors", folder / "model.safetensors")
    companions(base, folder, facts)
    return dict(json.loads((folder / "generation_config.json").read_text()))


def test_plain_transformers_takes_the_folder_in_its_own_dtype(model: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(model, adapter, out, Facts(card="# It\n"), torch.bfloat16)
    loaded = LlavaForConditionalGeneration.from_pretrained(out)
    assert loaded.dtype == torch.bfloat16 and loaded.config.text_config.dtype == torch.bfloat16
    assert loaded.config.text_config.use_cache
    processor, settings = AutoProcessor.from_pretrained(out), GenerationConfig.from_pretrained(out)
    assert settings.eos_token_id == processor.tokenizer.eos_token_id
    assert settings.pad_token_id == processor.tokenizer.pad_token_id
    assert not verify_manifest(out) and (out / "README.md").read_text() == "# It\n"
    text = json.loads((out / "config.json").read_text())
    assert text["tie_word_embeddings"] is text["text_config"]["tie_word_embeddings"]
    assert loaded.lm_head.weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()


def test_what_is_of_this_machine_or_is_code_stays_behind(base: Path, tmp_path: Path) -> None:
    change(base / "config.json", _name_or_path="/home/me", auto_map={"AutoModel": "m.M"}, quantization_config={"a": 1})
    text = {**json.loads((base / "config.json").read_text())["text_config"], "quantization_config": {"a": 1}}
    change(base / "config.json", text_config=text)
    change(base / "tokenizer_config.json", name_or_path="/home/me/x", auto_map={"AutoTokenizer": ["t.T", None]})
    (base / "m.py").write_text("raise SystemExit")
    for name in ("LICENSE.txt", "NOTICE", "tokenizer.model", "notes.txt", "state.json"):
        (base / name).write_text(name)
    out = tmp_path / "out"
    out.mkdir()
    (out / ".config.json.0123.tmp").write_text("of one that was killed")
    hand_over(base, out)
    names = {path.name for path in out.iterdir()}
    assert {"LICENSE.txt", "NOTICE", "tokenizer.model"} <= names
    assert not names & {"m.py", "notes.txt", "state.json", ".config.json.0123.tmp"}
    told = "".join((out / name).read_text() for name in ("config.json", "tokenizer_config.json"))
    assert "/home/me" not in told and "auto_map" not in told and "quantization_config" not in told


def test_transformers_4_finds_what_it_knows(base: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    text = {**json.loads((base / "config.json").read_text())["text_config"], "rope_parameters": rope}
    change(base / "config.json", text_config=text)
    change(base / "tokenizer_config.json", tokenizer_class="TokenizersBackend", extra_special_tokens=["[INST]"])
    wanted = AutoTokenizer.from_pretrained(base)
    hand_over(base, out := tmp_path / "out")
    told = {name: json.loads((out / f"{name}.json").read_text()) for name in ("config", "tokenizer_config")}
    assert told["config"]["text_config"]["rope_theta"] == 5e5
    assert told["config"]["text_config"]["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert told["tokenizer_config"]["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert told["tokenizer_config"]["additional_special_tokens"] == ["[INST]"]
    assert json.loads((out / "preprocessor_config.json").read_text())["image_processor_type"]
    # and 5 what it has
    tokenizer, config = AutoTokenizer.from_pretrained(out), LlavaConfig.from_pretrained(out)
    assert dict(config.text_config.rope_parameters) == rope
    assert tokenizer.extra_special_tokens == wanted.extra_special_tokens == ["[INST]"]
    words = "[INST] Что это?"
    assert dict(tokenizer(words)) == dict(wanted(words)) and type(tokenizer) is type(wanted)


def test_links_are_followed_inside_the_model_and_its_hub_cache_alone(base: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--me--base"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0a"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in base.iterdir():
        shutil.move(path, blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    out = tmp_path / "out"
    hand_over(snapshot, out)
    assert not [path for path in out.iterdir() if path.is_symlink()] and (out / "tokenizer.json").is_file()
    (tmp_path / "key").write_text("secret")
    (snapshot / "LICENSE").symlink_to(tmp_path / "key")
    with pytest.raises(BadInput, match=r"LICENSE: a link to outside"):
        hand_over(snapshot, out)


def test_the_template_of_the_training_takes_the_place_of_the_bases(base: Path, tmp_path: Path) -> None:
    change(base / "tokenizer_config.json", chat_template="another")
    write_json(base / "chat_template.json", {"chat_template": "another"})
    before = hand_over(base, tmp_path / "own")
    assert (tmp_path / "own" / "chat_template.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|eot_id|>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    after = hand_over(base, tmp_path / "out", Facts("llama-3"))
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert after["eos_token_id"] == [before["eos_token_id"], end]
    assert json.loads((tmp_path / "out" / "assembly.json").read_text())["template"] == "llama-3"
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.chat_template == processor.tokenizer.chat_template == TEMPLATES["llama-3"].jinja()
    with pytest.raises(BadInput, match=r"unknown template"):
        hand_over(base, tmp_path / "out", Facts("lama"))


def test_settings_that_only_drawing_knows_go_with_it(base: Path, tmp_path: Path) -> None:
    write_json(base / "generation_config.json", {"temperature": 0.6, "top_p": 0.9, "max_length": 99})
    found = hand_over(base, tmp_path / "out")
    assert "temperature" not in found and found["max_length"] == 99 and found["do_sample"] is False
    GenerationConfig.from_pretrained(tmp_path / "out").save_pretrained(tmp_path)
    write_json(base / "generation_config.json", {"temperature": 0.6, "do_sample": True})
    assert hand_over(base, tmp_path / "out")["temperature"] == 0.6


def test_a_grown_vocabulary_is_told(base: Path, tmp_path: Path) -> None:
    weights = load_file(base / "model.safetensors")
    name = "language_model.model.embed_tokens.weight"
    weights[name] = torch.cat([weights[name], weights[name][:3]])
    out = tmp_path / "out"
    out.mkdir()
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    hand_over(base, out)
    assert load(out).get_input_embeddings().weight.shape[0] == len(weights[name])


def test_garbage_of_a_base_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    write_json(base / "generation_config.json", {"eos_token_id": [[1]]})
    with pytest.raises(BadInput, match=r"generation_config\.json: eos_token_id \[\[1\]\]"):
        hand_over(base, tmp_path / "out")
    (base / "generation_config.json").unlink()
    change(base / "tokenizer_config.json", added_tokens_decoder={"9" * 5000: {"content": "x"}})
    hand_over(base, tmp_path / "out")
    (base / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(BadInput, match=r"tokenizer\.json: no tokenizer"):
        hand_over(base, tmp_path / "out")
    (base / "processor_config.json").write_text("[]")
    with pytest.raises(BadInput, match=r"processor_config\.json: no object"):
        hand_over(base, tmp_path / "out")


def test_peft_takes_its_folder(model: Path, adapter: Path, merged: Path, tmp_path: Path) -> None:
    peft_folder(adapter, model, "me/llava-base", tmp_path / "peft", CARD)
    assert (
        json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "me/llava-base"
    )
    found = logits(PeftModel.from_pretrained(load(model), tmp_path / "peft"))
    torch.testing.assert_close(found, logits(load(merged)), atol=1e-4, rtol=1e-4)
    assert (found - logits(load(model))).abs().max() > 0.1 and not verify_manifest(tmp_path / "peft")
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    change(other / "adapter_config.json", peft_type="BOTTLENECK")
    with pytest.raises(BadInput, match="BOTTLENECK is no adapter that PEFT loads"):
        peft_folder(other, model, "me/llava-base", tmp_path / "no", CARD)


def test_peft_gets_no_adapter_of_another_base(model: Path, adapter: Path, base: Path, tmp_path: Path) -> None:
    def refused(name: str = "me/base", given: Path = adapter, base: Path = model) -> str:
        with pytest.raises(BadInput) as caught:
            peft_folder(given, base, name, tmp_path / "no", CARD)
        assert not (tmp_path / "no").exists()
        return str(caught.value)

    for name in ("", "a\n---\nb", "../base", "/x\n", "x" * 3000):
        assert "--base-name" in refused(name)
    assert "nosuch" in refused(base=tmp_path / "nosuch")
    weights = load_file(adapter / "adapter_model.safetensors")
    first = next(name for name in weights if "up_proj.lora_A" in name)
    other = Path(shutil.copytree(adapter, tmp_path / "step" / "adapter"))
    for spoilt, said in (
        ({first: weights[first] * torch.nan}, f"{first} holds a value that is not finite"),
        ({first: weights[first][:, :5].contiguous()}, "does not fit"),
        ({"up_proj": weights[first].clone()}, "up_proj is no name that PEFT gives"),
    ):
        save_file({**weights, **spoilt}, other / "adapter_model.safetensors")
        assert said in refused(given=other)
    save_file(weights, other / "adapter_model.safetensors")
    write_json(tmp_path / "step" / "state.json", {"base": "another"})
    assert "was trained on another base" in refused(given=other)
    assert "unknown template" in _message(lambda: vllm_folders(model, adapter, tmp_path / "no", Facts("lama"), CARD))


def _message(call: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        call()
    return str(caught.value)


def test_vllm_gets_lora_alone_beside_a_base_with_the_rest(
    model: Path, adapter: Path, merged: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    weights = load_file(changed / "adapter_model.safetensors")
    for name in [name for name in weights if "layers.1.mlp.up_proj" in name]:
        weights[name] = weights[name][:2] if "lora_A" in name else weights[name][:, :2].contiguous()
    save_file(weights, changed / "adapter_model.safetensors")
    change(changed / "adapter_config.json", rank_pattern={"layers.1.mlp.up_proj": 2}, alpha_pattern={"q_proj": 3})
    merge(model, changed, tmp_path / "merged", Facts())
    served = vllm_folders(model, changed, tmp_path / "vllm", Facts(), CARD)
    assert (served.base, served.max_lora_rank) == (tmp_path / "vllm" / "base", 8)
    # what vLLM asks of a folder: see the docstring of vlm.handover.vllm
    config = json.loads((served.lora / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4 and not (config["modules_to_save"] or config["use_dora"])
    for name, tensor in load_file(served.lora / "adapter_model.safetensors").items():
        module, matrix = name.removeprefix("base_model.model.").split(".lora_")
        assert matrix in ("A.weight", "B.weight") and module in config["target_modules"]
        assert tensor.shape[matrix == "B.weight"] == 4
    found = logits(PeftModel.from_pretrained(load(served.base), served.lora))
    wanted = logits(load(tmp_path / "merged"))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (found - logits(load(served.base))).abs().max() > 0.1
    assert (found - logits(load(merged))).abs().max() > 1e-3
    assert not verify_manifest(served.base) and not verify_manifest(served.lora)
    assert vllm_folders(model, changed, tmp_path / "vllm", Facts(), CARD) == served


def test_vllm_needs_no_other_base_for_lora_alone_and_refuses_dora(model: Path, tmp_path: Path) -> None:
    plain = write_run(tmp_path / "plain", model, r=16, projector=False, new_tokens=False)
    served = vllm_folders(model, plain, tmp_path / "vllm", Facts(), CARD)
    assert served.base == model and not (tmp_path / "vllm" / "base").exists()
    found = logits(PeftModel.from_pretrained(load(model), served.lora))
    torch.testing.assert_close(found, logits(PeftModel.from_pretrained(load(model), plain)), atol=1e-4, rtol=1e-4)
    dora = write_run(tmp_path / "dora", model, r=4, dora=True)
    with pytest.raises(BadInput, match=r"vLLM loads no such adapter .*merge it"):
        vllm_folders(model, dora, tmp_path / "no", Facts(), CARD)
    assert not (tmp_path / "no").exists()


def test_the_projector_goes_by_llavas_names(model: Path, adapter: Path, merged: Path, tmp_path: Path) -> None:
    told = write_projector(model, tmp_path / "out", adapter)
    assert (told["mm_projector_type"], told["mm_vision_select_layer"]) == ("mlp2x_gelu", -2)
    weights = torch.load(tmp_path / "out" / "mm_projector.bin", weights_only=True)
    assert set(weights) == {f"model.mm_projector.{n}.{part}" for n in (0, 2) for part in ("weight", "bias")}
    wanted = load(merged).model.multi_modal_projector
    for name in ("mm_projector.bin", "mm_projector.safetensors"):
        projector = load(model).model.multi_modal_projector
        load_projector(projector, "mlp", tmp_path / "out" / name, anew=False)
        for key, value in wanted.state_dict().items():
            torch.testing.assert_close(projector.state_dict()[key], value)


def _llama_cpp(folder: Path, code: str = "") -> Path:
    """Scripts in the place of llama.cpp's converters, that write down what they are given."""
    for name, out in ((LANGUAGE, "--outfile"), (IMAGES, "--output-dir")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(
            f"import json, shutil, sys\n{code}\nargs = sys.argv[1:]\nout = args[args.index({out!r}) + 1]\n"
            "if out.endswith('.gguf'):\n    open(out, 'w').write(json.dumps(args))\n"
            f"    shutil.copytree(args[0], {str(folder / 'model')!r})\n"
            "else:\n    open(out + '/mmproj-model-f16.gguf', 'w').write(json.dumps(args))\n"
            f"    shutil.copytree(args[args.index('--model-dir') + 1], {str(folder / 'seen')!r})\n"
            f"    shutil.copy(args[args.index('--llava-projector') + 1], {str(folder / 'seen')!r})\n"
        )
    return folder


def test_llama_cpps_converters_get_what_they_read(merged: Path, tmp_path: Path) -> None:
    files = write_gguf(merged, _llama_cpp(tmp_path / "llama.cpp"), tmp_path / "out")
    assert [path.name for path in files] == ["mmproj-model-f16.gguf", "model.gguf"]
    assert not verify_manifest(tmp_path / "out") and not (tmp_path / "out" / ".parts").exists()
    language, images = (json.loads((tmp_path / "out" / name).read_text()) for name in ("model.gguf", files[0].name))
    assert language[1] == "--outfile" and "--clip-model-is-vision" in images
    given = tmp_path / "llama.cpp" / "model"
    assert {path.name for path in given.iterdir()} == {path.name for path in merged.iterdir()}
    # a template there sees a string, with a marker where the image is
    words = [{"type": "image"}, {"type": "text", "text": "Что это?"}]
    said, there = ((folder / "chat_template.jinja").read_text() for folder in (merged, given))
    wanted = Template(said).render(messages=[{"role": "user", "content": words}], bos_token="<s>")
    marked = [{"role": "user", "content": "<__media_x__>Что это?"}]
    assert Template(there).render(messages=marked, bos_token="<s>").replace("<__media_x__>", IMAGE) == wanted
    assert Template(said).render(messages=marked, bos_token="<s>").replace("<__media_x__>", IMAGE) != wanted
    assert images[images.index("--image-mean") + 1 :][:3] == ["0.48145466", "0.4578275", "0.40821073"]
    seen = tmp_path / "llama.cpp" / "seen"
    tower = CLIPVisionModel.from_pretrained(seen, dtype=torch.float32)
    for name, value in load(merged).model.vision_tower.state_dict().items():
        assert torch.equal(tower.state_dict()[name], value), name
    # its names there are those of before transformers 5.6, which the converter goes by
    assert all(name.startswith("vision_model.") for name in load_file(seen / "model.safetensors"))
    assert json.loads((seen / "config.json").read_text())["vision_feature_layer"] == -2
    assert "model.mm_projector.0.weight" in torch.load(seen / "llava.projector", weights_only=True)


def test_gguf_is_refused_without_a_converter_and_for_what_it_does_not_know(
    merged: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"holds no convert_hf_to_gguf\.py; git clone"):
        write_gguf(merged, tmp_path, tmp_path / "out")
    failing = _llama_cpp(tmp_path / "llama.cpp", "sys.exit('torn\\nno such model')")
    with pytest.raises(Fault, match=r"convert_hf_to_gguf\.py ended with code 1: no such model"):
        write_gguf(merged, failing, tmp_path / "out")
    assert verify_manifest(tmp_path / "out")
    change(base / "config.json", projector_hidden_act="linear")
    with pytest.raises(BadInput, match="no linear projector"):
        write_gguf(base, failing, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_commands(
    vlm: Callable[..., tuple[int, str, str]],
    model: Path,
    adapter: Path,
    merged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = adapter.parents[2]
    out = tmp_path / "peft"
    code, told, _ = vlm("handover", "peft", run, "--base", model, "--base-name", "me/base", "--out", out, "--json")
    assert (
        code == 0
        and json.loads(told) == {"folder": str(out), "adapter": str(adapter)}
        and "base_model: me/base" in (out / "README.md").read_text()
    )
    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfile", _full)
        code, _, said = vlm("handover", "peft", run, "--base", model, "--base-name", "me/base", "--out", out)
        assert code == 1 and "No space left on device" in said and said.count("\n") == 1
        assert not (out / "MANIFEST.json").exists()
    code, told, _ = vlm("handover", "vllm", adapter, "--base", model, "--out", tmp_path / "vllm")
    assert code == 0 and told.startswith(f"vllm serve {tmp_path / 'vllm' / 'base'} --enable-lora --max-lora-rank 8")
    code, told, _ = vlm("handover", "projector", merged, "--out", tmp_path / "projector")
    assert code == 0 and "mlp2x_gelu" in told
    code, _, said = vlm("handover", "gguf", merged, "--converter", tmp_path, "--out", tmp_path / "gguf")
    assert code == 2 and said.count("\n") == 1


def test_a_template_from_a_file_goes_along(model: Path, adapter: Path, tmp_path: Path) -> None:
    """Whoever evaluates the merged model without the recipe asks as it was trained."""
    own = {**asdict(TEMPLATES["saiga"]), "name": "mine", "default_system": "Отвечай кратко."}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(own)), allow_unicode=True))
    merge(model, adapter, tmp_path / "out", Facts(template=str(tmp_path / "mine.yaml")))
    (tmp_path / "mine.yaml").unlink()
    chat = Assembly.read((tmp_path / "out").rename(tmp_path / "moved")).chat("")
    assert (chat.name, chat.default_system) == ("mine", "Отвечай кратко.")
    assert "Отвечай кратко." in (tmp_path / "moved" / "chat_template.jinja").read_text()
    # the next one, of the table, leaves nothing of it
    merge(tmp_path / "moved", adapter, tmp_path / "again", Facts(template="saiga"))
    assert Assembly.read(tmp_path / "again").template == "saiga"
    assert not (tmp_path / "again" / "chat_template.yaml").exists()


def test_a_run_brings_the_template_of_its_training(
    vlm: Callable[..., tuple[int, str, str]], model: Path, adapter: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(adapter.parents[2], tmp_path / "run"))
    (run / "recipe.yaml").write_text("data: {template: vicuna_v1}")
    assert Assembly.read(model).template != "vicuna_v1"
    assert vlm("merge", run, "--base", model, "--out", tmp_path / "out", "--probes", 1)[0] == 0
    assert vlm("handover", "vllm", run, "--base", model, "--out", tmp_path / "vllm")[0] == 0
    for folder in (tmp_path / "out", tmp_path / "vllm" / "base"):
        assert Assembly.read(folder).template == "vicuna_v1"
        assert (folder / "chat_template.jinja").read_text() == TEMPLATES["vicuna_v1"].jinja()


def test_a_head_of_its_own_is_not_given_away(tmp_path: Path) -> None:
    """Where the configuration says tied and a head is stored that differs, some would drop it."""
    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    base = MistralForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    change(tmp_path / "base" / "config.json", tie_word_embeddings=True)
    peft = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    peft.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", Facts())
    assert read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] is False


def test_a_base_in_the_hubs_cache_is_known_by_its_blobs(model: Path, adapter: Path, tmp_path: Path) -> None:
    """Its weight files are links to blobs that their digests name."""
    snapshot, blobs = tmp_path / "models--me--base" / "snapshots" / "abc", tmp_path / "models--me--base" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in model.iterdir():
        if path.name != "MANIFEST.json":
            blob = blobs / (sha256_file(path) if path.suffix == ".safetensors" else path.name)
            shutil.copy(path, blob)
            (snapshot / path.name).symlink_to(blob)
    merge(snapshot, adapter, tmp_path / "out", Facts())
    blob = (snapshot / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-3] ^= 1
    blob.write_bytes(data)
    with pytest.raises(BadInput, match=r"model.safetensors: damaged: its digest is not the one in the hub's cache"):
        merge(snapshot, adapter, tmp_path / "again", Facts())
    assert not (tmp_path / "again").exists()
