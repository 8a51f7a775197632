"""What a training will take, before a job is queued: parameters, FLOPs, memory per GPU, hours.

FLOPs of one sample of T tokens, of which S carry a loss, with I images of P patches:

    T · (4·N + 6·N_lora) + 12·L·d·K + 4·H·S + I · (vision + projector)

N: frozen linear parameters of the language model's layers (2 forward, 2 for the gradient that passes through);
N_lora: its trained ones (2 more for their own gradient). Where a document's s tokens are all visible, the K keys that
its queries see together are s²/2, and 12·L·d·K is 6·L·d·s a token; a window or a shared prefix makes K smaller. L
layers, d width of the queries; H head parameters, 6 instead of 4 where they are trained. vision = 2·N_v·(P + 1) +
4·L_v·d_v·(P + 1)², three times that where the tower is trained; projector = 6·N_p·P, or 2·N_p·P where it is frozen.
Nothing is computed twice: there is no activation checkpointing.

Memory of one GPU of R: weights in the recipe's dtype (÷ R in ZeRO-3); of the trained ones gradients in that dtype
(÷ R from ZeRO-2), and a float32 master copy with AdamW's two moments, 12 bytes (÷ R from ZeRO-1). What the DeepSpeed
file offloads to the CPU is left out. Activations and buffers are not counted.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, LlavaForConditionalGeneration

from shards.errors import BadInput
from vlm.config import Recipe
from vlm.data.documents import Document, Tokeniser
from vlm.data.mixture import Corpus
from vlm.data.plan import Plan
from vlm.data.template import load_template
from vlm.engine import CONFIGS, deepspeed_config
from vlm.model.adapter import PROJECTOR, trainable
from vlm.model.adapters.quantised import BYTES
from vlm.model.assemble import Assembly
from vlm.model.load import DTYPES, load_tokenizer, sliding_window

A100_TFLOPS = 312 * 0.4
_SAMPLES = 2000
_OPTIMIZER_BYTES = 12
_PARTS = ("language_model", "lm_head", "vision_tower", PROJECTOR)


@dataclass(frozen=True)
class Parameters:
    """Counts: of all weights, and by part those of linear layers as (frozen, trained)."""

    total: int
    trained: int
    linear: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Lengths:
    """Means of a sample: tokens, supervised tokens, keys seen by all queries together, images."""

    tokens: float
    supervised: float
    keys: float
    images: float
    read: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    total: int


@dataclass(frozen=True)
class Estimate:
    """The whole answer; `memory` by DeepSpeed configuration, `tflops` is what one GPU is assumed to sustain."""

    ranks: int
    dtype: str
    deepspeed: str
    parameters: Parameters
    samples: int
    lengths: Lengths
    steps: int
    tokens_per_step: float
    tflop_per_sample: float
    memory: dict[str, Memory]
    tflops: float
    tokens_per_second: float
    hours: float

    def to_json(self) -> dict[str, Any]:
        """Plain fields."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a person."""
        mean, counts = self.lengths, self.parameters
        read = "" if mean.read == self.samples else f", lengths from {mean.read:,} of them"
        share = f"{100 * self.tflops / 312:.0f} % of an A100's 312"
        return [
            f"parameters  {counts.total:,}, trained {counts.trained:,}",
            f"data        {self.samples:,} samples{read}: {mean.tokens:,.1f} tokens, {mean.supervised:,.1f} supervised",
            f"plan        {self.steps:,} steps of {self.tokens_per_step:,.0f} tokens on {self.ranks} GPU(s)",
            f"compute     {self.tflop_per_sample:.4g} TFLOP a sample, no activation checkpointing",
            f"time        {self.hours:.4g} h, {self.tokens_per_second:,.0f} tokens/s",
            f"assuming    {self.tflops:.4g} TFLOP/s sustained a GPU ({share}); another: --tflops",
            f"memory      a GPU, {self.dtype}, without activations and buffers:",
            *(
                f"  {name:14}{m.total / 2**30:9.3g} GiB = weights {m.weights / 2**30:.3g} + gradients "
                f"{m.gradients / 2**30:.3g} + optimizer {m.optimizer / 2**30:.3g}"
                f"{'  <- this recipe' if name == self.deepspeed else ''}"
                for name, m in self.memory.items()
            ),
        ]


