"""The packed training step: a flat row in, the summed loss of its supervised tokens out."""

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from vlm.data.batch import MicroBatch
from vlm.data.documents import IGNORE
from vlm.data.images import Pixels
from vlm.model.adapters.prompts import put_prompts
from vlm.model.loss import HeadLoss


class PackedLlava(nn.Module):
    """Wraps a LLaVA model (with or without a PEFT adapter inside) for training on flat rows.

    `model` is the module DeepSpeed shards; `llava` is the Hugging Face model in it, reached through its submodules
    so that ZeRO-3's gathering hooks fire.
    """

    def __init__(self, model: nn.Module, pixels: Pixels) -> None:
        super().__init__()
        self.model, self.pixels = model, pixels
        self.loss = HeadLoss(lambda: self.llava.lm_head)
        # from_pretrained leaves modules in evaluation mode, in which no block is checkpointed
        self.train()

    @property
    def llava(self) -> LlavaForConditionalGeneration:
        """The Hugging Face model under the adapter."""
        inner = next(m for m in self.model.modules() if isinstance(m, LlavaForConditionalGeneration))
        assert isinstance(inner, LlavaForConditionalGeneration)
        return inner

    def forward(self, batch: MicroBatch) -> Tensor:
        """Sum (not mean) of next-token cross-entropy over the row's supervised tokens, a float32 scalar."""
        hidden_TD = self.hidden(batch)
        supervised = (batch.labels != IGNORE).nonzero().squeeze(1)
        # an empty selection still runs the head: under ZeRO-3 every rank must gather the same parameters equally often
        loss: Tensor = self.loss(hidden_TD[supervised], batch.labels[supervised])
        return loss

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Last hidden states (T, hidden) of the row, after the final norm."""
        llava = self.llava
        embeds_TD = llava.get_input_embeddings()(batch.input_ids)
        features_ID = self.image_features(batch, embeds_TD.dtype)
        at_image = batch.input_ids == llava.config.image_token_id
        if len(batch.pixels):
            embeds_TD = embeds_TD.masked_scatter(at_image[:, None], features_ID)
        else:
            embeds_TD = embeds_TD + (features_ID * 0).sum()
        row = put_prompts(self.model, embeds_TD, batch.position_ids, batch.layout)
        outputs = llava.model.language_model(
            inputs_embeds=row.embeds_TD[None],
            position_ids=row.position_ids[None],
            attention_mask=None,
            use_cache=False,
            layout=row.layout,
        )
        hidden: Tensor = outputs.last_hidden_state[0]
        return hidden if row.own is None else hidden[row.own]

    def image_features(self, batch: MicroBatch, dtype: torch.dtype) -> Tensor:
        """Projected image tokens (images · tokens, hidden). A row without images runs a blank one.

        For ZeRO-3's sake.
        """
        pixels = batch.pixels if len(batch.pixels) else batch.pixels.new_zeros(1, *batch.pixels.shape[1:])
        features = self.llava.model.get_image_features(pixel_values=self.pixels.normalise(pixels, dtype))
        return torch.cat(features.pooler_output).to(dtype)
