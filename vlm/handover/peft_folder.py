"""An adapter alone, as PEFT and a hub take it: `PeftModel.from_pretrained(base, folder)`."""

import shutil
from pathlib import Path

from shards.errors import BadInput, plain
from shards.files import read_json, sealed_output, write_atomic, write_json
from vlm.merge.adapter import CONFIG, WEIGHTS, Adapter
from vlm.merge.bases.dequantise import quantised
from vlm.merge.card import HUB_NAME, Card
from vlm.merge.changes import finite
from vlm.merge.layout import Layout, WeightFile
from vlm.merge.runs import check_base

# what training writes of which PEFT has the tensors' names; the bottleneck's folder is ours alone
_BESIDE_WEIGHTS, _PROMPTS = ("LORA", "IA3"), ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def peft_folder(adapter: Path, base: Path, base_name: str, out: Path, card: Card) -> None:
    """Write `out` with the adapter's weights as they are, a trained projector and tokens among them.

    `base_name` is where others find its base: a name of the hub or a path. BadInput where PEFT knows no such adapter,
    or it is not of `base`.
    """
    check_base_name(base_name)
    config = read_json(adapter / CONFIG, max_bytes=2**22)
    if not isinstance(config, dict) or config.get("peft_type") not in (*_BESIDE_WEIGHTS, *_PROMPTS):
        kind = plain(str(config.get("peft_type"))) if isinstance(config, dict) else "garbage"
        known = ", ".join((*_BESIDE_WEIGHTS, *_PROMPTS))
        raise BadInput(f"{adapter / CONFIG}: {kind} is no adapter that PEFT loads (it is one of {known})")
    check_base(adapter, base)
    if config["peft_type"] in _BESIDE_WEIGHTS and not quantised(base):
        Adapter.read(adapter).check_fit(Layout.read(base))
    for stored in WeightFile.read(adapter / WEIGHTS).tensors:
        for block in stored.blocks():
            finite(stored, block)
    with sealed_output(out):
        shutil.copyfile(adapter / WEIGHTS, out / WEIGHTS)
        write_json(out / CONFIG, {**config, "base_model_name_or_path": base_name, "inference_mode": True})
        write_atomic(out / "README.md", card.text())


def check_base_name(name: str) -> None:
    """BadInput unless others may find a base by it."""
    if not HUB_NAME.fullmatch(name) and not (Path(name).is_absolute() and name.isprintable()):
        raise BadInput(f"--base-name {plain(name)}: a hub's owner/name is wanted, or an absolute path")
