"""A rank whose row has no image, beside one whose row has: under ZeRO-3 both gather alike and learn the same."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.train import IMAGE_ID, PIXELS, Shape, build_model, documents
from vlm.data.batch import MicroBatch, pack
from vlm.model.attention import PACKED, choose_backend
from vlm.model.packed import PackedLlava

SHAPE = Shape("mistral", 48, 96, 2, 4, 2, 128, 64)
TRAINED = {"projector": ("multi_modal_projector",), "tower": ("vision_tower", "multi_modal_projector", "lm_head")}
STEPS = 2

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["deepspeed", "benchmarks.train"])


def _row(rank: int) -> MicroBatch:
    made, images = documents((70, 90), SHAPE.vocabulary)
    if rank == 0:
        return pack(made, images, PIXELS.size)
    for document in made:
        document.input_ids[document.input_ids == IMAGE_ID] = IMAGE_ID + 1
    return pack(made, [], PIXELS.size)


def _model(which: str) -> tuple[PackedLlava, torch.optim.Optimizer]:
    choose_backend("sdpa", torch.device("cpu"), torch.float32)
    packed = PackedLlava(build_model(SHAPE, PACKED), PIXELS)
    for name, parameter in packed.named_parameters():
        parameter.requires_grad = any(part in name.split(".") for part in TRAINED[which])
    return packed, torch.optim.SGD([p for p in packed.parameters() if p.requires_grad], lr=0.5)


def _rank(rank: int, store: Path, found: Connection) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    import deepspeed

    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    config = {
        "train_batch_size": 2,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    for which in TRAINED:
        packed, optimizer = _model(which)
        engine, *_ = deepspeed.initialize(model=packed, optimizer=optimizer, config=config, dist_init_required=False)
        losses = []
        for _ in range(STEPS):
            loss = engine(_row(rank))
            engine.backward(loss / 100)
            engine.step()
            losses.append(float(loss.detach()))
        with deepspeed.zero.GatheredParameters([p for p in engine.parameters() if p.requires_grad]):
            moved = {n.removeprefix("module."): p.detach().clone() for n, p in engine.named_parameters()}
            found.send((losses, {n: p.numpy() for n, p in moved.items() if p.numel()}))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """Of each training what the ranks found, by rank."""
    store, pipes, started = tmp_path_factory.mktemp("text_only") / "store", [], []
    for rank in range(2):
        ours, theirs = _context.Pipe(duplex=False)
        process = _context.Process(target=_rank, args=(rank, store, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        started.append(process)
    try:
        results: dict[str, list] = {}
        for which in TRAINED:
            for pipe in pipes:
                # ranks that wait for each other wait for ever
                assert pipe.poll(300), f"{which}: a rank hangs"
                results.setdefault(which, []).append(pipe.recv())
        return results
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize("which", TRAINED)
def test_under_zero3_ranks_with_and_without_images_learn_as_one_process_does(
    ranks: dict[str, list], which: str
) -> None:
    packed, optimizer = _model(which)
    before: dict[str, Tensor] = {n: p.detach().clone() for n, p in packed.named_parameters() if p.requires_grad}
    expected: list[list[float]] = [[], []]
    for _ in range(STEPS):
        for rank in range(2):
            loss = packed(_row(rank))
            # DeepSpeed takes the mean over ranks
            (loss / 200).backward()
            expected[rank].append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    for rank, (losses, moved) in enumerate(ranks[which]):
        assert losses == pytest.approx(expected[rank], rel=1e-5)
        for name, parameter in packed.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(torch.from_numpy(moved[name]), parameter.detach(), atol=1e-5, rtol=1e-4)
    modules = {
        part
        for name, old in before.items()
        for part in TRAINED[which]
        if part in name.split(".") and not torch.equal(old, packed.get_parameter(name))
    }
    assert modules == set(TRAINED[which])