def estimate(recipe: Recipe, ranks: int, tflops: float = A100_TFLOPS) -> Estimate:
    """What `recipe` takes on `ranks` GPUs that sustain `tflops` each. Reads the base's config.json and a share of the
    training set, no weights. Raises BadInput where training would."""
    if tflops <= 0:
        raise BadInput(f"--tflops {tflops}: must be above 0")
    folder = Path(recipe.model.base)
    if not recipe.model.base or not (folder / "config.json").exists():
        raise BadInput(f"model.base: {recipe.model.base or '(empty)'} is no model folder; make one with `vlm assemble`")
    dataset = Corpus.open(recipe.data.train, recipe.data.mix)
    plan = Plan(
        tuple(dataset.shard_sizes), recipe.data.batch_size, recipe.optim.epochs, recipe.seed, parts=dataset.parts
    )
    steps = min(plan.steps, recipe.optim.max_steps or plan.steps)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assembly = Assembly.read(folder)
    parameters = count_parameters(recipe, config, assembly)
    lengths = _lengths(recipe, dataset, folder, assembly)
    flop = flop_per_sample(parameters, lengths, config)
    samples = min(steps * recipe.data.batch_size, round(plan.total * recipe.optim.epochs))
    return Estimate(
        ranks=ranks,
        dtype=recipe.model.dtype,
        deepspeed=recipe.engine.deepspeed,
        parameters=parameters,
        samples=len(dataset),
        lengths=lengths,
        steps=steps,
        tokens_per_step=lengths.tokens * recipe.data.batch_size,
        tflop_per_sample=flop / 1e12,
        memory=_memory(recipe, parameters, ranks),
        tflops=tflops,
        tokens_per_second=tflops * 1e12 * ranks * lengths.tokens / flop,
        hours=samples * flop / (tflops * 1e12 * ranks) / 3600,
    )


def count_parameters(recipe: Recipe, config: Any, assembly: Assembly) -> Parameters:
    """Counts of the model as training would build it, from shapes alone (torch's meta device)."""
    with torch.device("meta"):
        model = trainable(LlavaForConditionalGeneration(config), recipe.adapter, assembly)
    linear = dict.fromkeys(_PARTS, (0, 0))
    for name, module in model.named_modules():
        owners = name.split(".")
        # PEFT keeps the projector as it was beside the one that it trains, and never runs it
        if isinstance(module, nn.Linear | nn.Conv2d) and "original_module" not in owners:
            # the network that makes p-tuning's virtual tokens runs on them alone, once a row
            part = next((part for part in _PARTS if part in owners), None)
            if part is None:
                continue
            frozen, trained = linear[part]
            size, learns = module.weight.numel(), module.weight.requires_grad
            linear[part] = (frozen, trained + size) if learns else (frozen + size, trained)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Parameters(sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns), linear)


def flop_per_sample(parameters: Parameters, lengths: Lengths, config: Any) -> float:
    """FLOPs of a mean sample, forward and backward, by the formula above."""
    text, vision = config.text_config, config.vision_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = text.num_attention_heads * head_dim
    n = parameters.linear
    language = lengths.tokens * (4 * n["language_model"][0] + 6 * n["language_model"][1])
    attention = 12 * text.num_hidden_layers * width * lengths.keys
    head = lengths.supervised * (4 * n["lm_head"][0] + 6 * n["lm_head"][1])
    patches = (vision.image_size // vision.patch_size) ** 2
    frozen, trained = n["vision_tower"]
    pixels = 4 * vision.num_hidden_layers * vision.hidden_size * (patches + 1) ** 2
    tower = (2 * (frozen + trained) * (patches + 1) + pixels) * (3 if trained else 1)
    projector = patches * (2 * n[PROJECTOR][0] + 6 * n[PROJECTOR][1])
    return float(language + attention + head + lengths.images * (tower + projector))


def _lengths(recipe: Recipe, dataset: Corpus, folder: Path, assembly: Assembly) -> Lengths:
    template = load_template(recipe.data.template or assembly.template)
    tokeniser = Tokeniser(
        load_tokenizer(folder), template, assembly.image_tokens, recipe.data.turns, recipe.data.max_length
    )
    read = min(len(dataset), _SAMPLES)
    window = sliding_window(folder)
    documents = (tokeniser.document(dataset.read(i * len(dataset) // read)) for i in range(read))
    rows = [(len(d), d.supervised, _keys(d, window), d.images) for d in documents]
    tokens, supervised, keys, images = (float(mean) for mean in np.mean(rows, axis=0))
    return Lengths(tokens, supervised, keys, images, read)


def _keys(document: Document, window: int | None) -> int:
    """Keys that the queries of a document see together."""
    seen = document.position_ids + 1
    return int(np.minimum(seen, window).sum() if window else seen.sum())


def _memory(recipe: Recipe, parameters: Parameters, ranks: int) -> dict[str, Memory]:
    names = sorted({recipe.engine.deepspeed, *(path.stem for path in CONFIGS.glob("*.json"))})
    return {name: _memory_of(recipe, name, parameters, ranks) for name in names}


def _memory_of(recipe: Recipe, name: str, parameters: Parameters, ranks: int) -> Memory:
    engine = replace(recipe.engine, deepspeed=name)
    zero = deepspeed_config(engine, recipe.optim, recipe.model.dtype, ranks).get("zero_optimization", {})
    stage, item = zero.get("stage", 0), DTYPES[recipe.model.dtype].itemsize
    small = parameters.linear["language_model"][0] if recipe.adapter.quantises else 0
    weights = int((parameters.total - small) * item + small * BYTES) // (ranks if stage >= 3 else 1)
    gradients = parameters.trained * item // (ranks if stage >= 2 else 1)
    optimizer = parameters.trained * _OPTIMIZER_BYTES // (ranks if stage >= 1 else 1)
    weights = 0 if zero.get("offload_param", {}).get("device", "none") != "none" else weights
    optimizer = 0 if zero.get("offload_optimizer", {}).get("device", "none") != "none" else optimizer
    return Memory(weights, gradients, optimizer, weights + gradients + optimizer)
