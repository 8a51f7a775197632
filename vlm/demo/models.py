"""A tiny CLIP tower and a tiny Mistral, written as the ordinary Hugging Face folders that `vlm assemble` takes."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from shards.files import sealed_output

IMAGE_SIZE = 64
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]


def vision_config() -> CLIPVisionConfig:
    """CLIP's tower at 64 px: 64 patches of 8×8, four layers 128 wide."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        projection_dim=128,
    )


def language_config(tokenizer: PreTrainedTokenizerFast) -> MistralConfig:
    """Mistral with all its parts: grouped queries (6 heads on 2), a window of 128 tokens."""
    return MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        sliding_window=128,
        # a tied vocabulary and wide first weights: with either missing, comparing an asked colour with a seen one is
        # not learned within the demo's budget
        tie_word_embeddings=True,
        initializer_range=0.06,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def write_vision(out: Path, seed: int) -> None:
    """A freshly initialised tower with its image processor."""
    torch.manual_seed(seed)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    tower = CLIPVisionModel(vision_config())
    with torch.no_grad():
        positions = tower.embeddings.position_embedding.weight
        positions[1:] = sinusoids_2d(IMAGE_SIZE // tower.config.patch_size, positions.shape[1])
    with sealed_output(out):
        tower.save_pretrained(out)
        CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side).save_pretrained(out)


def sinusoids_2d(side: int, width: int) -> Tensor:
    """Initial positions of a square of patches, (side · side, width); learned from there on.

    Source: He et al., "Masked Autoencoders Are Scalable Vision Learners" (2022). A few thousand images are too few
    to find the geometry from noise.
    """
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = [axis.flatten()[:, None] * frequencies for axis in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1) / 2


def write_language(out: Path, texts: Iterable[str], seed: int) -> None:
    """A freshly initialised Mistral with a byte-level BPE tokenizer trained on `texts`."""
    tokenizer = train_tokenizer(texts)
    torch.manual_seed(seed)
    with sealed_output(out):
        MistralForCausalLM(language_config(tokenizer)).save_pretrained(out)
        tokenizer.save_pretrained(out)


def train_tokenizer(texts: Iterable[str], size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `size` tokens; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # words stand behind a space in questions and at the start of answers alike
    tokenizer.train_from_iterator([form for text in texts for form in (text, f" {text}")], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["[INST]", "[/INST]"],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
