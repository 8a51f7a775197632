"""Chat templates: one table, rendered by us into labelled pieces and by Hugging Face through the Jinja text made
from it.

Labels are born with the text: a rendered dialogue is a list of pieces, each supervised or not, so a "tokenization
mismatch" between prompt and labels cannot arise.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from shards.errors import BadInput
from shards.files import write_atomic
from shards.sample import ROLES, ImagePart, Message

IMAGE = "<image>"
# in a model's folder, of a template that is none of the table
TEMPLATE_FILE = "chat_template.yaml"
BOS = "{bos}"


@dataclass(frozen=True)
class Piece:
    """A stretch of text that is tokenised by itself; `supervised` pieces carry labels."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class ChatTemplate:
    """Text around each role's words. `{text}` stands for the words, `{bos}` in `start` for the tokenizer's own token.

    A message's one image is written before its words wherever it stands among them, as LLaVA does; several keep their
    places. With `system_in_user` the system's text opens the first user message instead of standing before it. Space
    around the words of the roles in `trim` is dropped. Without `questions` a dialogue is an image and its caption.
    `markers` are the texts that a tokenizer must know as one token each; the one that ends `answer` ends what a model
    generates.
    """

    name: str
    start: str
    system: str
    user: str
    assistant: str
    answer: str
    default_system: str = ""
    system_in_user: bool = False
    image: str = IMAGE + "\n"
    questions: bool = True
    trim: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("system", "user", "answer"):
            if getattr(self, key).count("{text}") != 1:
                raise BadInput(f"template {self.name}: key {key!r} must hold {{text}} once")
        if self.image.count(IMAGE) != 1:
            raise BadInput(f"template {self.name}: key 'image' must hold {IMAGE} once")
        if self.default_system and self.system_in_user:
            raise BadInput(f"template {self.name}: default_system and system_in_user exclude each other")
        if unknown := set(self.trim) - set(ROLES):
            raise BadInput(f"template {self.name}: key 'trim': {min(unknown)!r} is none of {', '.join(ROLES)}")

    @property
    def stop(self) -> str:
        """The marker that ends an answer; empty where none does."""
        end = self.answer.partition("{text}")[2].strip()
        return end if end in self.markers else ""

    def foreign_marker(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The first marker that is not one token of `tokenizer`; empty where all are."""
        markers = (m for m in self.markers if len(tokenizer.encode(m, add_special_tokens=False)) != 1)
        return next(markers, "")

    def opened(self, bos: str) -> "ChatTemplate":
        """The template of a tokenizer whose texts begin with `bos`."""
        return replace(self, start=self.start.replace(BOS, bos))

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Iterator[Piece]:
        """Yield the dialogue's pieces; unsupervised neighbours are joined, so a prompt tokenises the same in every use.

        Source: the segment-wise masking of LLaVA's `preprocess_v1`, without its re-tokenisation, and its
        `preprocess_plain`. Raises BadInput for a system message that no user message follows where it belongs into
        one, and, without `questions`, for more than one answer.
        """
        if not self.questions and sum(message.role == "assistant" for message in messages) > 1:
            raise BadInput(f"template {self.name}: an image and one caption are wanted, the dialogue has more answers")
        context, held = self.start, ""
        if self.default_system and messages[0].role != "system":
            context += self.system.replace("{text}", self.default_system)
        for message in messages:
            text = self._words(message)
            if message.role == "assistant":
                self._refuse(held)
                yield Piece(context + self.assistant, False)
                yield Piece(self.answer.replace("{text}", text), True)
                context = ""
            elif message.role == "user":
                context += self.user.replace("{text}", held + text)
                held = ""
            elif self.system_in_user:
                held += self.system.replace("{text}", text)
            else:
                context += self.system.replace("{text}", text)
        self._refuse(held)
        if generation_prompt:
            context += self.assistant
        if context:
            yield Piece(context, False)

    def _refuse(self, held: str) -> None:
        if held:
            raise BadInput(f"template {self.name}: a system message needs a user message after it")

    def _words(self, message: Message) -> str:
        images = sum(isinstance(part, ImagePart) for part in message.content)
        if not self.questions and message.role != "assistant":
            return self.image * images
        # what stood on both sides of an image that is moved must not grow together
        words, gap = self.image if images == 1 else "", ""
        for i, part in enumerate(message.content):
            if not isinstance(part, ImagePart):
                words, gap = words + gap + part.text, ""
            elif images == 1:
                gap = " " if i else ""
            else:
                words += self.image
        return words.strip() if message.role in self.trim else words

    def jinja(self) -> str:
        """The same template as Hugging Face's `chat_template` text."""
        roles = {"user": _jinja_text(self.user), "system": _jinja_text(self.system)}
        if self.system_in_user:
            before, _, after = self.system.partition("{text}")
            roles["user"] = _jinja_text(self.user, "ns.held + ns.text") + "{% set ns.held = '' %}"
            roles["system"] = f"{{% set ns.held = ns.held + {_quoted(before)} + ns.text + {_quoted(after)} %}}"
        roles["assistant"] = _jinja_text(self.assistant + self.answer)
        branches = "".join(
            f"{{% {'if' if i == 0 else 'elif'} message.role == '{role}' %}}{written}"
            for i, (role, written) in enumerate(roles.items())
        )
        system = ""
        if self.default_system:
            text = _literal(self.system.replace("{text}", self.default_system))
            system = "{% if messages[0].role != 'system' %}" + text + "{% endif %}"
        before, bos, after = self.start.partition(BOS)
        start = _literal(before) + ("{{ bos_token }}" if bos else "") + _literal(after)
        return (
            "{% set ns = namespace(text='', held='', gap='') %}" + start + system
            + "{% for message in messages %}" + self._jinja_words() + branches + "{% endif %}{% endfor %}"
            + "{% if add_generation_prompt %}" + _literal(self.assistant) + "{% endif %}"
        )  # fmt: skip

    def _jinja_words(self) -> str:
        """Sets ns.text as `_words` does."""
        image = _quoted(self.image)
        words = (
            "{% set ns.text = '' %}{% set ns.gap = '' %}"
            "{% if message.content is string %}{% set ns.text = message.content %}{% else %}"
            "{% set images = message.content | selectattr('type', 'equalto', 'image') | list | length %}"
            f"{{% if images == 1 %}}{{% set ns.text = {image} %}}{{% endif %}}{{% for part in message.content %}}"
            "{% if part.type != 'image' %}{% set ns.text = ns.text + ns.gap + part.text %}{% set ns.gap = '' %}"
            "{% elif images == 1 %}{% set ns.gap = '' if loop.first else ' ' %}"
            f"{{% else %}}{{% set ns.text = ns.text + {image} %}}{{% endif %}}{{% endfor %}}{{% endif %}}"
        )
        if self.trim:
            words += f"{{% if message.role in {list(self.trim)} %}}{{% set ns.text = ns.text | trim %}}{{% endif %}}"
        if not self.questions:
            words += (
                "{% if message.role != 'assistant' %}{% set ns.text = '' if message.content is string else "
                f"{image} * (message.content | selectattr('type', 'equalto', 'image') | list | length) %}}{{% endif %}}"
            )
        return words


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _literal(text: str) -> str:
    return "{{ " + _quoted(text) + " }}" if text else ""


def _jinja_text(around: str, words: str = "ns.text") -> str:
    before, found, after = around.partition("{text}")
    return _literal(before) + (f"{{{{ {words} }}}}" if found else "") + _literal(after)


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_SAIGA_SYSTEM = "Ты — Сайга, русскоязычный автоматический ассистент. Ты разговариваешь с людьми и помогаешь им."
_LLAMA_3 = "<|start_header_id|>{role}<|end_header_id|>\n\n"

TEMPLATES: dict[str, ChatTemplate] = {
    t.name: t
    for t in (
        # the instruction format of the model card of Mistral-7B-Instruct; the system's text as in mistral-common
        ChatTemplate(
            name="mistral-instruct",
            start="<s>",
            system="{text}\n\n",
            user="[INST] {text} [/INST]",
            assistant="",
            answer=" {text}</s>",
            system_in_user=True,
            markers=("<s>", "</s>"),
        ),
        # FastChat's vicuna_v1.1, which LLaVA 1.5 calls v1
        ChatTemplate(
            name="vicuna_v1",
            start="<s>",
            system="{text} ",
            user="USER: {text} ",
            assistant="ASSISTANT:",
            answer=" {text}</s>",
            default_system=_VICUNA_SYSTEM,
            markers=("<s>", "</s>"),
        ),
        # the model card of saiga_mistral_7b
        ChatTemplate(
            name="saiga",
            start="",
            system="<s>system\n{text}</s>",
            user="<s>user\n{text}</s>",
            assistant="<s>bot\n",
            answer="{text}</s>",
            default_system=_SAIGA_SYSTEM,
            markers=("<s>", "</s>"),
        ),
        # the model card of Meta-Llama-3-8B-Instruct; Saiga-8B keeps it
        ChatTemplate(
            name="llama-3",
            start="<|begin_of_text|>",
            system=_LLAMA_3.format(role="system") + "{text}<|eot_id|>",
            user=_LLAMA_3.format(role="user") + "{text}<|eot_id|>",
            assistant=_LLAMA_3.format(role="assistant"),
            answer="{text}<|eot_id|>",
            trim=ROLES,
            markers=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
        # "Gemma formatting and system instructions" of its documentation, and the chat template of gemma-3-it: there is
        # no system role
        ChatTemplate(
            name="gemma",
            start="<bos>",
            system="{text}\n\n",
            user="<start_of_turn>user\n{text}<end_of_turn>\n",
            assistant="<start_of_turn>model\n",
            answer="{text}<end_of_turn>\n",
            system_in_user=True,
            trim=("user", "assistant"),
            markers=("<bos>", "<start_of_turn>", "<end_of_turn>"),
        ),
        # LLaVA's first stage, its preprocess_plain: an image, its caption, a newline
        ChatTemplate(
            name="plain",
            start=BOS,
            system="{text}",
            user="{text}",
            assistant="",
            answer="{text}\n",
            image=IMAGE,
            questions=False,
        ),
    )
}


def keep_template(chat: ChatTemplate, folder: Path) -> str:
    """Have a model in `folder` know its template: its name in the table, or a file that is written there."""
    if TEMPLATES.get(chat.name) == chat:
        return chat.name
    write_atomic(folder / TEMPLATE_FILE, yaml.safe_dump(json.loads(json.dumps(asdict(chat))), allow_unicode=True))
    return TEMPLATE_FILE


def load_template(name: str) -> ChatTemplate:
    """A template of the table, or one read from a YAML file with the fields of `ChatTemplate`."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise BadInput(f"data.template: unknown template {name!r}; choose {', '.join(TEMPLATES)} or a .yaml file")
    try:
        fields: Any = yaml.safe_load(path.read_text("utf-8"))
        return ChatTemplate(**{**fields, **{key: tuple(fields.get(key, ())) for key in ("trim", "markers")}})
    except (OSError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        known = ", ".join(asdict(TEMPLATES["saiga"]))
        raise BadInput(f"{path}: not a chat template ({error}); it needs the keys {known}") from None
