"""`vlm judge ragas`: what the metrics are given, what a reply that cannot be read does to their means."""

import json
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.cli import run as vlm
from shards.errors import BadInput
from tests.served import Reply, Script, Served, completion, transformers_serve
from tests.vlm.judge.bench import SOON, write_model
from vlm.eval.judge.config import JudgeConfig
from vlm.eval.judge.held_out import HeldOut
from vlm.eval.judge.ragas_scores import METRICS, Fault, choose
from vlm.eval.judge.verdicts import Judge

ALONE = ["faithfulness", "context_precision", "context_recall"]
_SAID = {"statement": "it is so", "reason": "it says so"}
# what each step of ragas gets, by the name of the form that it asks for
REPLIES: dict[str, dict[str, Any]] = {
    "StatementGeneratorOutput": {"statements": ["it is so", "it is not so"]},
    "NLIStatementOutput": {"statements": [{**_SAID, "verdict": 1}, {**_SAID, "verdict": 0}]},
    "AnswerRelevanceOutput": {"question": "what?", "noncommittal": 0},
    "ClassificationWithReason": {"TP": [_SAID], "FP": [_SAID], "FN": []},
    "ContextPrecisionOutput": {"reason": "it helps", "verdict": 1},
    "ContextRecallOutput": {"classifications": [{**_SAID, "attributed": 1}, {**_SAID, "attributed": 0}]},
}


def judge_model(text: str, _: int) -> Reply:
    """Does what ragas asks for, in words around it as models are; other texts get an embedding, all the same one."""
    if text == "Say 5.":
        return completion("5")
    if form := form_of(text):
        return completion(f"Here it is:\n```json\n{json.dumps(REPLIES[form])}\n```")
    return Reply(body={"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]})


def form_of(text: str) -> str:
    found = re.findall(r'"title": "(\w+)", "type": "object"}Do not', text)
    return str(found[0]) if found else ""


def rows(path: Path, *fields: dict[str, Any]) -> Path:
    whole = {"question": "what?", "answers": ["a cat"], "contexts": ["A cat sits.", "It purrs."], "prediction": "cat"}
    path.write_text("".join(json.dumps({"question_id": n, **whole, **row}) + "\n" for n, row in enumerate(fields)))
    return path


def command(answers: Path, served: Served, *more: str) -> list[str]:
    out = ["--out", str(answers.parent / "out")]
    return ["judge", "ragas", str(answers), *out, f"url={served.url}", "model=m", "retries=2", *more]


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / "judge.json").read_text())["metrics"])


