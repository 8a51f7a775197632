"""Rows on disk, held against a dict."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.readers.spool import Spool

KEYS = st.sampled_from(["", "a", "A", "b", "1", "01", "a\0", "ключ", "\ud800"]) | st.text(max_size=3)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))
ROWS = st.lists(st.tuples(KEYS, JSON), max_size=30)


@given(ROWS, st.lists(KEYS, max_size=5))
@settings(max_examples=80, deadline=None)
def test_groups_and_look_ups_are_those_of_a_dict(rows: list[tuple[str, Any]], popped: list[str]) -> None:
    expected: dict[str, list[Any]] = {}
    with Spool() as spool:
        for key, value in rows:
            spool.add(key, value)
            expected.setdefault(key, []).append(value)
        assert list(spool.groups()) == list(expected.items())
        for key in popped:
            assert spool.get(key) == expected.get(key, [])
            assert spool.pop(key) == expected.pop(key, [])
        assert list(spool.groups()) == list(expected.items())


def test_a_spool_lies_in_the_temporary_folder_and_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="stop"), Spool() as spool:
        spool.add("key", "value")
        assert list(tmp_path.rglob("*.sqlite"))
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())
