"""Chat templates: one table, rendered by us into labelled pieces and by Hugging Face through the Jinja text made
from it.

Labels are born with the text: a rendered dialogue is a list of pieces, each supervised or not, so a "tokenization
mismatch" between prompt and labels cannot arise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from shards.errors import BadInput
from shards.sample import ImagePart, Message

IMAGE = "<image>"


@dataclass(frozen=True)
class Piece:
    """A stretch of text that is tokenised by itself; `supervised` pieces carry labels."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class ChatTemplate:
    """Text around each role's words. `{text}` stands for the words.

    An image is written as `<image>` + newline before them. With `system_in_user` the system's text opens the first
    user message instead of standing before it. `markers` are the texts that a tokenizer must know as one token each;
    the one that ends `answer` ends what a model generates.
    """

    name: str
    start: str
    system: str
    user: str
    assistant: str
    answer: str
    default_system: str = ""
    system_in_user: bool = False
    markers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("system", "user"):
            if getattr(self, key).count("{text}") != 1:
                raise BadInput(f"template {self.name}: key {key!r} must hold {{text}} once")
        if self.default_system and self.system_in_user:
            raise BadInput(f"template {self.name}: default_system and system_in_user exclude each other")

    @property
    def stop(self) -> str:
        """The marker that ends an answer; empty where none does."""
        end = self.answer.partition("{text}")[2].strip()
        return end if end in self.markers else ""

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Iterator[Piece]:
        """Yield the dialogue's pieces; unsupervised neighbours are joined, so a prompt tokenises the same in every use.

        Source: the segment-wise masking of LLaVA's `preprocess_v1`, without its re-tokenisation.
        """
        context, held = self.start, ""
        if self.default_system and messages[0].role != "system":
            context += self.system.replace("{text}", self.default_system)
        for message in messages:
            text = "".join(IMAGE + "\n" if isinstance(part, ImagePart) else part.text for part in message.content)
            if held and message.role == "assistant":
                raise BadInput(f"template {self.name}: a system message needs a user message after it")
            if message.role == "assistant":
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
        if generation_prompt:
            context += self.assistant
        if context:
            yield Piece(context, False)

    def jinja(self) -> str:
        """The same template as Hugging Face's `chat_template` text."""
        words = "{% set ns.text = '' %}{% if message.content is string %}{% set ns.text = message.content %}{% else %}"
        words += "{% for part in message.content %}{% if part.type == 'image' %}"
        words += "{% set ns.text = ns.text + '<image>\\n' %}{% else %}{% set ns.text = ns.text + part.text %}"
        words += "{% endif %}{% endfor %}{% endif %}"
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
        return (
            "{% set ns = namespace(text='', held='') %}" + _literal(self.start) + system
            + "{% for message in messages %}" + words + branches + "{% endif %}{% endfor %}"
            + "{% if add_generation_prompt %}" + _literal(self.assistant) + "{% endif %}"
        )  # fmt: skip


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
            markers=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
        # "Gemma formatting and system instructions" of its documentation: there is no system role
        ChatTemplate(
            name="gemma",
            start="<bos>",
            system="{text}\n\n",
            user="<start_of_turn>user\n{text}<end_of_turn>\n",
            assistant="<start_of_turn>model\n",
            answer="{text}<end_of_turn>\n",
            system_in_user=True,
            markers=("<bos>", "<start_of_turn>", "<end_of_turn>"),
        ),
    )
}


def load_template(name: str) -> ChatTemplate:
    """A template of the table, or one read from a YAML file with the fields of `ChatTemplate`."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise BadInput(f"data.template: unknown template {name!r}; choose {', '.join(TEMPLATES)} or a .yaml file")
    try:
        fields: Any = yaml.safe_load(path.read_text("utf-8"))
        return ChatTemplate(**{**fields, "markers": tuple(fields.get("markers", ()))})
    except (OSError, TypeError, AttributeError, yaml.YAMLError) as error:
        known = ", ".join(asdict(TEMPLATES["saiga"]))
        raise BadInput(f"{path}: not a chat template ({error}); it needs the keys {known}") from None
