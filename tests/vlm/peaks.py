"""Run: `python -m tests.vlm.peaks '[["adapter.method=lora"], …]'`, measures each recipe's peak of tensor memory.

Real micro-steps through the real engine, and what the estimate says of them. On the CPU the allocator's own events are
added up, on a GPU torch keeps the figure. Prints one JSON object a recipe.
"""

import gc
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from benchmarks.train import PIXELS, Shape, build_model, documents
from vlm.config import Recipe, load_recipe
from vlm.data.batch import pack
from vlm.engine import Engine, deepspeed_config, start_world
from vlm.estimate.activations import build, peak
from vlm.estimate.memory import Zero
from vlm.estimate.work import count_parameters
from vlm.model.adapter import trainable
from vlm.model.assemble import Assembly
from vlm.model.attention import PACKED, choose_backend
from vlm.model.blocks import prepare_blocks
from vlm.model.load import DTYPES
from vlm.model.packed import PackedLlava

ON_GPU = torch.cuda.is_available()
SHAPE = Shape("mistral", 1024, 2816, 8, 8, 2, 8192, None) if ON_GPU else Shape("mistral", 192, 512, 4, 4, 2, 1024, None)
LENGTHS = (1500, 900, 1700) if ON_GPU else (200, 150, 250, 200, 224)
ASSEMBLY = Assembly("", "", "", "", "", 49, [900, 901], 0)


def main(cases: list[list[str]]) -> None:
    for overrides in cases:
        zero = {"stage": 2, "contiguous_gradients": True, "overlap_comm": True, "reduce_bucket_size": 200000}
        stage = next((int(each.partition("=")[2]) for each in overrides if each.startswith("stage=")), 2)
        file = Path(tempfile.mkdtemp()) / "zero.json"
        content = {"zero_optimization": zero | {"stage": stage}, "zero_allow_untested_optimizer": True}
        file.write_text(json.dumps(content))
        given = [each for each in overrides if not each.startswith("stage=")]
        print(json.dumps(measure(load_recipe(Recipe, "demo", [*given, f"engine.deepspeed={file}"]))), flush=True)


def measure(recipe: Recipe) -> dict[str, float]:
    """Bytes measured of a step of two micro-batches, and the estimate's."""
    dtype, others = DTYPES[recipe.model.dtype], _held()
    llava = build_model(SHAPE, PACKED, dtype)
    config = llava.config
    config.pad_token_id = 0
    prepare_blocks(llava, recipe.model.checkpoint_blocks)
    start_world(recipe.engine)
    content = deepspeed_config(recipe.engine, recipe.optim, recipe.model.dtype, 1)
    engine = Engine(PackedLlava(trainable(llava, recipe.adapter, ASSEMBLY), PIXELS), content, recipe.optim)
    choose_backend("auto", engine.device, dtype)
    made, images = documents(LENGTHS, SHAPE.vocabulary)
    batch = pack(made, images, PIXELS.size).to(engine.device)

    def step() -> None:
        for last in (False, True):
            engine.backward(engine.ds(batch), 100, last)
        engine.step()

    step()
    measured = (_on_gpu(step) if ON_GPU else _on_cpu(step)) - others
    meta = build(recipe, config, ASSEMBLY)
    counts, section = count_parameters(meta, config), content["zero_optimization"]
    zero = Zero(section, counts, 1, dtype.itemsize, recipe.adapter.quantises, micro_batches=2)
    own = peak(meta, made, PIXELS, recipe, zero.keeps_inputs)
    memory = zero.memory(own, [(1, replace(own, forward=0)), (2, own)], 2**40)
    return {"measured": measured, **asdict(memory)}


def _held() -> int:
    """Bytes of all tensors."""
    gc.collect()
    if ON_GPU:
        return torch.cuda.memory_allocated()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.device.type == "cpu"]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _on_gpu(step: Callable[[], None]) -> int:
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def _on_cpu(step: Callable[[], None]) -> int:
    before = _held()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = list(profiler.profiler.kineto_results.experimental_event_tree())
    moves = []
    while events:
        event = events.pop()
        events += event.children
        if event.tag == _EventType.Allocation:
            moves.append((event.start_time_ns, event.extra_fields.alloc_size))
    live = top = before
    for _, size in sorted(moves, key=lambda move: move[0]):
        live += size
        top = max(top, live)
    return top


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
