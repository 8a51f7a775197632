"""A chat model behind an OpenAI-compatible server: one request a time, its faults told in one line without the key."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from shards.errors import BadInput, ServerFault
from shards.extras import require
from shards.server_config import ServerOptions

# bad request, too large, unprocessable: the fault of one request, such as a filter's or too long a one's, or of all
_REFUSED = (400, 413, 422)

# what the client lets through of a body that is none, or of one that is nested too deep
_NO_JSON = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)

CUT, FILTERED = "length", "content_filter"
# characters of a reply that are kept; no answer to a question is longer
_LONGEST = 1 << 20

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Reply:
    """Text of a reply, and why it ended, as the server says: stop, length, content_filter, …"""

    text: str
    reason: str

    @property
    def finished(self) -> bool:
        """Whether the model came to its end."""
        return self.reason not in (CUT, FILTERED)


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


class ChatServer:
    """Asks the server; safe to use from threads."""

    def __init__(self, options: ServerOptions) -> None:
        """BadInput on a bad URL, a missing model name or a missing package.

        The key comes from the environment variable `key_env`; a server of one's own may need none.
        """
        keys = options.keys
        require("openai", "server", "asking a server")
        import openai

        if not options.model:
            raise BadInput(f"{keys.model} is empty; name the model as the server calls it")
        limit, seconds = RateLimit(options.requests_per_minute), options.timeout_seconds

        def sent(request: Any) -> None:
            limit.wait()
            request.extensions["deadline"] = time.monotonic() + seconds

        def answered(response: Any) -> None:
            response.stream = _in_time(response)

        self.url, self.model, self._keys = options.url, options.model, keys
        self._client: Any = openai.OpenAI(
            api_key=_key(options.key_env),
            base_url=_check(options.url, keys.url),
            max_retries=options.retries,
            # this one is of silence alone
            timeout=seconds,
            # below the client, so that retries count too
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [sent], "response": [answered]}),
        )
        self._probing, self._works = threading.Lock(), set[str]()

    def ask(self, messages: Messages, harmless: Messages, **settings: Any) -> Reply | None:
        """The reply; None where the server refuses these messages, or has no choice to offer, while it answers
        `harmless` ones of their kind.

        BadInput for what no retry mends, ServerFault for what outlasts all retries. `settings` go with the request.
        """
        import openai

        try:
            reply = self._ask(messages, settings)
        except openai.APIStatusError as error:
            if error.status_code in _REFUSED and self._takes(harmless, settings):
                return None
            # from None: a server may repeat the key in what it says
            raise self._fault(error) from None
        except (openai.APIConnectionError, *_NO_JSON) as error:
            raise self._fault(error) from None
        if reply is None and not self._takes(harmless, settings):
            raise ServerFault(f"{self.url}: the reply is no chat completion (it holds no choices)")
        return reply

    def embed(self, text: str) -> list[float]:
        """The embedding of a text; faults as of `ask`."""
        import openai

        try:
            # as numbers: not every server knows the client's own form
            reply = self._client.embeddings.create(model=self.model, input=[text], encoding_format="float")
        except (openai.APIStatusError, openai.APIConnectionError, *_NO_JSON) as error:
            raise self._fault(error) from None
        except ValueError as error:  # the client's own word for a reply without data
            raise ServerFault(f"{self.url}: the reply is no embedding ({self._said(error)})") from None
        try:
            return [float(number) for number in reply.data[0].embedding]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise ServerFault(f"{self.url}: the reply is no embedding ({self._said(reply)})") from None

    def _ask(self, messages: Messages, settings: dict[str, Any]) -> Reply | None:
        reply = self._client.chat.completions.create(model=self.model, messages=messages, **settings)
        # some services say so that their filter let nothing through
        return None if getattr(reply, "choices", None) == [] else self._content(reply)

    def _takes(self, harmless: Messages, settings: dict[str, Any]) -> bool:
        """Whether the server answers these, so that others are refused for their own sake; asked once."""
        import openai

        kind = json.dumps(harmless)
        with self._probing:
            if kind not in self._works:
                try:
                    if self._ask(harmless, settings) is None:
                        return False
                    self._works.add(kind)
                except (openai.APIError, ServerFault, *_NO_JSON):
                    return False
        return True

    def _fault(self, error: Any) -> Exception:
        """What is raised for the client's errors."""
        import openai

        if isinstance(error, openai.APIStatusError):
            return self._refused(error)
        if isinstance(error, openai.APIConnectionError):
            return ServerFault(f"{self.url}: {error.message} {self._said(error.__cause__)}")
        return ServerFault(f"{self.url}: the reply is not JSON ({error})")

    def _refused(self, error: Any) -> Exception:
        """BadInput for what no retry mends."""
        status, said, keys = error.status_code, self._said(error.response.text), self._keys
        if status in (401, 403):
            return BadInput(f"{self.url}: the key is refused ({status}); set the variable that {keys.key_env} names")
        if status == 404:
            return BadInput(f"{self.url}: no such address or model {self.model!r} (404: {said}); see {keys.url}")
        if status in (408, 409, 429) or status >= 500:
            return ServerFault(f"{self.url}: still failing after all retries ({status}: {said}); try again later")
        return BadInput(f"{self.url}: the request is refused ({status}: {said}); see {keys.model}")

    def _said(self, what: object) -> str:
        """One short line without the key."""
        return " ".join(str(what or "").replace(self._client.api_key, "***").split())[:300]

    def _content(self, reply: Any) -> Reply:
        """ServerFault when it is no chat completion."""
        try:
            choice = reply.choices[0]
            content, reason = choice.message.content, str(choice.finish_reason or "")
            if content is None and getattr(choice.message, "refusal", None):
                reason = FILTERED
        except (AttributeError, IndexError, KeyError, TypeError):
            content, reason = 0, ""
        if not isinstance(content, str | None):
            raise ServerFault(f"{self.url}: the reply is no chat completion ({self._said(reply)})")
        content = content or ""
        return Reply(content, reason) if len(content) <= _LONGEST else Reply(content[:_LONGEST], CUT)


def _in_time(response: Any) -> Any:
    """The bytes of a reply, as long as they come before its request's deadline: a server may send some for ever."""
    import openai

    # of the client's own kind, which it insists on; whose that is depends on openai's version
    kind: Any = type(response.stream)
    stream, request = response.stream, response.request

    class InTime(kind):
        def __init__(self) -> None:
            """Nothing is its own."""

        def __iter__(self) -> Iterator[bytes]:
            for piece in stream:
                if time.monotonic() > request.extensions["deadline"]:
                    raise openai.APITimeoutError(request)
                yield piece

        def close(self) -> None:
            stream.close()

    return InTime()


def sound(text: str) -> str:
    """With no halves of characters, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _key(variable: str) -> str:
    """The key, or a word that stands for none: without any, the client would take another service's from the
    environment."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadInput(f"the environment variable {variable} holds no key: it has characters that a header cannot")
    return key or "no-key"


def _check(url: str, key: str) -> str:
    """The URL as given; it is recorded with what the server says, so it may hold no secret."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError:
        whole = False
    if not whole:
        raise BadInput(f"{key}={url!r:.200} should look like http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BadInput(f"{key} holds a user, password or query; give the address alone")
    return url
