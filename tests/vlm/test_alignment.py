"""New tokens start where the tokens they translate are."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from shards.dataset import ShardDataset
from vlm.model.adapter import AdapterConfig, trainable
from vlm.model.alignment import align, parallel_texts, start_at_translations
from vlm.model.assemble import Assembly
from vlm.model.load import load_model, load_tokenizer

IDS = st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple)


def test_words_find_their_translations() -> None:
    # a bilingual lexicon that no single sentence gives away: 1 = the, 2 = red, 3 = circle, 4 = blue, 5 = square
    pairs = [((1, 2, 3), (12, 13)), ((1, 4, 3), (14, 13)), ((1, 2, 5), (12, 15)), ((1, 4, 5), (14, 15))]
    aligned = align(pairs, range(10, 20))
    best = {new: max(shares, key=lambda old: shares[old]) for new, shares in aligned.items()}
    assert best == {12: 2, 13: 3, 14: 4, 15: 5}


@given(st.lists(st.tuples(IDS, IDS), max_size=6), st.sets(st.integers(0, 9)))
def test_shares_add_up_to_one(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]], new: set[int]) -> None:
    aligned = align(pairs, new)
    assert aligned.keys() == new & {t for _, target in pairs for t in target}
    assert all(sum(shares.values()) == pytest.approx(1) for shares in aligned.values())


def test_russian_answers_start_at_english_ones(model: Path, english: Path, russian: Path) -> None:
    tokenizer, assembly = load_tokenizer(model), Assembly.read(model)
    adapted = trainable(load_model(model, "float32", packed=True), AdapterConfig(), assembly)
    assert isinstance(adapted, PeftModel)
    texts = parallel_texts(ShardDataset.open(russian))
    assert ("yes", "да") in texts and start_at_translations(adapted, tokenizer, texts, assembly.new_token_ids) > 20
    merged = adapted.merge_and_unload()
    rows = merged.get_input_embeddings().weight
    yes, da = (tokenizer.encode(text, add_special_tokens=False) for text in (" yes", " да"))
    assert len(yes) == len(da) == 1
    torch.testing.assert_close(rows[da[0]], rows[yes[0]])
    torch.testing.assert_close(merged.lm_head.weight[da[0]], rows[yes[0]])
    assert not parallel_texts(ShardDataset.open(english))
