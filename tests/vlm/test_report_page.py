"""The report's page: hostile texts and images, and how it looks in a browser."""

import base64
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.build import build
from shards.dataset import ShardDataset
from shards.files import sha256_file
from shards.images import check_image
from shards.readers import READERS, Draft, Reader, ReaderOptions
from shards.sample import ImagePart, Message, Question, Sample, Text
from tests.launch.chromium import Browser
from tests.vlm.reported import GOLD, Page, four_results, of, row, step, write_eval, write_events
from vlm.report import write_report
from vlm.report.gallery import CARDS

CHROMIUM = shutil.which("chromium")
HOSTILE = (
    '</script><script>alert(1)</script><img src="https://evil.example/x.png" onerror="alert(2)">'
    " \ud800\x1b[31m{{ 7*7 }}"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> ShardDataset:
    """Eight easy-VQA images with their questions."""
    build(READERS["easy-vqa"], ReaderOptions(split="test", limit=8), tmp_path / "data")
    return ShardDataset.open(tmp_path / "data")


def wrong_rows(dataset: ShardDataset) -> list[dict[str, Any]]:
    """Every question of the dataset, answered wrongly."""
    asked = [(sample.key, q) for sample in dataset for q in sample.questions]
    return [
        row(i, "purple", q.answers[0], q.type, key) | {"question_id": q.question_id} for i, (key, q) in enumerate(asked)
    ]


def test_page_is_self_contained_and_named(run: Path, dataset: ShardDataset) -> None:
    write_eval(run, "a", wrong_rows(dataset), **of(dataset))
    write_events(run, [step(1), step(2)])
    write_report(run)
    page = Page(run)
    for tag, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    assert "url(" not in (run / "report.html").read_text("utf-8")
    assert page.all("html")[0]["lang"] == "en" and page.all("title")
    assert len(page.all("caption")) == len(page.all("table")) > 0
    images = page.all("img")
    assert len(images) == CARDS
    assert all(image["alt"] and image["loading"] == "lazy" for image in images)
    sizes = {check_image(base64.b64decode((image["src"] or "").split(",")[1])) for image in images}
    assert sizes == {("png", int(images[0]["width"] or 0), int(images[0]["height"] or 0))}


def test_hostile_texts_are_inert_everywhere(run: Path, dataset: ShardDataset) -> None:
    rows = [r | {"question": HOSTILE, "prediction": HOSTILE, "type": HOSTILE} for r in wrong_rows(dataset)]
    write_eval(run, "a", rows, lang=HOSTILE, prompt=HOSTILE, **of(dataset))
    flips = {"reference": HOSTILE, "n": 1, "flips": 1, "rate": 1, "settings": {}}
    (run / "eval" / "a" / "flips.json").write_text(json.dumps(flips))
    (run / "eval" / "a" / "settings.json").write_text("{}")
    write_eval(run, "scores-only", None, task=HOSTILE, scorer=HOSTILE, by_type={HOSTILE: {"n": 1, "score": 1}})
    hostile = {"versions": {HOSTILE: HOSTILE}, "device": HOSTILE, "host": HOSTILE, "command": [HOSTILE]}
    (run / "run.json").write_text(json.dumps(hostile))
    (run / "recipe.yaml").write_text(f"name: {json.dumps(HOSTILE.replace(chr(0xD800), ''))}\n")
    write_events(
        run, [{"event": "start", "attention": HOSTILE, "steps": HOSTILE}, step(1), step(2) | {"loss": HOSTILE}]
    )
    for name in ("new", "stale"):
        trial = {"setting": HOSTILE, "n": 1, "before": 0, "after": 1, "gain": 1, "interval": None, "fixed": 1}
        digest = sha256_file(run / "eval" / "a" / "predictions.jsonl") if name == "new" else ""
        trial |= {"broken": 0, "p_value": 1, "answers": digest}
        (run / "eval" / "a" / "try" / name).mkdir(parents=True)
        (run / "eval" / "a" / "try" / name / "trial.json").write_text(json.dumps(trial))
    paths = write_report(run)
    page = Page(run)
    assert len(page.scripts) == 1 and "alert" not in page.scripts[0]
    assert HOSTILE.split(" \ud800")[0] in page.text
    assert {tag for tag, attrs in page.tags if any(name.startswith("on") for name in attrs)} == set()
    assert all(image["src"] and image["src"].startswith("data:image/png") for image in page.all("img"))
    for path in (paths.project_report, paths.page):
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", path.read_text("utf-8"))
    assert max(map(len, paths.project_report.read_text("utf-8").splitlines())) <= 80


def test_the_policy_admits_our_script_alone(run: Path) -> None:
    write_eval(run, "a", GOLD)
    write_report(run)
    page = Page(run)
    policy = next(meta["content"] or "" for meta in page.all("meta") if "http-equiv" in meta)
    digest = hashlib.sha256(page.scripts[0].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy


def test_gallery_is_dealt_over_the_types(run: Path, dataset: ShardDataset) -> None:
    rows = wrong_rows(dataset)
    rows = [*rows[:-4], *(each | {"type": "rare"} for each in rows[-4:])]
    assert len(rows) > CARDS
    write_eval(run, "a", rows, **of(dataset))
    write_report(run)
    page = Page(run)
    assert len(page.all("article")) == CARDS
    assert f"Showing {CARDS} of {len(rows)} wrong answers" in " ".join(page.text.split())
    html = (run / "report.html").read_text("utf-8")
    rare = html[html.index("<h3><bdi>rare</bdi></h3>", html.index('class="gallery"')) :].split("cards-of-type")[0]
    assert rare.count("<article") == 4


def noise(size: int) -> bytes:
    buffer = BytesIO()
    Image.frombytes("RGB", (size, size), random.Random(0).randbytes(3 * size * size)).save(buffer, "PNG")
    return buffer.getvalue()


def test_large_and_broken_images_are_left_out(run: Path, tmp_path: Path) -> None:
    def sample(key: str, image: bytes) -> Sample:
        messages = (Message("user", (ImagePart(), Text("what?"))), Message("assistant", (Text("red"),)))
        return Sample(key, key, "test", "en", messages, (Question(key, "what?", ("red",)),), image, "png")

    samples = [sample("large", noise(310)), *(sample(key, noise(20)) for key in ("broken", "good", "moved"))]
    drafts = [Draft(sample.key, partial(replace, sample)) for sample in samples]
    build(
        Reader("list", "test", "CC0", ("en",), lambda _: iter(drafts), "nothing"),
        ReaderOptions(),
        tmp_path / "own",
        "own",
    )
    dataset = ShardDataset.open(tmp_path / "own")
    offset, size = dataset.entries[1].members["png"]
    with open(tmp_path / "own" / "own-000000.tar", "r+b") as handle:
        handle.seek(offset)
        handle.write(b"<svg onload='alert(1)'>".ljust(size))
    rows = [row(i, "blue", "red", key=s.key) | {"question_id": s.key} for i, s in enumerate(samples)]
    rows[3]["key"] = "unknown"
    write_eval(run, "a", rows, **of(dataset))
    write_report(run)
    page = Page(run)
    assert [image["alt"] for image in page.all("img")] == ["Image good"]
    large = f"image of {len(samples[0].image or b'') // 1024} KB left out"
    for reason in (large, "cannot be read", "not in the dataset"):
        assert reason in page.text


@pytest.mark.parametrize("change", ["path", "digest"])
def test_a_dataset_that_is_gone_or_changed_gives_no_images(run: Path, dataset: ShardDataset, change: str) -> None:
    stated = of(dataset)["dataset"] | {change: "0" * 64}
    write_eval(run, "a", wrong_rows(dataset), dataset=stated)
    write_report(run)
    page = Page(run)
    assert not page.all("img") and "dataset gone or changed" in page.text


def test_the_same_inputs_give_the_same_bytes(run: Path, dataset: ShardDataset) -> None:
    four_results(run)
    write_eval(run, "shards", wrong_rows(dataset), **of(dataset))
    write_events(run, [step(1), step(2)])
    paths = write_report(run)
    files = (paths.benchmark_results, paths.error_analysis, paths.project_report, paths.page)
    before = [path.read_bytes() for path in files]
    # another process: other hash seeds, and nothing that this one has loaded
    command = "import pathlib, sys, vlm.report as r; r.write_report(pathlib.Path(sys.argv[1])); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", command, str(run)], capture_output=True, text=True, check=True)
    assert "vlm.report.page" in done.stdout.split() and "torch" not in done.stdout.split()
    assert [path.read_bytes() for path in files] == before


