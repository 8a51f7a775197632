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

    An image is written as `<image>` + newline before them.
    """

    name: str
    start: str
    system: str
    user: str
    assistant: str
    answer: str
    default_system: str = ""

    def __post_init__(self) -> None:
        for key in ("system", "user"):
            if getattr(self, key).count("{text}") != 1:
                raise BadInput(f"template {self.name}: key {key!r} must hold {{text}} once")

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Iterator[Piece]:
        """Yield the dialogue's pieces; unsupervised neighbours are joined, so a prompt tokenises the same in every use.

        Source: the segment-wise masking of LLaVA's `preprocess_v1`, without its re-tokenisation.
        """
        context = self.start
        if self.default_system and messages[0].role != "system":
            context += self.system.replace("{text}", self.default_system)
        for message in messages:
            text = "".join(IMAGE + "\n" if isinstance(part, ImagePart) else part.text for part in message.content)
            if message.role == "assistant":
                yield Piece(context + self.assistant, False)
                yield Piece(self.answer.replace("{text}", text), True)
                context = ""
            else:
                context += (self.user if message.role == "user" else self.system).replace("{text}", text)
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
        roles = {"user": self.user, "system": self.system, "assistant": self.assistant + self.answer}
        branches = "".join(
            f"{{% {'if' if i == 0 else 'elif'} message.role == '{role}' %}}{_jinja_text(around)}"
            for i, (role, around) in enumerate(roles.items())
        )
        system = ""
        if self.default_system:
            text = _literal(self.system.replace("{text}", self.default_system))
            system = "{% if messages[0].role != 'system' %}" + text + "{% endif %}"
        return (
            "{% set ns = namespace(text='') %}" + _literal(self.start) + system
            + "{% for message in messages %}" + words + branches + "{% endif %}{% endfor %}"
            + "{% if add_generation_prompt %}" + _literal(self.assistant) + "{% endif %}"
        )  # fmt: skip


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return "{{ '" + escaped + "' }}" if text else ""


def _jinja_text(around: str) -> str:
    before, found, after = around.partition("{text}")
    return _literal(before) + ("{{ ns.text }}" if found else "") + _literal(after)


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_SAIGA_SYSTEM = "Ты — Сайга, русскоязычный автоматический ассистент. Ты разговариваешь с людьми и помогаешь им."

TEMPLATES: dict[str, ChatTemplate] = {
    t.name: t
    for t in (
        ChatTemplate("mistral-instruct", "<s>", "[INST] {text} [/INST]", "[INST] {text} [/INST]", "", " {text}</s>"),
        ChatTemplate(
            "vicuna_v1", "<s>", "{text} ", "USER: {text} ", "ASSISTANT:", " {text}</s>", default_system=_VICUNA_SYSTEM
        ),
        ChatTemplate(
            "saiga",
            "",
            "<s>system\n{text}</s>",
            "<s>user\n{text}</s>",
            "<s>bot\n",
            "{text}</s>",
            default_system=_SAIGA_SYSTEM,
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
        return ChatTemplate(**fields)
    except (OSError, TypeError, yaml.YAMLError) as error:
        known = ", ".join(asdict(TEMPLATES["saiga"]))
        raise BadInput(f"{path}: not a chat template ({error}); it needs the keys {known}") from None