@pytest.mark.parity
def test_all_five_metrics(serve: Callable[[Script], Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ragas")
    hosts: set[object] = set()
    look_up = socket.getaddrinfo

    def noted(host: Any, *rest: Any, **more: Any) -> Any:
        hosts.add(host)
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    served = serve(judge_model)
    answers = rows(tmp_path / "answers.jsonl", {}, {"prediction": "a dog"})
    assert vlm(command(answers, served, "embeddings=e")) == 0
    found = metrics(tmp_path)
    assert {name: (round(each["mean"], 6), each["n"], each["nan"]) for name, each in found.items()} == {
        "faithfulness": (0.5, 2, 0),
        "answer_relevancy": (1.0, 2, 0),
        # F1 of one true and one false positive 2/3, likeness 1
        "answer_correctness": (0.75, 2, 0),
        "context_precision": (1.0, 2, 0),
        "context_recall": (0.5, 2, 0),
    }
    assert found["faithfulness"]["interval"]["images"] == 2
    embedded = [request for request in served.requests if "input" in request]
    assert {request["model"] for request in embedded} == {"e"}
    asked = [request for request in served.requests if "messages" in request]
    # ragas asks three times for the question to an answer: three seeds, or the cache would make one of them
    relevance = [each for each in asked if form_of(each["messages"][0]["content"]) == "AnswerRelevanceOutput"]
    assert sorted(each["seed"] for each in relevance) == [0, 0, 1, 1, 2, 2]
    assert {(each["temperature"], len(each["messages"])) for each in asked} == {(0.01, 1)}
    before = len(served.requests)
    assert vlm(command(answers, served, "embeddings=e")) == 0
    assert len(served.requests) == before and metrics(tmp_path) == found
    # nobody else is told
    assert hosts == {"127.0.0.1"}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (completion("no"), "unparsed"),
        (completion("{'statements': []}"), "unparsed"),
        (completion('{"statements": 5}'), "unparsed"),
        (completion('{"statements": ["it is', "length"), "unparsed"),
        (completion('{"a":' * 100_000), "unparsed"),
        (completion('{"statements": []}'), "undefined"),
        (completion("", "content_filter"), "refused"),
        (Reply(400, {"error": {"message": "no"}}), "refused"),
    ],
)
def test_a_row_without_a_score_is_counted_and_left_out(
    serve: Callable[[Script], Served], tmp_path: Path, reply: Reply, why: str
) -> None:
    pytest.importorskip("ragas")
    served = serve(lambda text, before: reply if '"answer": "dog"' in text else judge_model(text, before))
    answers = rows(tmp_path / "answers.jsonl", {}, {"prediction": "dog"}, {"prediction": "a cat"})
    assert vlm(command(answers, served, "metrics=faithfulness,context_recall")) == 0
    found = metrics(tmp_path)
    each = found["faithfulness"]
    assert (each["mean"], each["n"], each["nan"], each["why"]) == (0.5, 2, 1, {why: 1})
    assert (found["context_recall"]["n"], found["context_recall"]["nan"]) == (3, 0)
    lines = [json.loads(line) for line in (tmp_path / "out" / "ragas.jsonl").read_text().splitlines()]
    assert [line["faithfulness"] for line in lines] == [0.5, None, 0.5]
    assert lines[1]["why"] == {"faithfulness": why}


