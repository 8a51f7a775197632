"""What can be evaluated: the base, an adapter beside it, what both were merged into, and the same in 4 bits."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor

from launch.recipe import load
from shards.dataset import ShardDataset
from tests.vlm.merge.by_recipe import merge_recipe
from vlm.eval.parts import Part, read_rows
from vlm.eval.run import evaluate
from vlm.model.adapter import AdapterConfig, save_adapter, trainable
from vlm.model.adapters.quantised import quantise
from vlm.model.assemble import Assembly
from vlm.model.load import load_model

LENGTH = 4


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA of random weights, far from where they start."""
    torch.manual_seed(0)
    adapted = trainable(load_model(model, "float32", packed=False), AdapterConfig(r=4), Assembly.read(model))
    weights = {n: p + 0.05 * torch.randn_like(p) for n, p in adapted.named_parameters() if p.requires_grad}
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(adapted, {n: w.detach() for n, w in weights.items()}, folder)
    return folder / "adapter"


def answers(model: Path, data: Path, run: Path, *more: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Answers by question, and result.json."""
    keys = [f"run={run}", f"model.base={model}", f"eval.data={data}", "eval.limit=3", f"eval.max_new_tokens={LENGTH}"]
    evaluate(load("demo", [*keys, *more]), Part(0, 1))
    folder = run / "eval" / "eval"
    found = {row.question_id: row.prediction for row in read_rows(folder / "predictions.jsonl")}
    return found, json.loads((folder / "result.json").read_text())


def test_a_merged_folder_answers_as_its_base_with_the_adapter(
    model: Path, russian: Path, adapter: Path, tmp_path: Path
) -> None:
    of = f"eval.adapter={adapter}"
    merge_recipe(
        load("demo", [f"run={tmp_path}", f"model.base={model}", f"eval.data={russian}", of]), tmp_path / "merged"
    )
    base, made = answers(model, russian, tmp_path / "a")
    assert made["model"] == "base"
    adapted, made = answers(model, russian, tmp_path / "b", of)
    assert made["model"] == "adapter" and adapted != base
    merged, made = answers(tmp_path / "merged", russian, tmp_path / "c")
    assert made["model"] == "merged" and merged == adapted


def test_four_bits_answer_as_peft_does_over_such_a_base(
    model: Path, russian: Path, adapter: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    whole, made = answers(model, russian, tmp_path / "whole", f"eval.adapter={adapter}")
    assert "quantize" not in made["generation"]
    found, made = answers(model, russian, tmp_path / "small", f"eval.adapter={adapter}", "eval.quantize=4bit")
    assert made["generation"]["quantize"] == "4bit" and made["peak_memory_bytes"] > 0
    assert found.keys() == whole.keys() and found != whole
    peft = PeftModel.from_pretrained(quantise(load_model(model, "float32", packed=False)), adapter).eval()
    processor = AutoProcessor.from_pretrained(model)
    dataset = ShardDataset.open(russian)
    for sample in (dataset.read(i) for i in range(3)):
        for question in sample.questions[::4]:
            content = [{"type": "image"}, {"type": "text", "text": question.wording}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            image = Image.open(io.BytesIO(sample.image or b""))
            inputs = processor(images=image, text=text, return_tensors="pt")
            ids = peft.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[0, inputs.input_ids.shape[1] :]
            assert processor.decode(ids, skip_special_tokens=True).strip() == found[question.question_id]
