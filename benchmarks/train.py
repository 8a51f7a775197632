"""One LoRA step on flat rows beside the same step in plain transformers (C1), and how exactly both agree (C2).

python -m benchmarks.train --out benchmarks/results/train.json

Every round runs each way once, in turn, on the same 16 samples of random tokens and pixels; the padded batch is half
padding. Times are CPU time of one thread, so that what else the machine does counts little. The gate is the loss: ways
that do not agree on it are not compared. The limit beside a figure is the ratio of the ways' arithmetic, matrix
products and attention alone.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from benchmarks.shards import describe_machine
from shards.files import write_json
from vlm.data.batch import MicroBatch, pack
from vlm.data.documents import IGNORE, Document
from vlm.data.images import Pixels
from vlm.model.attention import PACKED
from vlm.model.packed import PackedLlava

SAMPLES = 16
IMAGE_ID = 4
PIXELS = Pixels(56, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
IMAGE_TOKENS = 49


@dataclass(frozen=True)
class Shape:
    """A language model's sizes."""

    family: str = "mistral"
    hidden: int = 384
    intermediate: int = 1024
    layers: int = 4
    heads: int = 6
    key_heads: int = 2
    vocabulary: int = 8192
    window: int | None = 4096


@dataclass(frozen=True)
class Figure:
    """Median of its rounds; the goal it should reach and the limit that arithmetic sets."""

    name: str
    value: float
    unit: str = ""
    rounds: tuple[float, ...] = ()
    goal: str = ""
    limit: str = ""


Way = Callable[[], Tensor]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5, help="times that each way is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = [
        *speed("", Shape(), options.rounds),
        # Mistral-7B's head holds 1.9 % of what its layers do: this one's vocabulary is as small beside its layers
        *speed(", head of 2 %", Shape(vocabulary=320), options.rounds),
        *exactness(),
    ]
    machine = describe_machine() | {"torch": torch.__version__, "transformers": transformers.__version__}
    show(figures, f"{machine['cpu']}, one thread, torch {machine['torch']}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, {"machine": machine, "figures": [asdict(f) for f in figures]})


def build_model(
    shape: Shape, attention: str, dtype: torch.dtype = torch.float32, vision: CLIPVisionConfig | None = None
) -> LlavaForConditionalGeneration:
    """A LLaVA of random weights, the same for the same shape."""
    torch.manual_seed(0)
    text = transformers.AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.hidden // shape.heads,
        sliding_window=shape.window,
        pad_token_id=0,
    )
    vision = vision or CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=8
    )
    tokens = (vision.image_size // vision.patch_size) ** 2
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID, image_seq_length=tokens)
    config.use_cache = config.text_config.use_cache = False
    back_ends = {"text_config": attention, "vision_config": "sdpa"}
    return LlavaForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=back_ends)


def with_lora(model: LlavaForConditionalGeneration, r: int = 16) -> nn.Module:
    """LoRA on all linear layers of the language model, and the projector trained."""
    torch.manual_seed(1)
    model.requires_grad_(False)
    targets = r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj"
    lora = LoraConfig(r=r, target_modules=targets, modules_to_save=["multi_modal_projector"], init_lora_weights=False)
    return get_peft_model(model, lora)


def documents(
    lengths: Sequence[int], vocabulary: int, image_tokens: int = IMAGE_TOKENS, side: int = PIXELS.size
) -> tuple[list[Document], list[np.ndarray]]:
    """Random samples: an image first, then text, of which the last quarter carries a loss."""
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate(lengths):
        ids = rng.integers(IMAGE_ID + 1, vocabulary, length)
        ids[1 : 1 + image_tokens] = IMAGE_ID
        labels = np.full(length, IGNORE)
        answer = (length - image_tokens) // 4
        labels[-answer - 1 : -1] = ids[-answer:]
        made.append(Document(str(number), ids, labels, np.arange(length), 0, (length,), 1))
    images = [rng.integers(0, 256, (3, side, side), dtype=np.uint8) for _ in lengths]
    return made, images


