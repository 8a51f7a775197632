"""Bases in 4 bits and in GGUF files: plain to the bit as others make them, merged into, refused where unsound."""

import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shards.errors import BadInput
from shards.files import read_json, sha256_file, verify_manifest, write_manifest
from tests.vlm.merge.models import one_rounding
from tests.vlm.merge.quantised_models import write_adapter, write_four_bit, write_gguf, write_plain
from vlm.demo.base import KEPT
from vlm.merge import run as merging
from vlm.merge.adapter import Adapter, Edits
from vlm.merge.bases.as_nf4 import AsNf4, Nf4
from vlm.merge.bases.dequantise import Original
from vlm.merge.bases.plain_model import PlainModel
from vlm.merge.layout import Layout, WeightFile
from vlm.merge.plan import MergePlan
from vlm.merge.run import Checks, merge
from vlm.model.adapters.quantised import quantise
from vlm.model.load import load_model

bitsandbytes = pytest.importorskip("bitsandbytes")
gguf = pytest.importorskip("gguf")
DOUBLE_NF4: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
SINGLE = "model.safetensors"
Vlm = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True, scope="module")
def eager() -> Iterator[None]:
    """bitsandbytes compiles what it does in torch itself, which takes longer than all these tests."""
    with torch._dynamo.config.patch(disable=True):
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("plain") / "plain")


