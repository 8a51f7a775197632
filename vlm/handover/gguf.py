"""A merged model as GGUF files for llama.cpp, by the converters of a checkout of it.

No package has them: the package gguf holds the format alone. They run in a process of their own, which may be another
environment's Python. convert_hf_to_gguf.py writes the language model; its --mmproj knows no CLIP tower with LLaVA's
projector, so llama.cpp's older converter of image encoders gets both as files.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput, plain
from shards.files import atomic_file, read_json, sealed_output, write_atomic, write_json
from vlm.data.template import IMAGE
from vlm.handover.projector_file import settings, tensors
from vlm.merge.companions import CHAT, own_template
from vlm.merge.layout import SINGLE, Layout, header_bytes
from vlm.stop import Fault

LANGUAGE, IMAGES = "convert_hf_to_gguf.py", "tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py"
MODEL = "model.gguf"
# converted as LlamaModel there
_TEXT = ("llama", "mistral", "mixtral")
_TOWER = "model.vision_tower."


def write_gguf(model: Path, converter: Path, out: Path, python: str = sys.executable) -> list[Path]:
    """Write the language model and the image encoder (mmproj) as GGUF; their paths.

    `converter` is a checkout of llama.cpp, `python` one that has its requirements. BadInput where either is missing, or
    for a model that llama.cpp has no such form of; Fault with its last line where a converter fails.
    """
    layout = Layout.read(model)
    _check(layout, converter, python)
    with sealed_output(out):
        parts = out / ".parts"
        shutil.rmtree(parts, ignore_errors=True)
        try:
            language = _language(model, parts / "language")
            _run([python, str(converter / LANGUAGE), language, "--outfile", str(out / MODEL), "--outtype", "auto"])
            _run([python, str(converter / IMAGES), *_encoder(layout, parts), "--output-dir", str(out)])
        finally:
            shutil.rmtree(parts, ignore_errors=True)
    return sorted(out.glob("*.gguf"))


def _check(layout: Layout, converter: Path, python: str) -> None:
    text, vision = (layout.config.get(name) for name in ("text_config", "vision_config"))
    kinds = [part.get("model_type") if isinstance(part, dict) else None for part in (text, vision)]
    if kinds[0] not in _TEXT or kinds[1] != "clip_vision_model":
        raise BadInput(
            f"{layout.folder}: llama.cpp's converters take a LLaVA of CLIP and one of {', '.join(_TEXT)}, not of "
            f"{plain(str(kinds[1]))} and {plain(str(kinds[0]))}"
        )
    if settings(layout)["mm_projector_type"] != "mlp2x_gelu":
        raise BadInput(f"{layout.folder}: llama.cpp knows no linear projector; assemble with --projector mlp")
    for name in (LANGUAGE, IMAGES):
        if not (converter / name).is_file():
            raise BadInput(
                f"--converter {converter}: holds no {name}; git clone https://github.com/ggml-org/llama.cpp and pip "
                "install -r its requirements.txt"
            )
    if shutil.which(python) is None:
        raise BadInput(f"--python {python}: no such program")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = next((line for line in reversed((done.stderr or done.stdout).splitlines()) if line.strip()), "")
        raise Fault(f"{Path(command[1]).name} ended with code {done.returncode}: {plain(said)}")


def _language(model: Path, folder: Path) -> str:
    """The model's folder by links, with a template that puts around llama.cpp's marker of an image what belongs there.

    Where a message has an image llama.cpp joins its parts itself (`concat_content_parts` in its common/chat.cpp): the
    template sees a string with <__media_…__> in it.
    """
    folder.mkdir(parents=True)
    for path in model.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    if (chat := own_template(model)) and (folder / CHAT).exists():
        before, _, after = chat.image.partition(IMAGE)
        whole = (folder / CHAT).read_text("utf-8")
        marked = (
            f"message.content | replace('<__media', {before + '<__media'!r}) | replace('__>', {'__>' + after!r}) %}}"
        )
        (folder / CHAT).unlink()
        write_atomic(folder / CHAT, whole.replace("message.content %}", marked))
    return str(folder)


def _encoder(layout: Layout, folder: Path) -> list[str]:
    """The tower as a CLIPVisionModel and the projector as LLaVA's surgery leaves it; the options that name them."""
    vision = folder / "vision"
    vision.mkdir(parents=True)
    _write_tower(layout, vision / SINGLE)
    config: Mapping[str, Any] = layout.config["vision_config"]
    layer = layout.config.get("vision_feature_layer", -2)
    write_json(vision / "config.json", {**config, "architectures": ["CLIPVisionModel"], "vision_feature_layer": layer})
    names = {"linear_1": "model.mm_projector.0", "linear_2": "model.mm_projector.2"}
    weights = tensors(layout)
    torch.save(
        {f"{names[layer]}.{part}": weights[f"{layer}.{part}"] for layer in names for part in ("weight", "bias")},
        folder / "llava.projector",
    )
    pixels = _pixels(layout.folder)
    options = [
        "--model-dir",
        str(vision),
        "--clip-model-is-vision",
        "--llava-projector",
        f"{folder / 'llava.projector'}",
    ]
    for option, key in (("--image-mean", "image_mean"), ("--image-std", "image_std")):
        options += [option, *(str(float(value)) for value in pixels[key])]
    return options


def _write_tower(layout: Layout, path: Path) -> None:
    """Under the names of CLIPVisionModel before transformers 5.6, which every version reads."""
    found = {
        "vision_model." + name.removeprefix(_TOWER).removeprefix("vision_model."): stored
        for name, stored in layout.tensors.items()
        if name.startswith(_TOWER)
    }
    with atomic_file(path) as handle:
        handle.write(header_bytes({name: (each.dtype, each.shape) for name, each in found.items()}, {"format": "pt"}))
        for stored in found.values():
            handle.write(stored.read().contiguous().view(-1).view(torch.uint8).numpy().data)


def _pixels(folder: Path) -> Mapping[str, Any]:
    path = folder / "processor_config.json"
    told = read_json(path).get("image_processor") if path.exists() else None
    return told or read_json(folder / "preprocessor_config.json")
