"""A language model out of a tiny GGUF file: its weights, its tokens, and no trace of the file in what is written."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration

from shards.files import sha256_file
from tests.vlm.merge.quantised_models import TOKENS, add_tokens
from tests.vlm.test_families import write_tower
from vlm.model.assemble import Assembly, assemble
from vlm.model.load import load_tokenizer

gguf_py = pytest.importorskip("gguf")
HIDDEN, LAYERS, HEADS, WIDTH = 32, 2, 4, 48


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights over single bytes, in half precision, as llama.cpp names its parts."""
    path, generator = tmp_path_factory.mktemp("gguf") / "tiny.gguf", torch.Generator().manual_seed(0)
    writer = gguf_py.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(TOKENS))
    add_tokens(writer, gguf_py)
    square, up = (HIDDEN, HIDDEN), (WIDTH, HIDDEN)
    block = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square, "ffn_gate": up, "ffn_up": up,
             "ffn_down": (HIDDEN, WIDTH), "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}  # fmt: skip
    shapes = {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in block.items()}
    shapes |= {"token_embd.weight": (len(TOKENS), HIDDEN), "output.weight": (len(TOKENS), HIDDEN)}
    for name, shape in {**shapes, "output_norm.weight": (HIDDEN,)}.items():
        writer.add_tensor(name, (0.2 * torch.randn(shape, generator=generator)).half().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_a_language_model(gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = assemble(write_tower("clip", tmp_path / "tower"), gguf, out, template="saiga", dtype="float32")
    assert made == Assembly.read(out)
    assert (made.language, made.language_digest) == ("tiny.gguf", sha256_file(gguf))
    model, report = LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    alone = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    for name, weight in alone.model.state_dict().items():
        assert torch.equal(model.model.language_model.state_dict()[name][: len(weight)], weight), name
    assert torch.equal(model.lm_head.weight[: len(alone.lm_head.weight)], alone.lm_head.weight)
    ours, theirs = load_tokenizer(out), AutoTokenizer.from_pretrained(**source)
    assert ours.encode("Що це? 猫", add_special_tokens=False) == theirs.encode("Що це? 猫", add_special_tokens=False)
    written = (out / "config.json").read_text()
    assert "quantization_config" not in written and str(gguf.parent) not in written and gguf.name not in written
