"""What a sample costs a rank, in units of one text token: what the dealing balances."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.files import read_json


@dataclass(frozen=True)
class Cost:
    """`tokens + attention · keys + image · images`, where keys are what all queries of a document see together.

    The default counts tokens alone. A document of T tokens has T²/2 keys, with a window W shorter than it
    W·T - W²/2; the prefix that turns share is not told apart.
    """

    image: float = 0.0
    attention: float = 0.0
    window: int | None = None

    def of(self, tokens: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Costs, float64 (n,), of samples with so many tokens and images."""
        seen = np.minimum(tokens, self.window) if self.window else tokens
        keys = seen * (tokens - seen / 2)
        return np.asarray(tokens + self.attention * keys + self.image * images, dtype=np.float64)

    @classmethod
    def of_model(cls, folder: Path, tower_trained: bool = False) -> "Cost":
        """From a model folder's config.json, by the FLOPs of forward and backward over a frozen language model.

        4·N a token, 12·L·d a key, 2·N_v·P + 4·L_v·d_v·P² an image of P patches, three times that where the tower is
        trained. Adapters and projector are left out: less than a hundredth.
        """
        config = read_json(folder / "config.json")
        text, vision = config["text_config"], config["vision_config"]
        token = 4 * _layer(text) * text["num_hidden_layers"]
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        layers, width = vision["num_hidden_layers"], vision["hidden_size"]
        tower = layers * (2 * _layer(vision, gated=False) * patches + 4 * width * patches**2)
        heads = text["num_attention_heads"]
        queries = heads * (text.get("head_dim") or text["hidden_size"] // heads)
        return cls(
            image=tower * (3 if tower_trained else 1) / token,
            attention=12 * text["num_hidden_layers"] * queries / token,
            window=text.get("sliding_window"),
        )


def _layer(config: dict[str, Any], gated: bool = True) -> int:
    # linear parameters that one token meets in a layer
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    key_value = config.get("num_key_value_heads") or heads
    experts = config.get("num_experts_per_tok") or 1
    feed_forward = (3 if gated else 2) * width * config["intermediate_size"] * experts
    return int(2 * width * head * (heads + key_value) + feed_forward)
