"""One peer's trainer; `benchmarks.peers` starts it under the Python of an environment that has the peer's packages.

python peer_driver.py FOLDER, with FOLDER/task.json, samples.safetensors, model/ and adapter/.

It imports the peer's packages alone. A line on standard input lets one optimizer step go; a line of JSON on standard
output tells its seconds and its loss. So several processes can take turns step by step.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

# what libraries print must not come between the lines of the protocol
TOLD = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def main(folder: Path) -> None:
    """Train until standard input ends."""
    task = json.loads((folder / "task.json").read_text())
    try:
        _train(folder, task)
    except ImportError as error:
        tell(failed=f"{error.name or error} is not installed")
    except Exception as error:
        tell(failed=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        raise


def tell(**content: Any) -> None:
    """A line for the benchmark."""
    TOLD.write(json.dumps(content) + "\n")


def _train(folder: Path, task: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1 if task["device"] == "cpu" else torch.get_num_threads())
    rows = read_rows(folder, task)
    model = load_model(folder, task)
    common = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": task["micro"],
        "gradient_accumulation_steps": task["accumulate"],
        "max_steps": task["steps"],
        "learning_rate": task["lr"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": task["dtype"] == "bfloat16",
        "use_cpu": task["device"] == "cpu",
        "gradient_checkpointing": task["checkpoint"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if task["checkpoint"] else None,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
    }
    make = {"transformers": _transformers, "trl": _trl}[task["trainer"]]
    trainer = make(model, common, rows, Collator(task))
    tell(versions={name: version(name) for name in ("torch", "transformers", "peft", task["trainer"])})
    trainer.train()


def read_rows(folder: Path, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Samples in the order of training: `input_ids`, `labels` (their own positions, -100 elsewhere), `pixels`."""
    from safetensors.torch import load_file

    held = load_file(folder / "samples.safetensors")
    mean, std = (held[name].view(1, 3, 1, 1) for name in ("mean", "std"))
    # made before the clock runs, as a data set that was prepared beforehand would have them
    pixels = (held["pixels"].float() / 255 - mean) / std
    bounds = held["bounds"].tolist()
    rows = [
        {"input_ids": held["ids"][a:b], "labels": held["labels"][a:b], "pixels": pixels[i]}
        for i, (a, b) in enumerate(pairwise(bounds))
    ]
    return [rows[i] for i in task["order"]]


def load_model(folder: Path, task: dict[str, Any]) -> Any:
    """The LLaVA with its LoRA adapter, both from disk."""
    import torch
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    dtype = getattr(torch, task["dtype"])
    llava = LlavaForConditionalGeneration.from_pretrained(folder / "model", dtype=dtype, attn_implementation="sdpa")
    llava.config.use_cache = llava.config.text_config.use_cache = False
    if task["checkpoint"]:
        llava.enable_input_require_grads()
    model = PeftModel.from_pretrained(llava.to(task["device"]), folder / "adapter", is_trainable=True)
    return model.to(task["device"])


class Collator:
    """A batch padded to its longest sample, as LLaVA's own collator makes it."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.pad = task["pad"]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ids, labels, pixels = ([torch.as_tensor(row[key]) for row in rows] for key in ("input_ids", "labels", "pixels"))
        input_ids = pad_sequence(ids, batch_first=True, padding_value=self.pad)
        attention_mask = pad_sequence([torch.ones_like(x) for x in ids], batch_first=True)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "pixel_values": torch.stack(pixels),
        }


def _stepwise(base: type) -> Any:
    """`base`, a Trainer, that takes samples in order and stops before every step until it may go."""
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    class Stepwise(base):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            loss = super().training_step(*arguments, **named)
            turns.losses.append(loss.detach())
            return loss

    class Turns(TrainerCallback):
        def __init__(self) -> None:
            self.losses: list[Any] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            loss = float(sum(self.losses))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            tell(wall=time.perf_counter() - self.wall, cpu=time.process_time() - self.cpu, loss=loss, peak=peak)
            self.losses.clear()
            self.wait()

        def wait(self) -> None:
            if not sys.stdin.readline():
                os._exit(0)
            self.wall, self.cpu = time.perf_counter(), time.process_time()

    turns = Turns()
    return lambda **named: Stepwise(callbacks=[turns], **named)


def _transformers(model: Any, common: dict[str, Any], rows: list[dict[str, Any]], collator: Collator) -> Any:
    from transformers import Trainer, TrainingArguments

    return _stepwise(Trainer)(model=model, args=TrainingArguments(**common), train_dataset=rows, data_collator=collator)


def _trl(model: Any, common: dict[str, Any], rows: list[dict[str, Any]], collator: Collator) -> Any:
    from datasets import Dataset  # type: ignore[import-untyped]
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    # the samples are token ids already; TRL wants a tokenizer nevertheless
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    columns = {key: [row[key].tolist() for row in rows] for key in ("input_ids", "labels")}
    pixels = [row["pixels"] for row in rows]
    dataset = Dataset.from_dict({**columns, "number": list(range(len(rows)))})

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        return collator([{**sample, "pixels": pixels[sample["number"]]} for sample in samples])

    settings = SFTConfig(**common, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    return _stepwise(SFTTrainer)(
        model=model, args=settings, train_dataset=dataset, data_collator=collate, processing_class=tokenizer
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