@pytest.mark.parity
def test_a_fault_of_ours_keeps_its_traceback(
    serve: Callable[[Script], Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ragas")

    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(Judge, "ask", broken)
    with pytest.raises(Fault) as found:
        vlm(command(rows(tmp_path / "answers.jsonl", {}), serve(judge_model), "metrics=faithfulness"))
    assert isinstance(found.value.__cause__, KeyError)


@pytest.mark.parity
def test_an_empty_answer_gains_nothing(serve: Callable[[Script], Served], tmp_path: Path) -> None:
    pytest.importorskip("ragas")
    answers = rows(tmp_path / "answers.jsonl", {}, {"prediction": " "})
    named = "metrics=faithfulness,answer_relevancy,answer_correctness"
    assert vlm(command(answers, serve(judge_model), "embeddings=e", named)) == 0
    found = metrics(tmp_path)
    assert (found["answer_relevancy"]["mean"], found["answer_correctness"]["mean"]) == (0.5, pytest.approx(0.375))
    # nothing is said, so nothing is unfaithful, nor faithful
    assert (found["faithfulness"]["n"], found["faithfulness"]["why"]) == (1, {"undefined": 1})


@pytest.mark.parity
@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (Reply(404, {"error": {"message": "no such route"}}), 2, "404"),
        (Reply(503, {}, SOON), 1, "503"),
        (Reply(body={"data": []}), 1, "no embedding"),
        (Reply(body={"data": [{"embedding": ["x"]}]}), 1, "no embedding"),
        (Reply(body=b'{"data'), 1, "not JSON"),
    ],
)
def test_a_server_without_embeddings_ends_the_run(
    serve: Callable[[Script], Served], tmp_path: Path, fault: Reply, code: int, said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("ragas")
    served = serve(lambda text, before: judge_model(text, before) if form_of(text) else fault)
    answers = rows(tmp_path / "answers.jsonl", {})
    assert vlm(command(answers, served, "embeddings=e", "metrics=answer_relevancy")) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    # without an embedding model the others are there all the same
    assert vlm(command(answers, served)) == 0
    assert list(metrics(tmp_path)) == ALONE


@pytest.mark.parity
def test_a_fault_loses_nothing(serve: Callable[[Script], Served], tmp_path: Path) -> None:
    pytest.importorskip("ragas")
    broken = True

    def script(text: str, before: int) -> Reply:
        return Reply(500, {}, SOON) if broken and '"answer": "dog"' in text else judge_model(text, before)

    served = serve(script)
    answers = rows(tmp_path / "answers.jsonl", {}, {"prediction": "dog"})
    named = ["metrics=faithfulness", "concurrency=1"]
    assert vlm(command(answers, served, *named)) == 1
    broken, before = False, len(served.requests)
    assert vlm(command(answers, served, *named)) == 0
    # the statements of the other answer are new, their verdicts are known
    assert len(served.requests) - before == 1
    assert metrics(tmp_path)["faithfulness"]["n"] == 2


@pytest.mark.parity
def test_a_real_server_whose_model_writes_no_json(
    serve: Callable[[Script], Served], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ragas")
    pytest.importorskip("fastapi")
    write_model(tmp_path / "model")
    answers = rows(tmp_path / "answers.jsonl", {})
    with transformers_serve(tmp_path / "model", tmp_path / "log") as url:
        line = ["judge", "ragas", str(answers), "--out", str(tmp_path / "out"), f"url={url}"]
        line += [f"model={tmp_path / 'model'}", "timeout_seconds=30", "max_new_tokens=8"]
        assert vlm(line) == 1
        assert [(name, each["why"]) for name, each in metrics(tmp_path).items()] == [
            (name, {"unparsed": 1}) for name in ALONE
        ]


def test_ragas_is_optional(
    serve: Callable[[Script], Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in [*(name for name in sys.modules if name.partition(".")[0] == "ragas"), "ragas"]:
        monkeypatch.setitem(sys.modules, name, None)
    served, answers = serve(judge_model), rows(tmp_path / "answers.jsonl", {})
    assert vlm(command(answers, served)) == 2
    err = capsys.readouterr().err
    assert "ragas cannot be imported" in err and "docs/judge.md" in err and err.count("\n") == 1
    assert served.requests == [] and not (tmp_path / "out").exists()


def test_the_judges_key_goes_to_the_judge_alone() -> None:
    whole: dict[str, Any] = {"url": "http://a/v1", "key_env": "A", "embeddings": "e"}
    assert JudgeConfig(**whole).embedder.key_env == "A"
    other = JudgeConfig(**whole, embeddings_url="http://b/v1")
    assert (other.embedder.url, other.embedder.key_env, other.server_options().key_env) == ("http://b/v1", "", "A")
    assert JudgeConfig(**whole, embeddings_url="http://b/v1", embeddings_key_env="B").embedder.key_env == "B"


def row(**fields: Any) -> HeldOut:
    whole: dict[str, Any] = {"question": "q", "references": ("a",), "contexts": ("c",), "answer": "b"}
    return HeldOut("1", "1", **{**whole, **fields})


def test_metrics_that_rows_and_servers_allow() -> None:
    assert choose(JudgeConfig(), [row()]) == ALONE
    assert choose(JudgeConfig(embeddings="e"), [row()]) == list(METRICS)
    assert choose(JudgeConfig(embeddings="e"), [row(contexts=())]) == ["answer_relevancy", "answer_correctness"]
    assert choose(JudgeConfig(embeddings="e"), [row(contexts=(), references=())]) == ["answer_relevancy"]
    assert choose(JudgeConfig(metrics=" context_recall "), [row()]) == ["context_recall"]


@pytest.mark.parametrize(
    ("config", "fields", "said"),
    [
        ({"metrics": "faithfullness"}, {}, "metrics: 'faithfullness' is unknown"),
        ({"metrics": "answer_relevancy"}, {}, "embeddings: answer_relevancy needs an embedding model"),
        ({"metrics": "faithfulness"}, {"contexts": ()}, "2 rows have no contexts, first 1, 1; faithfulness needs it"),
        ({"metrics": "context_recall"}, {"references": ()}, "no reference"),
        ({}, {"question": ""}, "the rows allow none"),
    ],
)
def test_metrics_that_cannot_be_had(config: dict[str, Any], fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        choose(JudgeConfig(**config), [row(**fields)] * 2)
