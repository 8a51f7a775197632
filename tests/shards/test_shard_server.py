"""The engine `server` against a small scripted HTTP server and against a real `transformers serve`."""

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.chat import RateLimit
from shards.errors import BadInput, ServerFault
from shards.translate.config import TranslateConfig
from shards.translate.fewshot import FewShot
from shards.translate.plan import Plan
from shards.translate.server import ServerEngine, make_server
from shards.translate.translator import translate_texts
from tests.served import KEY, Reply, Script, Served, completion, transformers_serve

pytest.importorskip("openai")


def engine(url: str, **changes: Any) -> ServerEngine:
    settings: dict[str, Any] = {"key_env": "THE_KEY", "model": "m", "retries": 2, "timeout_seconds": 5.0, **changes}
    return make_server(TranslateConfig(engine="server", url=url, **settings))


def upper(text: str, _: int) -> Reply:
    return completion(text.upper())


def test_translations_keep_their_order_whatever_order_replies_come_in(serve: Callable[[Script], Served]) -> None:
    last = threading.Event()

    def script(text: str, _: int) -> Reply:
        if text == "d":
            last.set()
        return Reply(body=upper(text, 0).body, hold=None if text == "d" else last)

    served = serve(script)
    assert engine(served.url, concurrency=4).translate(["a", "b", "c", "d"]) == ["A", "B", "C", "D"]
    request = served.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0, 256)
    assert request["messages"][:-1] == FewShot.load("", "en", "ru").messages("")[:-1]
    assert served.keys == {f"Bearer {KEY}"}


def test_no_more_requests_at_a_time_than_allowed(serve: Callable[[Script], Served]) -> None:
    lock, at_once, most = threading.Lock(), 0, 0
    both = threading.Barrier(2, timeout=10)

    def script(text: str, _: int) -> Reply:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        both.wait()  # two do come at a time
        with lock:
            at_once -= 1
        return upper(text, 0)

    texts = [f"t{i}" for i in range(12)]
    assert engine(serve(script).url, concurrency=2).translate(texts) == [text.upper() for text in texts]
    assert most == 2


@pytest.mark.parametrize(
    ("reply", "translation"),
    [
        (completion("кот\nили кошка"), "кот"),
        (completion("«кот»"), "кот"),
        (completion(""), None),
        (completion(None), None),
        (completion("кот и ещё", "length"), None),
        (completion("кот\nи ещё", "length"), "кот"),
        (completion("к", "content_filter"), None),
        (Reply(200, {"choices": [{"message": {"content": None, "refusal": "I cannot."}}]}), None),
        (completion("кот", ""), "кот"),
        (completion("<think>\nA cat is\nкот.\n</think>\n\nкот"), "кот"),
        (completion("<think>A cat is", "length"), None),
        (Reply(400, {"error": {"code": "content_filter", "message": "no"}}), None),
        (Reply(400, {"error": {"code": 400, "message": "This model's maximum context length is 512 tokens"}}), None),
        (Reply(413, b"<html>"), None),
        (Reply(200, {"choices": []}), None),
    ],
)
def test_what_of_a_reply_is_the_translation(
    serve: Callable[[Script], Served], reply: Reply, translation: str | None
) -> None:
    served = serve(lambda text, _: reply if text == "a cat" else completion("да"))
    real = engine(served.url)
    assert [real.translate(["a cat"]) for _ in range(2)] == [[translation]] * 2
    # a text is refused for its own sake if another one is not, which is asked once
    refused = reply.status >= 400 or reply.body == {"choices": []}
    assert len(served.requests) - served.count("a cat") == refused


SOON = {"retry-after-ms": "1"}


@pytest.mark.parametrize(
    "failure", [Reply(429, {}, SOON), Reply(500, b"<html>", SOON), Reply(503, None, SOON), Reply(408, {}, SOON)]
)
def test_passing_failures_are_retried(serve: Callable[[Script], Served], failure: Reply) -> None:
    served = serve(lambda text, before: failure if before < 2 else upper(text, 0))
    assert engine(served.url).translate(["a", "b"]) == ["A", "B"]
    assert (served.count("a"), served.count("b")) == (3, 3)