# in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium missing: apt-get install chromium")
    folder = tmp_path_factory.mktemp("chromium")
    found = Browser(CHROMIUM, folder)
    # the first file is opened by a process of its own, which may be late with its complaints
    (folder / "empty.html").write_text("<!DOCTYPE html>")
    found.open((folder / "empty.html").as_uri())
    yield found
    found.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_desktop_and_a_phone(run: Path, dataset: ShardDataset, browser: Browser, width: int) -> None:
    four_results(run)
    rows = [r | {"question": r["question"] + "w" * 200} for r in wrong_rows(dataset)]
    rows = [r | {"prediction": r["answers"][0], "correct": True} if i % 4 == 0 else r for i, r in enumerate(rows)]
    write_eval(run, "ru-" + "long" * 20, rows, task="gqa-ru", scorer="official", **of(dataset))
    write_events(run, [step(i, 4 / i) for i in range(1, 40)])
    write_report(run)
    browser.complaints.clear()
    browser.resize(width)
    browser.open((run / "report.html").as_uri())
    # what is folded may be wide too
    browser.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.value("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    beyond = "[...document.querySelectorAll('section *')].filter((each) => !each.closest('.scroll') && "
    beyond += "each.getBoundingClientRect().right > innerWidth).map((each) => each.outerHTML.slice(0, 200))"
    assert browser.value(beyond) == []
    for shown in (".results .span", ".causes .bar", ".matrix .hit", ".chart path", ".references .num b", ".advice li"):
        size = f"(({{ width, height }}) => [width, height])(document.querySelector('{shown}').getBoundingClientRect())"
        assert max(browser.value(size)) > 0, shown
    assert "40.0 – 80.0" in browser.value("document.querySelector('#results').innerText")
    browser.value("document.querySelector('.card img').scrollIntoView()")
    browser.until("document.querySelector('.card img').naturalWidth === 64")
    assert browser.complaints == []
