"""Templates letter by letter as their families publish them, and pieces that tokenise as the whole text does."""

import pytest
from jinja2 import Environment
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from shards.errors import BadInput
from shards.sample import ImagePart, Message, Text
from vlm.data.pieces import DialogueEncoder
from vlm.data.template import TEMPLATES

_QUESTION, _AGAIN = Message("user", (ImagePart(), Text("What?"))), Message("user", (Text("And now?"),))
_ANSWER, _SYSTEM = Message("assistant", (Text("A cat."),)), Message("system", (Text("Be brief."),))
DIALOGUES = {
    "turns": [_QUESTION, _ANSWER, _AGAIN],
    "system": [_SYSTEM, _QUESTION, _ANSWER],
    "images": [Message("user", (ImagePart(), Text("one"), ImagePart(), Text("two"))), _ANSWER],
    "text": [_AGAIN],
}

_CHAT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
_SAIGA = "<s>system\nТы — Сайга, русскоязычный автоматический ассистент. Ты разговариваешь с людьми и помогаешь им.</s>"
_USER, _BOT = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
WORDING = {
    # docs.mistral.ai and the model card of Mistral-7B-Instruct-v0.2; a system's text as mistral-common 1 puts it
    "mistral-instruct": {
        "turns": "<s>[INST] <image>\nWhat? [/INST] A cat.</s>[INST] And now? [/INST]",
        "system": "<s>[INST] Be brief.\n\n<image>\nWhat? [/INST] A cat.</s>",
        "images": "<s>[INST] <image>\none<image>\ntwo [/INST] A cat.</s>",
        "text": "<s>[INST] And now? [/INST]",
    },
    # FastChat, docs/vicuna_weights_version.md; LLaVA, llava/conversation.py
    "vicuna_v1": {
        "turns": f"<s>{_CHAT} USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: And now? ASSISTANT:",
        "system": "<s>Be brief. USER: <image>\nWhat? ASSISTANT: A cat.</s>",
        "images": f"<s>{_CHAT} USER: <image>\none<image>\ntwo ASSISTANT: A cat.</s>",
        "text": f"<s>{_CHAT} USER: And now? ASSISTANT:",
    },
    # the model card of IlyaGusev/saiga_mistral_7b_lora
    "saiga": {
        "turns": f"{_SAIGA}<s>user\n<image>\nWhat?</s><s>bot\nA cat.</s><s>user\nAnd now?</s><s>bot\n",
        "system": "<s>system\nBe brief.</s><s>user\n<image>\nWhat?</s><s>bot\nA cat.</s>",
        "images": f"{_SAIGA}<s>user\n<image>\none<image>\ntwo</s><s>bot\nA cat.</s>",
        "text": f"{_SAIGA}<s>user\nAnd now?</s><s>bot\n",
    },
    # the model card of Meta-Llama-3-8B-Instruct
    "llama-3": {
        "turns": f"<|begin_of_text|>{_USER}<image>\nWhat?<|eot_id|>{_BOT}A cat.<|eot_id|>"
        f"{_USER}And now?<|eot_id|>{_BOT}",
        "system": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        f"{_USER}<image>\nWhat?<|eot_id|>{_BOT}A cat.<|eot_id|>",
        "images": f"<|begin_of_text|>{_USER}<image>\none<image>\ntwo<|eot_id|>{_BOT}A cat.<|eot_id|>",
        "text": f"<|begin_of_text|>{_USER}And now?<|eot_id|>{_BOT}",
    },
    # ai.google.dev/gemma/docs/core/prompt-structure and the chat template of gemma-3-it
    "gemma": {
        "turns": "<bos><start_of_turn>user\n<image>\nWhat?<end_of_turn>\n<start_of_turn>model\nA cat.<end_of_turn>\n"
        "<start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\n",
        "system": "<bos><start_of_turn>user\nBe brief.\n\n<image>\nWhat?<end_of_turn>\n"
        "<start_of_turn>model\nA cat.<end_of_turn>\n",
        "images": "<bos><start_of_turn>user\n<image>\none<image>\ntwo<end_of_turn>\n"
        "<start_of_turn>model\nA cat.<end_of_turn>\n",
        "text": "<bos><start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\n",
    },
}


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_wording_is_the_familys_own(name: str, dialogue: str) -> None:
    messages, wording = DIALOGUES[dialogue], WORDING[name][dialogue]
    prompt = messages[-1].role == "user"
    pieces = list(TEMPLATES[name].render(messages, generation_prompt=prompt))
    assert "".join(piece.text for piece in pieces) == wording
    jinja = Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATES[name].jinja())
    assert jinja.render(messages=[m.to_json() for m in messages], add_generation_prompt=prompt) == wording
    # what is learned is the answer and its end, nothing of the question
    learned = [piece.text for piece in pieces if piece.supervised]
    assert [text.strip().removesuffix(TEMPLATES[name].stop) for text in learned] == ["A cat."] * (dialogue != "text")
    assert all(TEMPLATES[name].stop in text for text in learned)


def test_a_system_message_without_its_user_is_refused() -> None:
    with pytest.raises(BadInput, match="template gemma: a system message needs a user message"):
        list(TEMPLATES["gemma"].render([_SYSTEM, _ANSWER]))


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: a space is put before every text and every stretch behind a special token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *bytes_], show_progress=False)
    words = f"{_CHAT} {_SAIGA} user bot INST USER: ASSISTANT: A cat. And now? What?".split()
    tokenizer.train_from_iterator(words * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_tokens(["<s>", "</s>", "<image>"], special_tokens=True)
    return fast


@pytest.mark.parametrize("dialogue", ["turns", "system", "images"])
@pytest.mark.parametrize("name", ["mistral-instruct", "vicuna_v1", "saiga"])
def test_pieces_tokenise_as_the_whole(name: str, dialogue: str, sentencepiece: PreTrainedTokenizerFast) -> None:
    """An answer encoded by itself would start with a space of the tokenizer's own, which no model ever says there."""
    encoder = DialogueEncoder(sentencepiece, TEMPLATES[name], image_tokens=1)
    messages = DIALOGUES[dialogue]
    ids, supervised = encoder.encode(messages)
    text = "".join(piece.text for piece in TEMPLATES[name].render(messages))
    assert not encoder.seamless and ids == sentencepiece.encode(text, add_special_tokens=False)
    end = 1 + max(i for i, m in enumerate(messages) if m.role == "assistant")
    prompt, _ = encoder.encode(messages[: end - 1], generation_prompt=True)
    answer = next(i for i, flag in enumerate(supervised) if flag)
    assert ids[:answer] == prompt, "training sees other tokens before the answer than a prompt has"
    said = sentencepiece.convert_ids_to_tokens([i for i, flag in zip(ids, supervised, strict=True) if flag])
    assert "".join(said).replace("▁", " ").strip() == "A cat.</s>"


def test_a_token_across_the_border_is_split() -> None:
    """Where the answer's first letter would melt into the prompt's last token, each is encoded alone."""
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "<image>": 2, "\n": 3, "A": 4, "\nA": 5, "b": 6, "▁": 7,
                                      "o": 8, "t": 9}, [("\n", "A")]))  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_tokens(["<s>", "</s>", "<image>"], special_tokens=True)
    messages = [_SYSTEM, Message("user", (Text("A"),)), Message("assistant", (Text("A"),))]
    encoder = DialogueEncoder(fast, TEMPLATES["saiga"], image_tokens=1)
    encoder.seamless = False
    ids, supervised = encoder.encode(messages)
    assert [i for i, flag in zip(ids, supervised, strict=True) if flag] == [4, 1]