@pytest.mark.parametrize("lost", [Reply(0), Reply(200, b'{"choices": [{"mess', {"content-length": "99"})])
def test_lost_connections_are_retried(
    serve: Callable[[Script], Served], monkeypatch: pytest.MonkeyPatch, lost: Reply
) -> None:
    """Before the reply, and in the middle of it."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    served = serve(lambda text, before: lost if before < 1 else upper(text, 0))
    assert engine(served.url).translate(["a"]) == ["A"]
    assert served.count("a") == 2


def test_retry_after_is_honoured(serve: Callable[[Script], Served], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("openai._base_client.time.sleep", waits.append)
    served = serve(lambda text, before: Reply(429, {}, {"retry-after": "7"}) if before < 1 else upper(text, 0))
    assert engine(served.url).translate(["a"]) == ["A"]
    assert waits == [7.0]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(429, {"error": {"message": "slow down"}}, SOON), "429: .*slow down"),
        (Reply(502, b"<html>bad gateway</html>", {**SOON, "content-type": "text/html"}), "502"),
        (Reply(200, b"<html>log in</html>", {"content-type": "text/html"}), "no chat completion"),
        (Reply(200, b'{"choices": [{"mess'), "not JSON"),
        (Reply(200, b'{"choices": "\xff"}'), "not JSON"),
        (Reply(200, b"[" * 100_000), "not JSON"),
        (Reply(200, {}), "no chat completion"),
        (Reply(200, []), "no chat completion"),
        (Reply(200, {"choices": None}), "no chat completion"),
        (Reply(200, {"choices": "x"}), "no chat completion"),
        (completion(5), "no chat completion"),
        (Reply(500, {"error": {"message": f"headers: Bearer {KEY}\n"}}, SOON), r"Bearer \*\*\*"),
    ],
)
def test_lasting_failures_are_raised_in_one_line_without_the_key(
    serve: Callable[[Script], Served], reply: Reply, said: str
) -> None:
    served = serve(lambda text, _: reply if text == "b" else upper(text, 0))
    with pytest.raises(ServerFault, match=said) as caught:
        engine(served.url).translate(["b"])
    message = str(caught.value)
    assert message.startswith(served.url) and "\n" not in message and KEY not in message
    assert served.count("b") == (3 if reply.status >= 400 else 1)


def test_one_failure_loses_no_other_reply(serve: Callable[[Script], Served], tmp_path: Path) -> None:
    """What came back is kept; the next run asks for the rest alone."""
    others = threading.Semaphore(0)

    def script(text: str, before: int) -> Reply:
        if text.startswith("b") and not before:
            for _ in range(3):
                others.acquire(timeout=10)
            return Reply(401, {})
        others.release()
        return completion("кот")

    served = serve(script)
    texts = ["a cat", "b cat", "c cat", "d cat"]
    plan = Plan([engine(served.url, retries=0)], cache=tmp_path)
    with pytest.raises(BadInput, match="key_env"):
        translate_texts(texts, plan)
    assert translate_texts(texts, plan) == ["кот"] * 4
    assert [served.count(text) for text in texts] == [1, 2, 1, 1]


def test_an_interrupt_does_not_wait_for_the_server(serve: Callable[[Script], Served]) -> None:
    never = threading.Event()
    asked = threading.Event()

    def script(text: str, _: int) -> Reply:
        asked.set()
        return Reply(body=upper(text, 0).body, hold=never)

    url = serve(script).url
    program = (
        "import signal, sys\n"
        "from shards.translate.config import TranslateConfig\n"
        "from shards.translate.engines import make_engines\n"
        "[engine] = make_engines(TranslateConfig(engine='server', model='m', url=sys.argv[1], timeout_seconds=600))\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "engine.translate(['a', 'b'])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, url], stderr=subprocess.PIPE)
    assert asked.wait(60)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=5)  # the server holds its reply for ten seconds
    never.set()
    assert b"KeyboardInterrupt" in stderr


def test_a_reply_that_drips_is_no_longer_waited_for_than_one_that_is_silent(
    serve: Callable[[Script], Served],
) -> None:
    served = serve(lambda text, before: replace(completion("b"), drip=True))
    with pytest.raises(ServerFault, match="timed out"):
        engine(served.url, timeout_seconds=0.2, retries=0).translate(["a"])


def test_timeouts_are_raised(serve: Callable[[Script], Served]) -> None:
    never = threading.Event()
    served = serve(lambda text, _: Reply(body=upper(text, 0).body, hold=never))
    with pytest.raises(ServerFault, match="timed out"):
        engine(served.url, timeout_seconds=0.05, retries=0).translate(["a"])
    never.set()


def test_no_server_there_is_raised() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ServerFault, match="refused"):
            engine(url, retries=0).translate(["a"])


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "key_env"), (403, "key_env"), (404, "404: .*gone"), (400, "400: .*gone"), (422, "422: .*gone")],
)
def test_what_no_retry_mends_is_bad_input(serve: Callable[[Script], Served], status: int, said: str) -> None:
    served = serve(lambda *_: Reply(status, {"error": {"message": f"gone {KEY}"}}))
    with pytest.raises(BadInput, match=said) as caught:
        engine(served.url).translate(["a"])
    assert served.url in str(caught.value) and KEY not in str(caught.value)
    assert served.count("a") == 1


def test_a_failure_ends_the_call_without_the_requests_that_wait(serve: Callable[[Script], Served]) -> None:
    served = serve(lambda *_: Reply(401, {}))
    with pytest.raises(BadInput):
        engine(served.url, concurrency=1).translate([f"t{i}" for i in range(50)])
    assert len(served.requests) < 10


def test_another_services_key_is_not_sent(serve: Callable[[Script], Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THE_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    served = serve(upper)
    engine(served.url).translate(["a"])
    assert served.keys == {"Bearer no-key"}
    monkeypatch.setenv("THE_KEY", "sk-ключ")
    with pytest.raises(BadInput, match="THE_KEY") as caught:
        engine(served.url)
    assert "ключ" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://h/v1",
        "http://",
        "http://h:x/v1",
        "http://u@h/v1",
        "http://:p@h/v1",
        "http://h/v1?key=1",
        "http://[h",
    ],
)
def test_bad_addresses_are_refused(url: str) -> None:
    with pytest.raises(BadInput, match=r"translate\.url"):
        engine(url)


def test_model_changes_with_whatever_changes_translations(tmp_path: Path) -> None:
    (tmp_path / "other.tsv").write_text("en\tru\na\tб\n")
    url = "http://localhost:8000/v1"
    changes: list[dict[str, Any]] = [
        {},
        {"model": "n"},
        {"max_new_tokens": 9},
        {"examples": str(tmp_path / "other.tsv")},
        {"target_lang": "uk"},
    ]
    models = [engine(url, **change).model for change in changes]
    models.append(engine("http://other:8000/v1").model)
    assert len(set(models)) == 6
    assert engine(url, concurrency=1, batch_size=2, retries=0).model == models[0]
    with pytest.raises(BadInput, match=r"translate\.model"):
        engine(url, model="")


def test_rate_limit_spaces_requests_evenly() -> None:
    now, waits = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    limit = RateLimit(30, lambda: now, sleep)
    for _ in range(4):
        limit.wait()
    assert waits == [2, 2, 2]
    now += 60  # a pause saves no turns up
    limit.wait()
    limit.wait()
    assert waits == [2, 2, 2, 2]
    RateLimit(0, lambda: now, sleep).wait()
    assert len(waits) == 4


def test_rate_limit_counts_retries_too(serve: Callable[[Script], Served], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[RateLimit] = []
    monkeypatch.setattr(RateLimit, "wait", lambda limit: waited.append(limit))
    served = serve(lambda text, before: Reply(500, {}, SOON) if before < 2 else upper(text, 0))
    engine(served.url, requests_per_minute=60).translate(["a", "b"])
    assert len(waited) == len(served.requests) == 6


def write_model(folder: Path) -> None:
    """A tiny chat model that says "круг" and stops: the token it sees alone decides the next."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    unknown, end, reply, circle = range(4)
    words = Tokenizer(models.WordLevel({"<unk>": unknown, "</s>": end, "[/INST]": reply, "круг": circle}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} [/INST] {% endfor %}"
    config = LlamaConfig(
        vocab_size=4,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(4))
        successors = model.lm_head.weight.zero_()
        successors[circle, reply] = successors[end, circle] = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(URL, model folder) of a running `transformers serve`."""
    pytest.importorskip("fastapi")
    folder = tmp_path_factory.mktemp("served") / "model"
    write_model(folder)
    with transformers_serve(folder, folder.parent / "log") as url:
        yield url, folder


def test_real_server(real: tuple[str, Path]) -> None:
    url, folder = real
    served = engine(url, model=str(folder), max_new_tokens=8, timeout_seconds=30.0)
    assert served.translate(["is there a red circle?", "is there <x0/>?", "red"]) == ["круг"] * 3
    assert engine(url, model=str(folder), max_new_tokens=1, timeout_seconds=30.0).translate(["red"]) == [None]
    with pytest.raises(BadInput, match="pinned"):
        engine(url, model="another").translate(["red"])
    with pytest.raises(BadInput, match="404"):
        engine(re.sub("v1$", "v2", url), model=str(folder)).translate(["red"])