def half_padding(samples: int, longest: int) -> list[int]:
    """Lengths of which the longest is `longest` and the mean half of it."""
    shares = np.linspace(0.2, 0.8, samples - 2)
    rest = (samples * longest // 2 - longest - longest // 5) / ((samples - 2) * 0.5)
    return [longest, longest // 5, *(int(share * rest) for share in shares)]


def ours(model: nn.Module, batch: MicroBatch) -> Way:
    """Mean loss of a flat row."""
    packed = PackedLlava(model, PIXELS)
    supervised = int((batch.labels != IGNORE).sum())
    return lambda: packed(batch) / supervised


def padded(
    model: nn.Module,
    made: Sequence[Document],
    images: Sequence[np.ndarray],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Way:
    """transformers on a batch padded to its longest sample."""
    longest = max(len(d) for d in made)
    ids, labels = torch.zeros(len(made), longest).long(), torch.full((len(made), longest), IGNORE)
    mask = torch.zeros(len(made), longest).long()
    for row, document in enumerate(made):
        n = len(document)
        ids[row, :n], mask[row, :n] = torch.from_numpy(document.input_ids), 1
        labels[row, 1:n] = torch.from_numpy(document.labels[:-1])
    pixels = PIXELS.normalise(torch.from_numpy(np.stack(images)).to(device), dtype)
    ids, mask, labels = (x.to(device) for x in (ids, mask, labels))
    return lambda: model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=labels).loss


def dense(model: nn.Module, batch: MicroBatch, window: int | None) -> Way:
    """transformers on the same flat row, with a (1, 1, T, T) mask that keeps samples apart."""
    sample = torch.cat([torch.full((b - a,), i) for i, (a, b) in enumerate(batch.layout.documents)])
    place = torch.arange(len(sample))
    distance = place[:, None] - place[None, :]
    mask = (distance >= 0) & (sample[:, None] == sample[None, :]) & (distance < (window or len(place)))
    labels = torch.cat([torch.tensor([IGNORE]), batch.labels[:-1]])
    pixels = PIXELS.normalise(batch.pixels, torch.float32)
    arguments = {"input_ids": batch.input_ids[None], "position_ids": batch.position_ids[None], "labels": labels[None]}
    return lambda: model(**arguments, attention_mask=mask[None, None], pixel_values=pixels).loss


def speed(note: str, shape: Shape, rounds: int) -> list[Figure]:
    """C1."""
    made, images = documents(half_padding(SAMPLES, 400), shape.vocabulary)
    batch = pack(made, images, PIXELS.size)
    plain = with_lora(build_model(shape, "sdpa"))
    flat = with_lora(build_model(shape, PACKED))
    ways = {
        "ours": ours(flat, batch),
        "padded": padded(plain, made, images),
        "dense": dense(plain, batch, shape.window),
    }
    losses = {name: float(way().detach()) for name, way in ways.items()}
    if not all(abs(loss - losses["ours"]) <= 1e-5 for loss in losses.values()):
        raise RuntimeError(f"the ways do not agree: {losses}")
    optimizers = {name: _adamw(flat if name == "ours" else plain) for name in ways}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way().backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            taken[name].append(time.process_time() - start)
    # the first round warms up
    taken = {name: times[1:] for name, times in taken.items()}
    longest, tokens = max(len(d) for d in made), batch.tokens
    supervised = int((batch.labels != IGNORE).sum())
    work = {
        "ours": language_flop(flat, tokens, sum(len(d) ** 2 / 2 for d in made), supervised, shape),
        "padded": language_flop(flat, SAMPLES * longest, SAMPLES * longest**2, SAMPLES * longest, shape),
        "dense": language_flop(flat, tokens, tokens**2, tokens, shape),
    }
    ratios = {w: [a / b for a, b in zip(taken[w], taken["ours"], strict=True)] for w in ("padded", "dense")}
    goals = {"padded": "at least 2.5", "dense": "at least 2.2"}
    named = {"padded": "padded batch ÷ ours", "dense": "packed with a 4-D mask ÷ ours"}
    return [
        figure(f"step on flat rows{note}", taken["ours"], "s"),
        *(
            figure(f"{named[w]}{note}", ratios[w], "", "" if note else goals[w], f"{work[w] / work['ours']:.2f}")
            for w in ratios
        ),
        Figure(f"padding efficiency{note}", tokens / (SAMPLES * longest)),
    ]


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)


def linear_parameters(model: nn.Module) -> tuple[int, int]:
    """Of the language model's linear layers without the head: (frozen, trained)."""
    frozen = trained = 0
    for name, module in model.named_modules():
        if "language_model" in name.split(".") and isinstance(module, nn.Linear):
            n = module.weight.numel()
            frozen, trained = (frozen, trained + n) if module.weight.requires_grad else (frozen + n, trained)
    return frozen, trained


def language_flop(model: nn.Module, tokens: int, keys: float, logits: int, shape: Shape) -> float:
    """FLOPs of a step: 4 N + 6 N_lora a token, 12 L d a key, 4 H a row of logits.

    Tower and projector cost the same whichever way is taken, and are left out.
    """
    frozen, trained = linear_parameters(model)
    attention = 12 * shape.layers * shape.hidden * keys
    return tokens * (4 * frozen + 6 * trained) + attention + logits * 4 * shape.hidden * shape.vocabulary


def exactness() -> list[Figure]:
    """C2: the flat row against every sample by itself in plain transformers, loss and LoRA gradients."""
    figures = []
    for family, window in (("mistral", 64), ("llama", None), ("mixtral", 64), ("gemma3_text", 64)):
        shape = Shape(family, 96, 192, 6, 6, 2, 512, window)
        made, images = documents([70, 200, 131, 90], shape.vocabulary)
        plain, flat = with_lora(build_model(shape, "sdpa")), with_lora(build_model(shape, PACKED))
        loss = ours(flat, pack(made, images, PIXELS.size))()
        loss.backward()
        supervised = [d.supervised for d in made]
        alone = 0.0
        for document, image in zip(made, images, strict=True):
            one = padded(plain, [document], [image])() * (document.supervised / sum(supervised))
            one.backward()
            alone += float(one.detach())
        gradients = [(p.grad, q.grad) for p, q in zip(flat.parameters(), plain.parameters(), strict=True)]
        worst = max(float((a - b).norm() / b.norm()) for a, b in gradients if a is not None and b is not None)
        named = f"{family}, window {window or 'none'}"
        figures.append(Figure(f"loss, {named}", abs(float(loss.detach()) - alone), "", (), "below 1e-6"))
        figures.append(Figure(f"gradient, relative, {named}", worst, "", (), "below 1e-5"))
        # an expert's matrix product is over tokens of all samples: its rounding depends on how many there are
        goal = "below 1e-5" if family == "mixtral" else "0"
        figures.append(Figure(f"other samples changed, {named}", _leak(flat, made, images, window), "", (), goal))
    return figures


def _leak(model: nn.Module, made: list[Document], images: list[np.ndarray], window: int | None) -> float:
    """Largest change of the other samples' states when one sample's tokens change."""
    disturbed = copy.deepcopy(made)
    text = disturbed[1].input_ids != IMAGE_ID
    disturbed[1].input_ids[text] = 7
    packed = PackedLlava(model, PIXELS)
    with torch.inference_mode():
        before, after = (packed.hidden(pack(d, images, PIXELS.size)) for d in (made, disturbed))
    start, end = len(made[0]), len(made[0]) + len(made[1])
    changed = (before - after).abs()
    return float(max(changed[:start].max(), changed[end:].max()))


def figure(name: str, rounds: list[float], unit: str, goal: str = "", limit: str = "") -> Figure:
    """The median of `rounds`."""
    return Figure(name, statistics.median(rounds), unit, tuple(round(value, 4) for value in rounds), goal, limit)


def show(figures: Sequence[Figure], title: str) -> None:
    """Print a table."""
    table = Table(title=title)
    for column in ("", "median", "rounds", "goal", "limit"):
        table.add_column(column)
    for f in figures:
        spread = f"{min(f.rounds):.3g} to {max(f.rounds):.3g}" if f.rounds else ""
        table.add_row(f.name, f"{f.value:.3g} {f.unit}".strip(), spread, f.goal, f.limit)
    Console().print(table)


if __name__ == "__main__":
    main()
