"""Engine that asks an OpenAI-compatible server, one request a text."""

import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from shards.errors import BadInput, ServerFault
from shards.translate.config import TranslateConfig
from shards.translate.engine import Unfinished
from shards.translate.fewshot import FewShot, clean

# bad request, too large, unprocessable: the fault of one text, such as a filter's or too long a one's, or of all
_REFUSED = (400, 413, 422)
_PLAIN_TEXT = "yes"


class RateLimit:
    """At most `per_minute` requests a minute over all threads, evenly spaced; 0 is no limit."""

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._next = clock()

    def wait(self) -> None:
        """Return when this request may go."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if turn > now:
            self._sleep(turn - now)


class ServerEngine:
    """Translations by a chat model behind a URL.

    A text whose reply is empty or cut off at `max_tokens`, or which the server refuses while it takes others, has no
    translation.
    """

    def __init__(
        self, client: Any, model: str, url: str, prompt: FewShot, max_tokens: int, batch_size: int, concurrency: int
    ) -> None:
        """`client` is an `openai.OpenAI`."""
        self.client, self.served, self.url, self.prompt, self.max_tokens = client, model, url, prompt, max_tokens
        self.batch_size, self.concurrency = batch_size, concurrency
        self._probing, self._works = threading.Lock(), False
        self.name = "server"
        settings = json.dumps([prompt.digest, max_tokens])
        self.model = f"{model}@{url}#{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
        self.source_lang, self.target_lang = prompt.source_lang, prompt.target_lang

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        """One translation a text; at the first that fails, Unfinished with what the others have brought."""
        waiting: SimpleQueue[str] = SimpleQueue()
        for text in dict.fromkeys(texts):
            waiting.put(text)
        done: dict[str, str | None] = {}
        faults: list[BaseException] = []
        # daemons: who interrupts does not wait for a server that hangs
        work = functools.partial(self._work, waiting, done, faults)
        pool = [threading.Thread(target=work, daemon=True) for _ in range(self.concurrency)]
        try:
            for thread in pool:
                thread.start()
            for thread in pool:
                thread.join()
        except BaseException as fault:
            faults.append(fault)
            raise
        if faults:
            raise Unfinished(done, faults[0]) if done else faults[0]
        return [done[text] for text in texts]

    def _work(self, waiting: SimpleQueue[str], done: dict[str, str | None], faults: list[BaseException]) -> None:
        """Translate what waits until nothing does, or something has failed."""
        while not faults:
            try:
                text = waiting.get_nowait()
                done[text] = self._one(text)
            except Empty:
                return
            except Exception as fault:
                faults.append(fault)

    def _one(self, text: str) -> str | None:
        import openai

        try:
            return self._ask(text)
        except openai.APIStatusError as error:
            if error.status_code in _REFUSED and self._takes_texts():
                return None
            # from None: a server may repeat the key in what it says
            raise self._refused(error) from None
        except openai.APIConnectionError as error:
            raise ServerFault(f"{self.url}: {error.message} {self._said(error.__cause__)}") from None
        except json.JSONDecodeError as error:
            raise ServerFault(f"{self.url}: the reply is not JSON ({error})") from None

    def _ask(self, text: str) -> str | None:
        reply = self.client.chat.completions.create(
            model=self.served, messages=self.prompt.messages(text), temperature=0, max_tokens=self.max_tokens
        )
        content, finished = self._content(reply)
        return clean(text, content, finished)

    def _takes_texts(self) -> bool:
        """Whether the server takes a plain text, so that one it refuses is refused for its own sake."""
        import openai

        with self._probing:
            if not self._works:
                try:
                    self._ask(_PLAIN_TEXT)
                    self._works = True
                except (openai.APIError, ServerFault, json.JSONDecodeError):
                    return False
        return True

    def _refused(self, error: Any) -> Exception:
        """BadInput for what no retry mends."""
        status, said = error.status_code, self._said(error.response.text)
        if status in (401, 403):
            return BadInput(f"{self.url}: the key is refused ({status}); set the variable that translate.key_env names")
        if status == 404:
            return BadInput(f"{self.url}: no such address or model {self.served!r} (404: {said}); see translate.url")
        if status in (408, 409, 429) or status >= 500:
            return ServerFault(f"{self.url}: still failing after all retries ({status}: {said}); try again later")
        return BadInput(f"{self.url}: the request is refused ({status}: {said}); see translate.model")

    def _said(self, what: object) -> str:
        """One short line without the key."""
        return " ".join(str(what or "").replace(self.client.api_key, "***").split())[:300]

    def _content(self, reply: Any) -> tuple[str, bool]:
        """Text of a reply and whether the model came to its end; ServerFault when it is no chat completion."""
        try:
            choice = reply.choices[0]
            content, finished = choice.message.content, choice.finish_reason not in ("length", "content_filter")
        except (AttributeError, IndexError, KeyError, TypeError):
            content, finished = 0, False
        if not isinstance(content, str | None):
            raise ServerFault(f"{self.url}: the reply is no chat completion ({self._said(reply)})")
        return content or "", finished


def make_server(config: TranslateConfig) -> ServerEngine:
    """The engine of a config; BadInput on a bad URL, a missing model name or a missing package.

    The key comes from the environment variable `key_env`; a server of one's own may need none.
    """
    try:
        import openai
    except ImportError as error:
        raise BadInput("translate.engine=server needs the package openai: pip install 'ruvlm[server]'") from error
    if not config.model:
        raise BadInput("translate.model is empty; name the model as the server calls it")
    limit = RateLimit(config.requests_per_minute)
    client = openai.OpenAI(
        api_key=_key(config.key_env),
        base_url=_check(config.url),
        max_retries=config.retries,
        timeout=config.timeout_seconds,
        # below the client, so that retries count too
        http_client=openai.DefaultHttpxClient(event_hooks={"request": [lambda _: limit.wait()]}),
    )
    prompt = FewShot.load(config.examples, config.source_lang, config.target_lang)
    return ServerEngine(
        client, config.model, config.url, prompt, config.max_new_tokens, config.batch_size, config.concurrency
    )


def _key(variable: str) -> str:
    """The key, or a word that stands for none: without any, the client would take another service's from the
    environment."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadInput(f"the environment variable {variable} holds no key: it has characters that a header cannot")
    return key or "no-key"


def _check(url: str) -> str:
    """The URL as given; it is recorded with the translations, so it may hold no secret."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError:
        whole = False
    if not whole:
        raise BadInput(f"translate.url={url!r:.200} should look like http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BadInput("translate.url holds a user, password or query; give the address alone, the key by key_env")
    return url
