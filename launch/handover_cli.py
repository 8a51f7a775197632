"""`vlm handover`: what others load of a model or an adapter, and where it is put for them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.options import Json, Licence, Out, quiet, show
from vlm.stop import room_on_disk

handover_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Hand a model or an adapter over: PEFT, vLLM's LoRA, LLaVA's projector, GGUF, a hub.\n\n"
    "Example: vlm handover vllm runs/demo --base models/base --out served",
)
Given = Annotated[
    Path, typer.Argument(metavar="RUN|ADAPTER", help="A run, whose newest checkpoint counts, or a folder.")
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A merged or an assembled model.")]
Base = Annotated[Path, typer.Option("--base", help="Folder of the base that the adapter was trained on.")]
BaseName = Annotated[
    str, typer.Option("--base-name", help="Where others find the base: owner/name, or an absolute path.")
]


def _found(given: Path) -> tuple[Path, Path | None]:
    """The adapter's folder, and that of its run."""
    from vlm.merge.runs import find_adapter, run_of

    adapter = find_adapter(given)
    return adapter, run_of(adapter)


@handover_app.command("peft")
def peft(given: Given, base: Base, base_name: BaseName, out: Out, licence: Licence = "", as_json: Json = False) -> None:
    """Write the adapter alone, for PEFT.

    PeftModel.from_pretrained(base, OUT) loads it, with its trained projector and tokens.

    Example: vlm handover peft runs/demo --base models/base --base-name me/llava-base --out adapter
    """
    quiet()
    from vlm.handover.peft_folder import peft_folder
    from vlm.merge.card import Card

    adapter, run = _found(given)
    card = Card.of(base, run, [adapter], licence=licence, base_names=[base_name], library="peft")
    with room_on_disk(out):
        peft_folder(adapter, base, base_name, out, card)
    show({"folder": str(out), "adapter": str(adapter)}, as_json, f"{out}: {adapter}")


@handover_app.command("vllm")
def vllm(
    given: Given,
    base: Base,
    out: Out,
    base_name: BaseName = "",
    template: Annotated[str, typer.Option(help="Chat template of OUT/base; the run's where left out.")] = "",
    licence: Licence = "",
    as_json: Json = False,
) -> None:
    """Write what vLLM's LoRA loading takes.

    OUT/lora, and OUT/base where more than LoRA was trained. It prints the command that serves them.

    Example: vlm handover vllm runs/demo --base models/base --out served
    """
    quiet()
    from launch.progress import Progress
    from vlm.handover.vllm import vllm_folders
    from vlm.merge.card import Card
    from vlm.merge.companions import Facts
    from vlm.merge.runs import template_of

    adapter, run = _found(given)
    card = Card.of(base, run, [adapter], licence=licence, base_names=[base_name] if base_name else (), library="peft")
    total, done = sum(file.stat().st_size for file in base.glob("*.safetensors")), 0
    with Progress("bytes") as progress, room_on_disk(out):

        def advance(read: int) -> None:
            nonlocal done
            done += read
            progress.of(done, total)

        facts = Facts(template or template_of(run), Card.of(base, run, [adapter], licence=licence).text())
        served = vllm_folders(base, adapter, out, facts, card, base_name, advance)
    told = {"base": str(served.base), "lora": str(served.lora), "max_lora_rank": served.max_lora_rank}
    show(told, as_json, served.command)


@handover_app.command("projector")
def projector(
    model: Model,
    out: Out,
    adapter: Annotated[Path | None, typer.Option(help="A run or an adapter of it, whose projector counts.")] = None,
    as_json: Json = False,
) -> None:
    """Write the projector as the original LLaVA has it.

    mm_projector.bin, and the same as safetensors.

    Example: vlm handover projector merged --out projector
    """
    from vlm.handover.projector_file import write_projector

    with room_on_disk(out):
        told = write_projector(model, out, _found(adapter)[0] if adapter else None)
    show({"folder": str(out), **told}, as_json, f"{out}: {told['mm_projector_type']}")


@handover_app.command("gguf")
def gguf(
    model: Model,
    out: Out,
    converter: Annotated[Path, typer.Option(help="A checkout of llama.cpp, whose converters are run.")],
    python: Annotated[str, typer.Option(help="The Python that has llama.cpp's requirements.")] = sys.executable,
    as_json: Json = False,
) -> None:
    """Write a merged model as GGUF, for llama.cpp.

    Two files: the language model, and the image encoder.

    Example: vlm handover gguf merged --converter ~/llama.cpp --python ~/llama.cpp/venv/bin/python --out gguf
    """
    from vlm.handover.gguf import write_gguf

    with room_on_disk(out):
        files = [str(path) for path in write_gguf(model, converter, out, python)]
    show({"files": files}, as_json, "\n".join(files))


@handover_app.command("push")
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `vlm` has written.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model's name on the hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a folder to a hub, with the token in HF_TOKEN.

    Nothing else of `vlm handover` touches the network.

    Example: vlm handover push merged me/llava-saiga
    """
    from vlm.handover.push import push as run_push

    address = run_push(folder, name, public)
    show({"address": address}, as_json, address)
