"""Files written again: the same bytes where nothing changes, whatever the blocks."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import BadInput
from tests.vlm.merge.models import base, edits, lora, train
from vlm.merge import stream
from vlm.merge.changes import Added, Change
from vlm.merge.layout import DTYPES, SINGLE, Stored, WeightFile, header_bytes
from vlm.merge.stream import rewrite

Tensors = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass
class Changes:
    """A source of given changes by name, of the shapes they bring."""

    each: dict[str, Change] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def shape(self, stored: Stored) -> tuple[int, ...] | None:
        return self.shapes.get(stored.name, stored.shape) if stored.name in self.each else None

    def change(self, stored: Stored) -> Change:
        return self.each[stored.name]


_tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=11),
    st.tuples(st.sampled_from(sorted(DTYPES.values(), key=str)), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    max_size=6,
)  # fmt: skip
_metadata = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.just("pt"), max_size=2)


def _file(path: Path, tensors: Tensors, metadata: dict[str, str], seed: int = 0) -> WeightFile:
    size = sum(int(np.prod(shape)) * dtype.itemsize for dtype, shape in tensors.values())
    path.write_bytes(header_bytes(tensors, metadata) + np.random.default_rng(seed).bytes(size))
    return WeightFile.read(path)


@settings(max_examples=100, deadline=None)
@given(_tensors, _metadata, st.integers(1, 40))
def test_what_nothing_changes_stays_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, tensors: Tensors, metadata: dict[str, str], block: int
) -> None:
    folder = tmp_path_factory.mktemp("file")
    file = _file(folder / SINGLE, tensors, metadata)
    assert {t.name: (t.dtype, t.shape) for t in file.tensors} == tensors and file.metadata == metadata
    heard: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_BLOCK_BYTES", block)
        copied = rewrite(file, folder / "out", Changes(), None, heard.append)
    data = (folder / SINGLE).read_bytes()
    assert (folder / "out").read_bytes() == data
    assert copied.read == copied.written == hashlib.sha256(data).hexdigest()
    assert copied.bytes == len(data) and sum(heard) == len(data) - file.start


@settings(max_examples=12, deadline=None)
@given(block=st.integers(1, 5000), dtype=st.sampled_from([None, torch.float32, torch.float16, torch.bfloat16]))
def test_any_block_gives_the_same_bytes(
    adapted: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, block: int, dtype: torch.dtype | None
) -> None:
    source = edits(*adapted)
    folder = tmp_path_factory.mktemp("blocks")
    (file,) = source.layout.files
    rewrite(file, folder / "whole", source, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_BLOCK_BYTES", block)
        rewrite(file, folder / "parts", source, dtype)
    assert (folder / "parts").read_bytes() == (folder / "whole").read_bytes()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and an adapter that changes it in every way there is."""
    folder = tmp_path_factory.mktemp("adapted")
    model = base(folder / "base")
    config = lora(
        use_dora=True, bias="all", target_modules=["q_proj", "v_proj"], modules_to_save=["norm", "lm_head"],
        trainable_token_indices=[3, 70],
    )  # fmt: skip
    return model, train(model, config, folder / "adapter")


def test_new_rows_are_written_after_the_bases(tmp_path: Path) -> None:
    file = _file(tmp_path / SINGLE, {"e": (torch.float32, (3, 2)), "z": (torch.int64, (2,))}, {})
    changes = Changes({"e": Added(torch.arange(7.0).unsqueeze(1))}, {"e": (7, 2)})
    rewrite(file, tmp_path / "out", changes, torch.float32)
    out = WeightFile.read(tmp_path / "out")
    grown, kept = (tensor.read() for tensor in out.tensors)
    before = file.tensors[0].read()
    wanted = torch.cat([before, torch.zeros(4, 2)]) + torch.arange(7.0).unsqueeze(1)
    assert torch.equal(grown, wanted) and torch.equal(kept, file.tensors[1].read())


def test_what_goes_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / SINGLE
    values = torch.tensor([1.0, 70000.0, float("inf")], dtype=torch.bfloat16)
    path.write_bytes(header_bytes({"wide": (torch.bfloat16, (3,))}, {}) + values.view(torch.uint8).numpy().tobytes())
    with pytest.raises(BadInput, match="wide goes beyond float16; write bfloat16 or float32"):
        rewrite(WeightFile.read(path), tmp_path / "out", Changes(), torch.float16)
    path.write_bytes(path.read_bytes().replace(values[1:2].view(torch.uint8).numpy().tobytes(), b"\0\0"))
    rewrite(WeightFile.read(path), tmp_path / "out", Changes(), torch.float16)
    assert WeightFile.read(tmp_path / "out").tensors[0].read().tolist() == [1.0, 0.0, float("inf")]


@pytest.mark.parametrize("cut", [lambda size: size - 1, lambda size: size // 2])
def test_a_file_that_shrinks_meanwhile_is_told(cut: Callable[[int], int], tmp_path: Path) -> None:
    file = _file(tmp_path / SINGLE, {"a": (torch.float32, (50,)), "b": (torch.float32, (50,))}, {})
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[: cut((tmp_path / SINGLE).stat().st_size)])
    with pytest.raises(BadInput, match="changed while it was read"):
        rewrite(file, tmp_path / "out", Changes(), None)
