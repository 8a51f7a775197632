"""The packed step in every family, with every option of the blocks, and under ZeRO-3."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.module import Module

from benchmarks.train import PIXELS, Shape, build_model, documents, exactness, ours, with_lora
from shards.errors import BadInput
from vlm.data.batch import MicroBatch, pack
from vlm.model.attention import PACKED, choose_backend
from vlm.model.blocks import language_blocks, prepare_blocks
from vlm.model.packed import PackedLlava

LENGTHS = (70, 200, 131, 90)
SMALL = Shape("mistral", 96, 192, 4, 6, 2, 512, 64)


def _batch(shape: Shape = SMALL) -> MicroBatch:
    made, images = documents(LENGTHS, shape.vocabulary)
    return pack(made, images, PIXELS.size)


def test_every_family_computes_the_same_packed_and_one_by_one() -> None:
    choose_backend("sdpa", torch.device("cpu"), torch.float32)
    for figure in exactness():
        goal = float(figure.goal.removeprefix("below "))
        assert figure.value <= goal, figure


def test_gemma_layers_keep_a_window_of_their_own() -> None:
    shape = Shape("gemma3_text", 96, 192, 6, 6, 2, 512, 64)
    model = build_model(shape, PACKED).eval()
    windows = [block.self_attn.sliding_window for block in language_blocks(model)]
    assert windows == [64, 64, 64, 64, 64, None]
    batch = _batch(shape)
    with torch.inference_mode():
        before = PackedLlava(model, PIXELS).hidden(batch)
        for block in language_blocks(model):
            block.self_attn.sliding_window = 64
        after = PackedLlava(model, PIXELS).hidden(batch)
    assert not torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("cached", [False, True])
def test_the_traps_that_let_samples_see_each_other_in_transformers_do_not_open_here(cached: bool) -> None:
    batch, ids = _batch(), _batch().input_ids.clone()
    ids[100:150] = 7  # of the second sample; the third starts at 270
    trap = {"use_cache": True} if cached else {"attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    plain, flat = (build_model(SMALL, name).eval().model.language_model for name in ("sdpa", PACKED))
    # a window that spans the row, and no images: only what keeps samples apart is looked at
    plain.config.sliding_window = flat.config.sliding_window = None
    with torch.inference_mode():
        leaking = [
            plain(input_ids=i[None], position_ids=batch.position_ids[None], **trap).last_hidden_state[0]
            for i in (batch.input_ids, ids)
        ]
        assert not torch.equal(leaking[0][270:], leaking[1][270:])
        with pytest.raises(TypeError, match="layout"):
            flat(input_ids=ids[None], position_ids=batch.position_ids[None], **trap)
        kept = [
            flat(input_ids=i[None], position_ids=batch.position_ids[None], layout=batch.layout, **trap)
            for i in (batch.input_ids, ids)
        ]
        assert torch.equal(kept[0].last_hidden_state[0][270:], kept[1].last_hidden_state[0][270:])
        if cached:
            with pytest.raises(ValueError, match="without a cache"):
                flat(input_ids=ids[None], layout=batch.layout, past_key_values=kept[0].past_key_values)


def _step(batch: MicroBatch, layers: int = 4, **options: int) -> tuple[float, list[torch.Tensor], list[int]]:
    # as from_pretrained gives it
    llava = build_model(replace(SMALL, layers=layers), PACKED).eval()
    prepare_blocks(llava, **options)  # type: ignore[arg-type]
    model = with_lora(llava)
    calls = [0] * layers
    for i, block in enumerate(language_blocks(llava)):
        block.mlp.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    loss = ours(model, batch)()
    loss.backward()
    return float(loss.detach()), [p.grad for p in model.parameters() if p.grad is not None], calls


@pytest.mark.parametrize(("every", "expected"), [(1, [2, 2, 2, 2]), (2, [2, 1, 2, 1]), (3, [2, 1, 1, 2])])
def test_checkpointed_blocks_are_computed_twice_and_change_no_bit(every: int, expected: list[int]) -> None:
    batch = _batch()
    loss, gradients, calls = _step(batch)
    assert calls == [1] * 4
    again, found, calls = _step(batch, checkpoint_blocks=every)
    assert calls == expected and again == loss and len(found) == len(gradients) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))


def test_compiled_blocks_compute_the_same_checkpointed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    # what is tested is what dynamo makes of a block: generating code for it takes a compiler and a minute
    def compile_eagerly(block: nn.Module, **options: bool) -> None:
        compiled.append(block)
        block._compiled_call_impl = torch.compile(block._call_impl, backend="eager", **options)

    monkeypatch.setattr(Module, "compile", compile_eagerly)
    batch = _batch()
    loss, gradients, _ = _step(batch, 2)
    again, found, _ = _step(batch, 2, compile_blocks=True, checkpoint_blocks=2)
    assert len(compiled) == 2 and abs(again - loss) < 1e-6
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(BadInput, match="is below 0"):
        prepare_blocks(build_model(SMALL, PACKED), checkpoint_blocks=-1)
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="need a CUDA GPU"):
            prepare_blocks(build_model(SMALL, PACKED), liger=True)


RANK = """
import json, os, sys, torch, deepspeed
import torch.distributed as dist
from benchmarks.train import PIXELS, build_model
from tests.vlm.test_packed import SMALL, _batch
from vlm.data.documents import IGNORE
from vlm.model.attention import PACKED
from vlm.model.blocks import prepare_blocks
from vlm.model.packed import PackedLlava

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
llava = build_model(SMALL, PACKED)
prepare_blocks(llava, checkpoint_blocks=int(sys.argv[3]))
packed = PackedLlava(llava, PIXELS)
# many chunks on the one rank and none at all on the other
packed.loss.chunk = 2
batch = _batch()
if dist.get_rank():
    batch.labels.fill_(IGNORE)
optimizer = torch.optim.SGD(packed.parameters(), lr=0.1)
config = {
    "train_batch_size": 2,
    # DeepSpeed clips at 1 by default
    "gradient_clipping": 0.0,
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
engine, *_ = deepspeed.initialize(model=packed, optimizer=optimizer, config=config, dist_init_required=False)
losses = []
for _ in range(3):
    loss = engine(batch)
    engine.backward(loss * 2 / 100)
    engine.step()
    losses.append(float(loss.detach()))
print(json.dumps(losses))
"""


def test_under_zero3_a_rank_without_a_label_gathers_the_trained_head_as_often(tmp_path: Path) -> None:
    packed = PackedLlava(build_model(SMALL, PACKED), PIXELS).train()
    optimizer, batch, expected = torch.optim.SGD(packed.parameters(), lr=0.1), _batch(), []
    for _ in range(3):
        loss = packed(batch)
        (loss / 100).backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    environment = {
        **os.environ,
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.getcwd(),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "store"), str(rank), "2"],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = [json.loads(rank.communicate(timeout=600)[0].splitlines()[-1]) for rank in ranks]
    assert found[1] == [0.0] * 3 and found[0] == pytest.approx(expected, rel=1e-5)
    assert expected[2] < expected[0]