@pytest.fixture(scope="module")
def four_bit(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four") / "four"
    write_four_bit(plain, folder, **DOUBLE_NF4)
    return folder


@pytest.fixture(scope="module")
def adapter(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    return write_adapter(model, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def _made(base: Path, out: Path, dtype: torch.dtype | None = None) -> Path:
    Original.read(base, dtype).write(out)
    assert not verify_manifest(out)
    return out


def _alike(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert found[name].dtype == weight.dtype and torch.equal(found[name], weight), name


@pytest.mark.parametrize(
    "options",
    [DOUBLE_NF4, {"bnb_4bit_quant_type": "fp4"}, {**DOUBLE_NF4, "bnb_4bit_quant_storage": torch.bfloat16}],
    ids=["nf4 of nf4", "fp4", "stored as bfloat16"],
)
def test_four_bits_are_what_bitsandbytes_makes_of_them(plain: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    wanted = write_four_bit(plain, tmp_path / "four", shard="60KB", **options)
    assert len(list((tmp_path / "four").glob("*.safetensors"))) > 2
    out = _made(tmp_path / "four", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    _alike(model.state_dict(), wanted)
    assert "quantization_config" not in read_json(out / "config.json")
    places = read_json(out / "model.safetensors.index.json")["weight_map"]
    assert places.keys() == wanted.keys()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("block", [32, 64, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_blocks_and_dtypes(tmp_path: Path, kind: str, block: int, dtype: torch.dtype) -> None:
    for number, (shape, double) in enumerate([((7, 33), True), ((1100, 1024), True), ((1100, 1024), False)]):
        torch.manual_seed(number)
        weight = torch.randn(shape, dtype=dtype)
        packed, state = bitsandbytes.functional.quantize_4bit(
            weight, blocksize=block, compress_statistics=double, quant_type=kind
        )
        parts = {f"w.weight.{name}": value for name, value in state.as_dict(packed=True).items()}
        folder = tmp_path / str(number)
        _write_folder(folder, {"w.weight": packed, **parts, "model.embed_tokens.weight": torch.ones(2, 2)})
        found = load_file(_made(folder, tmp_path / f"out{number}") / SINGLE)["w.weight"]
        wanted = bitsandbytes.functional.dequantize_4bit(packed, state)
        assert found.dtype == dtype and torch.equal(found, wanted)


def _write_folder(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / SINGLE)
    told = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": told}))
    return folder


def test_an_adapter_is_merged_into_a_base_in_four_bits(vlm: Vlm, plain: Path, adapter: Path, tmp_path: Path) -> None:
    wanted = write_four_bit(plain, tmp_path / "four", **DOUBLE_NF4)
    out = tmp_path / "out"
    given = ["merge", adapter, "--base", tmp_path / "four", "--out", out]
    code, _, said = vlm(*given)
    assert code == 2 and "its weights are quantised; --dequantise has them made plain" in said.splitlines()[-1]
    assert not (tmp_path / ".out.merging").exists()
    code, said, _ = vlm(*given, "--dequantise")
    assert code == 0 and "logits agree" in said
    base = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    base.load_state_dict(wanted)
    exact = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    one_rounding(AutoModelForCausalLM.from_pretrained(out).state_dict(), exact, torch.bfloat16)
    told = read_json(out / "merge.json")
    assert told["dequantised"] == "bitsandbytes, 4 bits"
    assert told["base"] != sha256_file(tmp_path / "four" / SINGLE)  # a digest of digests
    assert "quantization_config" not in read_json(out / "config.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four", "out"]
    assert vlm("merge", adapter, "--base", tmp_path / "four", "--dequantise", "--verify-only", out)[0] == 0


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_gguf_file_is_what_transformers_makes_of_it(
    architecture: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", architecture, tokens=architecture == "llama")
    out = _made(path, tmp_path / "out", dtype)
    source = {"pretrained_model_name_or_path": str(tmp_path), "gguf_file": path.name}
    theirs = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype or torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(out)
    _alike(ours.state_dict(), theirs.state_dict())
    kept = theirs.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "architectures"):
        kept.pop(name, None)
    assert kept.items() <= ours.config.to_dict().items()
    assert str(tmp_path) not in (out / "config.json").read_text()
    if architecture == "llama":
        tokens, their_tokens = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(**source)
        assert tokens("Що це? 猫")["input_ids"] == their_tokens("Що це? 猫")["input_ids"]


def test_an_adapter_is_merged_into_a_gguf_file(vlm: Vlm, llama: Path, tmp_path: Path) -> None:
    def base(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(llama.parent, gguf_file=llama.name, dtype=dtype)

    adapter, out = write_adapter(base(torch.float32), tmp_path / "adapter"), tmp_path / "out"
    given = ["merge", adapter, "--base", llama, "--out", out, "--dtype", "bfloat16"]
    code, _, said = vlm(*given)
    assert code == 2 and "its weights are quantised; --dequantise has them made plain" in said.splitlines()[-1]
    assert vlm(*given, "--dequantise")[0] == 0
    plain = AutoModelForCausalLM.from_config(base(torch.float32).config, dtype=torch.float32)
    plain.load_state_dict(base(torch.bfloat16).state_dict())
    exact = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    one_rounding(AutoModelForCausalLM.from_pretrained(out).state_dict(), exact, torch.bfloat16)
    told = read_json(out / "merge.json")
    assert told["base"] == sha256_file(llama) and told["dequantised"] == "GGUF (BF16, F16, F32, Q4_0, Q8_0)"
    card = (out / "README.md").read_text()
    assert "license: mit" in card and llama.name in card and str(llama.parent) not in card


def test_the_plain_base_is_made_once(four_bit: Path, adapter: Path, tmp_path: Path, monkeypatch: Any) -> None:
    plan = MergePlan(four_bit, [adapter], tmp_path / "out", dequantise=True)
    honest = PlainModel.write

    def killed(*given: Any) -> Any:
        honest(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PlainModel, "write", killed)
        merge(plan, Checks(probes=1))
    # torn where it was killed
    (tmp_path / ".out.merging" / "base" / SINGLE).write_bytes(b"torn")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merging, "write_weights", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        merge(plan, Checks(probes=1))
    # another adapter changes nothing of the base
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: weight * 2 for name, weight in weights.items()}, other / "adapter_model.safetensors")
    monkeypatch.setattr(PlainModel, "write", None)
    merge(MergePlan(four_bit, [other], tmp_path / "out", dequantise=True), Checks(probes=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_damaged_base_is_named(four_bit: Path, adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "four"
    shutil.copytree(four_bit, base)
    write_manifest(base)
    data = bytearray((base / SINGLE).read_bytes())
    packed = next(each for each in WeightFile.read(base / SINGLE).tensors if each.name.endswith("up_proj.weight"))
    data[packed.begin] ^= 1
    (base / SINGLE).write_bytes(data)
    with pytest.raises(BadInput, match=f"{SINGLE}: damaged"):
        merge(MergePlan(base, [adapter], tmp_path / "out", dequantise=True), Checks(probes=1))


def test_an_adapter_of_another_base_is_found_before_anything_is_written(
    llama: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"self_attn\.q_proj\.bias|no weight of"):
        weights = load_file(adapter / "adapter_model.safetensors")
        other = tmp_path / "other"
        shutil.copytree(adapter, other)
        renamed = {name.replace("layers.1.", "layers.7."): weight for name, weight in weights.items()}
        save_file(renamed, other / "adapter_model.safetensors")
        merge(MergePlan(llama, [other], tmp_path / "out", dequantise=True), Checks(probes=1))
    assert not (tmp_path / ".out.merging").exists()


def _broken(four_bit: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """A copy whose first down_proj has other parts (None: without it), or another quant_state."""
    shutil.copytree(four_bit, folder)
    weight, state = "model.layers.0.mlp.down_proj.weight", "quant_state.bitsandbytes__nf4"
    found = load_file(folder / SINGLE)
    for part, value in changes.items():
        name = f"{weight}.{part}" if part else weight
        if isinstance(value, dict):
            told = json.loads(found[f"{weight}.{state}"].numpy().tobytes()) | value
            value = torch.tensor([*json.dumps(told).encode()], dtype=torch.uint8)
            name = f"{weight}.{state}"
        found.pop(name)
        if value is not None:
            found[name] = value
    save_file(found, folder / SINGLE)
    return folder


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"": torch.zeros(9, 1, dtype=torch.uint8)}, "9 bytes for 8192 numbers"),
        ({"absmax": torch.zeros(3, dtype=torch.uint8)}, "its absmax is torch.uint8 of shape"),
        ({"absmax": torch.zeros(128)}, "its absmax is torch.float32 of shape"),
        ({"absmax": None}, "its absmax is missing"),
        ({"nested_absmax": torch.zeros(7)}, "its nested_absmax is torch.float32 of shape"),
        ({"nested_absmax": torch.full((1,), torch.nan)}, "holds a value that is not finite"),
        ({"nested_quant_map": torch.zeros(255)}, "its nested_quant_map is"),
        ({"quant_map": torch.ones(16)}, "its quant_map is not that of nf4"),
        ({"quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8)}, "its quant_state tells no shape"),
        ({"quant_state.bitsandbytes__nf4": None}, "stands beside no weight in 4 bits that says how"),
        ({"state": {"shape": [2**39, 2**39]}}, f"bytes for {2**78} numbers|of shape"),
        ({"state": {"shape": "all"}}, "its quant_state tells no shape"),
        ({"state": {"blocksize": 0}}, "its blocksize is none of"),
        ({"state": {"blocksize": 2**60}}, "its blocksize is none of"),
        ({"state": {"nested_blocksize": -1}}, "its nested_blocksize is none of"),
        ({"state": {"nested_offset": None}}, "its nested_offset is no number"),
        ({"state": {"dtype": "int8"}}, "it was quantised from none of"),
    ],
)  # fmt: skip
def test_unsound_four_bits_are_named(four_bit: Path, tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    base = _broken(four_bit, tmp_path / "base", changes)
    with pytest.raises(BadInput, match=why) as refused:
        Original.read(base).write(tmp_path / "out")
    assert SINGLE in str(refused.value) and "model.layers.0.mlp.down_proj.weight" in str(refused.value)


def test_another_quantisation_is_refused(vlm: Vlm, plain: Path, adapter: Path, tmp_path: Path) -> None:
    base, given = tmp_path / "base", ["merge", adapter, "--out", tmp_path / "out", "--dequantise", "--base"]
    shutil.copytree(plain, base)
    assert "neither a folder in 4 bits nor a GGUF file" in vlm(*given, base)[2]
    config = read_json(base / "config.json")
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    code, _, said = vlm(*given, base)
    assert code == 2 and "quantised by gptq" in said and said.count("\n") == 1


def _patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1 and len(old) == len(new)
    return data.replace(old, new)


def _info(name: str, *numbers: int) -> bytes:
    """What stands behind the name of a matrix: dimensions, lengths, the type's number."""
    return name.encode() + struct.pack("<IQQI", *numbers)


def _uint32(value: int) -> bytes:
    """What stands behind a key: the type and the number."""
    return struct.pack("<II", 4, value)


K_PROJ = _info("blk.0.attn_k.weight", 2, 64, 32, 8)
UNSOUND: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda data: data[:-99], r"blk\.\d.*are not its own|output.*are not its own"),
    "cut in its header": (lambda data: data[:300], "ends within its header"),
    "other": (lambda data: b"GGML" + data[4:], "no GGUF file"),
    "version": (lambda data: data[:4] + struct.pack("<I", 9) + data[8:], "GGUF of version 9"),
    "tensors": (lambda data: data[:8] + struct.pack("<Q", 2**62) + data[16:], "are more than a model has"),
    "entries": (lambda data: data[:16] + struct.pack("<Q", 2**62) + data[24:], "are more than a model has"),
    "type": (
        lambda data: _patched(data, K_PROJ, _info("blk.0.attn_k.weight", 2, 64, 32, 77)),
        r"blk\.0\.attn_k\.weight: its quantisation, number 77, is not known",
    ),
    "shape": (
        lambda data: _patched(data, K_PROJ, _info("blk.0.attn_k.weight", 2, 32, 64, 8)),
        r"blk\.0\.attn_k\.weight of shape \(64, 32\) should be of \(32, 64\)",
    ),
    "large": (
        lambda data: _patched(data, K_PROJ, _info("blk.0.attn_k.weight", 2, 64, 2**39, 8)),
        r"blk\.0\.attn_k\.weight: its .* bytes .* are not its own",
    ),
    "name": (
        lambda data: _patched(data, b"blk.0.attn_k.weight", b"blk.0.attn_x.weight"),
        r"blk\.0\.attn_x\.weight is no weight of llama",
    ),
    "architecture": (
        lambda data: data.replace(b"llama", b"mamba"),
        "its architecture mamba is none of llama, gemma3",
    ),
    "layers": (
        lambda data: _patched(data, b"block_count" + _uint32(2), b"block_count" + _uint32(3)),
        r"lacks blk\.2\.attn_norm\.weight",
    ),
    "array": (
        lambda data: data.replace(struct.pack("<IQ", 8, 259), struct.pack("<IQ", 8, 2**61)),
        "an array of 2305843009213693952 texts|ends within its header",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSOUND)
def test_an_unsound_gguf_file_is_named(llama: Path, tmp_path: Path, name: str) -> None:
    change, why = UNSOUND[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(change(llama.read_bytes()))
    with pytest.raises(BadInput, match=why) as refused:
        Original.read(path)
    assert str(path) in str(refused.value)


@given(st.data())
def test_a_gguf_header_of_any_bytes_is_read_or_refused(llama: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    content = bytearray(llama.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 9000))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(content)
    try:
        Original.read(path)
    except BadInput as refused:
        assert str(path) in str(refused) and "\n" not in str(refused)


def test_a_value_that_is_no_number_is_named(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    reader = gguf.GGUFReader(llama)
    tensor = next(each for each in reader.tensors if each.name == "blk.1.ffn_down.weight")
    data = bytearray(llama.read_bytes())
    # a block of Q8_0 begins with its scale
    data[tensor.data_offset : tensor.data_offset + 2] = b"\xff\xff"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"nan\.gguf: blk\.1\.ffn_down\.weight holds a value that is not finite"):
        Original.read(path).write(tmp_path / "out")


def test_without_the_package_gguf_it_is_named(
    vlm: Vlm, llama: Path, adapter: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    code, _, said = vlm("merge", adapter, "--base", llama, "--dequantise", "--out", tmp_path / "out")
    assert code == 2 and 'pip install "ruvlm[models]"' in said and said.count("\n") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1536, 1024), (7, 33), (64, 64)])
def test_nf4_is_what_bitsandbytes_makes_of_a_weight(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    # some blocks are much larger, some are empty
    weight = (torch.randn(shape) ** 3 * torch.rand(shape[0], 1)).to(dtype)
    weight[0] = 0
    functional = bitsandbytes.functional
    # on the edges between two codes it shows how the last block was scaled, which may not be full
    table = functional.get_4bit_type("nf4", device="cpu")
    largest = torch.tensor([0.9017173051834106])
    weight.view(-1)[-39:] = 0
    weight.view(-1)[-16:] = torch.cat([largest, largest * (table[:-1] + table[1:]) / 2]).to(dtype)
    state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    save_file({"w": weight}, tmp_path / SINGLE)
    change, found = Nf4(WeightFile.read(tmp_path / SINGLE).tensors[0]), []
    for first in range(0, shape[0], 5):
        rows = weight[first : first + 5].float()
        change.apply(rows, first)
        found.append(rows)
    assert torch.equal(torch.cat(found), functional.dequantize_4bit(*state).float())


def test_what_was_trained_over_nf4_is_merged_as_that(vlm: Vlm, plain: Path, adapter: Path, tmp_path: Path) -> None:
    wanted = write_four_bit(plain, tmp_path / "four", **DOUBLE_NF4)
    out = tmp_path / "out"
    assert vlm("merge", adapter, "--base", plain, "--out", out, "--as-nf4")[0] == 0
    base = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    base.load_state_dict(wanted)
    exact = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    one_rounding(AutoModelForCausalLM.from_pretrained(out).state_dict(), exact, torch.bfloat16)
    assert read_json(out / "merge.json")["options"] == {"as_nf4": True}
    # the plain merge is another model
    code, _, said = vlm("merge", adapter, "--base", plain, "--verify-only", out)
    assert code == 1 and "is off by" in said
    assert vlm("merge", adapter, "--base", plain, "--as-nf4", "--verify-only", out)[0] == 0


def test_a_llava_has_its_language_model_in_nf4(tmp_path: Path) -> None:
    quantised = quantise(load_model(KEPT, "float32", packed=False))
    wanted = {
        f"{name}.weight" for name, module in quantised.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)
    }
    layout = Layout.read(KEPT)
    source = AsNf4(layout, Edits(layout, Adapter(tmp_path, {}, {})))
    found = {name for name, stored in layout.tensors.items() if source.shape(stored) is not None}
    assert found == wanted and found
