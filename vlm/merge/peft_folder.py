"""An adapter alone, as PEFT and a hub take it: `PeftModel.from_pretrained(base, folder)`."""

import shutil
from pathlib import Path

from shards.errors import BadInput, plain
from shards.files import read_json, sealed_output, write_atomic, write_json
from vlm.merge.adapter import CONFIG, WEIGHTS
from vlm.merge.card import Card
from vlm.merge.layout import WeightFile

# of what training writes; the bottleneck's folder is ours alone
_KNOWN = ("LORA", "IA3", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def peft_folder(adapter: Path, base_name: str, out: Path, card: Card) -> None:
    """Write `out` with the adapter's weights as they are, a trained projector and tokens among them.

    `base_name` is where others find its base: a name of the hub or a path. BadInput where PEFT knows no such adapter.
    """
    config = read_json(adapter / CONFIG, max_bytes=2**22)
    if not isinstance(config, dict) or config.get("peft_type") not in _KNOWN:
        kind = plain(str(config.get("peft_type"))) if isinstance(config, dict) else "garbage"
        raise BadInput(f"{adapter / CONFIG}: {kind} is no adapter that PEFT loads (it is one of {', '.join(_KNOWN)})")
    WeightFile.read(adapter / WEIGHTS)
    with sealed_output(out):
        shutil.copyfile(adapter / WEIGHTS, out / WEIGHTS)
        write_json(out / CONFIG, {**config, "base_model_name_or_path": base_name, "inference_mode": True})
        write_atomic(out / "README.md", card.text())
