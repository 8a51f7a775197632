"""Train the tiny vision tower against captions, as CLIP was.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021). Captions
repeat here (a few dozen distinct ones), so equal captions in a batch count as positives of each other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionModel, PreTrainedTokenizerBase

from shards.dataset import ShardDataset
from shards.sample import Text
from vlm.data.images import Pixels, flip_shift


@dataclass(frozen=True)
class Settings:
    """Of the contrastive stage."""

    epochs: int = 16
    batch_size: int = 32
    lr: float = 5e-4
    weight_decay: float = 0.05
    shift: int = 6
    seed: int = 0


class TwoTowers(nn.Module):
    """CLIP's training head around the vision tower; only the tower is kept afterwards."""

    def __init__(self, tower: CLIPVisionModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        width = tower.config.hidden_size
        self.tower = tower
        self.project = nn.Linear(width, tower.config.projection_dim, bias=False)
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=32,
            )
        )
        self.project_text = nn.Linear(width, tower.config.projection_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixels_BCHW: Tensor, ids_ST: Tensor) -> Tensor:
        """Scaled cosine similarities (images B, distinct captions S); `ids_ST` ends with an end token in every row."""
        image = F.normalize(self.project(self.tower(pixels_BCHW).pooler_output), dim=-1)
        # pooled here: for an end token of id 2 the library's own pooling takes the highest token id instead
        text_SD = self.text(input_ids=ids_ST).last_hidden_state[:, -1]
        text = F.normalize(self.project_text(text_SD), dim=-1)
        similarity: Tensor = self.log_scale.exp().clamp(max=100) * image @ text.T
        return similarity


def contrastive_loss(similarity_BS: Tensor, caption_B: Tensor) -> Tensor:
    """Symmetric InfoNCE of B images against the S distinct captions of the batch; `caption_B` indexes the latter."""
    to_text = F.cross_entropy(similarity_BS, caption_B)
    match_SB = F.one_hot(caption_B, similarity_BS.shape[1]).T.float()
    log_share_SB = similarity_BS.T.log_softmax(dim=-1)
    to_image = -(match_SB * log_share_SB).sum(-1) / match_SB.sum(-1)
    return (to_text + to_image.mean()) / 2


def train_tower(
    tower: CLIPVisionModel,
    tokenizer: PreTrainedTokenizerBase,
    captions: Path,
    pixels: Pixels,
    settings: Settings,
    log: Callable[[int, float], None],
) -> None:
    """Train `tower` in place on the caption shards; `log(epoch, mean loss)` after every epoch."""
    torch.manual_seed(settings.seed)
    images, texts = _load(captions, pixels)
    distinct = sorted(set(texts))
    ids_ST = _encode(tokenizer, distinct)
    caption_of = np.array([distinct.index(t) for t in texts])
    towers = TwoTowers(tower, tokenizer).train()
    optimizer = torch.optim.AdamW(towers.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    steps = settings.epochs * (len(images) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.1)
    for epoch in range(settings.epochs):
        rng = np.random.default_rng([settings.seed, epoch])
        order = rng.permutation(len(images))
        total = 0.0
        batches = len(images) // settings.batch_size
        for rows in np.array_split(order[: batches * settings.batch_size], batches):
            batch = np.stack([flip_shift(images[i], rng, settings.shift) for i in rows])
            present, caption_B = np.unique(caption_of[rows], return_inverse=True)
            similarity = towers(pixels.normalise(torch.from_numpy(batch), torch.float32), ids_ST[present])
            loss = contrastive_loss(similarity, torch.from_numpy(caption_B))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        log(epoch, total / batches)


def _load(captions: Path, pixels: Pixels) -> tuple[list[np.ndarray], list[str]]:
    images, texts = [], []
    for sample in ShardDataset.open(captions):
        assert sample.image is not None
        caption = sample.messages[-1].content[0]
        assert isinstance(caption, Text)
        images.append(pixels.decode(sample.image))
        texts.append(caption.text)
    return images, texts


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [[bos, *tokenizer.encode(t, add_special_tokens=False), eos] for t in texts]
    width = max(map(len, rows))
    return torch.tensor([row + [eos] * (width - len(row)) for row in rows])
