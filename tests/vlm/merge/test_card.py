"""The model card: what a hub reads of it, scores with their intervals, and other people's text that stays text."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from shards.errors import BadInput
from shards.files import write_json
from shards.info import DATASET_FILE, read_info
from vlm.merge.card import Card, escaped

HOSTILE = "a\n---\n- [x](javascript:1) ![i](http://h/t.png) <script>1</script> | `$(id)` @me: \"'&\x1b[2J"


def result(folder: Path, data: Path, **fields: Any) -> None:
    folder.mkdir(parents=True)
    info = read_info(data)
    told = {
        "task": "vqa", "name": folder.name, "split": "test", "lang": "ru", "protocol": "direct", "model": "adapter",
        "n": 12, "score": 0.75, "scorer": "exact-match", "prompt": "{q}", "generation": {},
        "interval": {"low": 0.5, "high": 0.875, "level": 0.95, "resamples": 1000, "images": 9},
        "dataset": {"path": str(data), "name": info.name, "digest": "0"},
    }  # fmt: skip
    write_json(folder / "result.json", {**told, **fields})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    write_json(folder / "assembly.json", {"language": "me/saiga", "vision": "openai/clip", "tiles": 4})
    write_json(folder / "config.json", {"model_type": "llava"})
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    return folder


@pytest.fixture
def run(russian: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    result(folder / "eval" / "test", russian)
    result(folder / "eval" / "base", russian, model="base", score=0.25, interval=None)
    result(folder / "eval" / "hidden", russian, score=None)
    recipe = {
        "name": "My run",
        "data": {"train": str(russian)},
        "adapter": {"method": "lora", "r": 4, "alpha": None},
        "seed": 3,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def adapter(folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 4, "use_dora": False, **fields})
    return folder


def test_a_hub_reads_bases_data_and_scores_with_their_intervals(
    base: Path, run: Path, russian: Path, tmp_path: Path
) -> None:
    text = Card.of(base, run, [adapter(tmp_path / "adapter")], proof="logits agree to 1e-6").text()
    card, info = ModelCard(text), read_info(russian)
    assert card.data.base_model == ["me/saiga", "openai/clip"] and card.data.license == "apache-2.0"
    assert card.data.language == ["ru"] and card.data.datasets == [info.name]
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
    (score,) = card.data.eval_results
    assert (score.metric_type, score.metric_value, score.dataset_name) == ("exact-match", 0.75, info.name)
    assert score.metric_name == "exact-match (95% interval 0.5000 to 0.8750)"
    assert score.metric_args == {"interval": {"level": 0.95, "low": 0.5, "high": 0.875}}
    for said in (
        "| test | vqa | ru | adapter | exact-match | 0.7500 | 0.5000 to 0.8750 (95%, 9 images) | 12 |",
        "| base | vqa | ru | base | exact-match | 0.2500 |  | 12 |",
        "Adapter: LORA, r 4.",
        "      r: 4",
        "logits agree to 1e-6",
        "up to 4 tiles",
    ):
        assert said in text, said
    assert escaped(info.licence) in text and escaped(info.source) in text
    assert "alpha" not in text and str(tmp_path) not in text and "hidden" not in text


def test_a_protocol_is_told(base: Path, run: Path, russian: Path) -> None:
    shutil.rmtree(run / "eval" / "test")
    result(run / "eval" / "test", russian, protocol="backtranslate")
    (score,) = ModelCard(Card.of(base, run).text()).data.eval_results
    assert score.metric_name == "exact-match, backtranslate (95% interval 0.5000 to 0.8750)"


def test_without_a_run_it_says_what_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text("Gemma")
    text = Card.of(tmp_path).text()
    data = ModelCard(text).data
    assert data.license == "other" and data.base_model is None and data.eval_results is None
    assert "see LICENSE.txt" in text and "Not measured" in text
    assert (data.pipeline_tag, data.tags) == ("text-generation", ["ruvlm"]) and "photo.jpg" not in text


def test_other_peoples_text_stays_text(base: Path, run: Path, russian: Path, tmp_path: Path) -> None:
    result(run / "eval" / "evil", russian, scorer=HOSTILE, lang=HOSTILE, model="merged", task=HOSTILE, n=HOSTILE)
    write_json(base / "assembly.json", {"language": HOSTILE, "vision": "x/y\n", "tiles": "4"})
    recipe = {"name": HOSTILE, "adapter": {"r": f"    ```\n{HOSTILE}"}, "data": [HOSTILE]}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = Card.of(base, run, [adapter(tmp_path / "adapter", peft_type=HOSTILE)], HOSTILE, HOSTILE, library="peft")
    text = card.text()
    front, body = re.fullmatch(r"---\n(.*?\n)---\n\n(.*)", text, re.S).groups()  # type: ignore[union-attr]
    told = yaml.safe_load(front)
    assert told["model-index"][0]["name"] == HOSTILE and "base_model" not in told and told["license"] == "other"
    assert "\x1b" not in text
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    kinds = {token.type for each in tokens for token in (each, *(each.children or []))}
    assert not {
        kind for kind in kinds if kind.startswith(("html", "link", "image", "code_inline", "em", "fence", "hr"))
    }
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2", "h2", "h2", "h2"]
    lines = body.splitlines()
    # escaped signs aside, a row has as many cells as its head
    rows = [re.sub(r"\\.", "", line) for line in lines if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize(
    "garbage", [b"\xff", b"- 1", b"[" * 10**5, b"name: &a [*a]", b"{", b"a: 2024-02-30", b"data: {mix: 5}"]
)
def test_a_recipe_that_is_none_is_left_out(base: Path, run: Path, garbage: bytes) -> None:
    (run / "recipe.yaml").write_bytes(garbage)
    (base / "README.md").write_bytes(b"---\n" + garbage + b"\n---\n")
    assert "Recipe:" not in Card.of(base, run).text()


def test_a_broken_result_or_set_is_named(base: Path, run: Path, russian: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / DATASET_FILE).write_text("{}")
    (run / "recipe.yaml").write_text(yaml.safe_dump({"data": {"mix": [{"path": str(data)}, 3]}}))
    with pytest.raises(BadInput, match=DATASET_FILE):
        Card.of(base, run)
    (run / "recipe.yaml").unlink()
    (run / "eval" / "test" / "result.json").write_text("[]")
    with pytest.raises(BadInput, match=r"test/result\.json"):
        Card.of(base, run)
