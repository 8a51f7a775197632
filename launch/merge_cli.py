"""`vlm merge`: an adapter, or several, into a base, proven equal; of a recipe, or of folders that are named."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from launch.options import Json, Licence, quiet, show
from shards.errors import BadInput

if TYPE_CHECKING:
    from vlm.merge.combine import Combination
    from vlm.merge.plan import MergePlan
    from vlm.merge.run import Origin, Tell

Given = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE [key=value]... | ADAPTER...",
        help="A recipe and keys of it, or, with --base, folders of adapters, checkpoints or runs.",
        show_default=False,
    ),
]
Base = Annotated[Path | None, typer.Option("--base", help="Model folder that the adapters were trained on.")]
Place = Annotated[Path | None, typer.Option("--out", help="Folder to write; of a recipe RUN/merged by default.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; each tensor's own where left out.")]
Weights = Annotated[str, typer.Option(help="A number for each adapter, with commas; equal ones where left out.")]
Combine = Annotated[
    str,
    typer.Option(
        help="How several become one: cat (default), svd, linear, ties, dare_linear, dare_ties, magnitude_prune, and "
        "all but cat, svd and linear with _svd."
    ),
]
Density = Annotated[float | None, typer.Option(help="Share that is kept, for the kinds that prune.")]
Sign = Annotated[Literal["total", "frequency"], typer.Option(help="How ties elects a sign.")]
Rank = Annotated[int, typer.Option(min=0, help="Singular values that svd keeps; 0: the largest of the ranks.")]
Seed = Annotated[int, typer.Option(help="Of what dare draws.")]
Dequantise = Annotated[
    bool, typer.Option("--dequantise", help="The base is in 4 bits (bitsandbytes) or a GGUF file: make it plain first.")
]
AsNf4 = Annotated[
    bool,
    typer.Option("--as-nf4", help="The adapter was trained over the base in NF4 (QLoRA): merge into what that is."),
]
Verify = Annotated[Path | None, typer.Option(help="Write nothing; prove that this folder is the merged model.")]
Probes = Annotated[int, typer.Option(min=1, help="Inputs of the proof.")]
Answers = Annotated[
    int | None, typer.Option(min=0, help="How many of them are answered too; all where they come from shards.")
]
Push = Annotated[str, typer.Option(metavar="OWNER/NAME", help="Then upload it to a hub, with the token in HF_TOKEN.")]
Data = Annotated[Path | None, typer.Option(help="Shards that the inputs come from; drawn tokens where left out.")]


def merge(
    given: Given,
    base: Base = None,
    out: Place = None,
    dtype: Dtype = "",
    weights: Weights = "",
    combine: Combine = "",
    density: Density = None,
    sign: Sign = "total",
    rank: Rank = 0,
    seed: Seed = 0,
    dequantise: Dequantise = False,
    as_nf4: AsNf4 = False,
    verify_only: Verify = None,
    probes: Probes = 4,
    answers: Answers = None,
    data: Data = None,
    licence: Licence = "",
    push: Push = "",
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base and prove that the logits agree.

    The model's weights are never in memory at once. A merge that was killed goes on; the folder appears whole.

    Example: vlm merge demo eval.adapter=latest eval.data=runs/demo/data/ru-test --out merged

    \b
    More:
      vlm merge runs/mine --base models/base --out merged --data data/ru-test
      vlm merge runs/a runs/b --base models/base --out merged --weights 0.7,0.3 --combine ties --density 0.5
      vlm merge runs/mine --base models/base --verify-only merged
      vlm merge adapter --base model-q4_k_m.gguf --dequantise --dtype bfloat16 --out merged
    """
    quiet()
    from vlm.merge.run import Checks, Telling, verify
    from vlm.merge.run import merge as run_merge

    if verify_only is not None and out is not None:
        raise BadInput("--verify-only writes nothing; leave out --out")
    if push:
        from vlm.handover.push import checked

        if verify_only is not None:
            raise BadInput("--verify-only writes nothing; leave out --push")
        checked(push)
    how = _combination(combine, density, sign, rank, seed)
    if base is None:
        if dtype or weights or combine or dequantise:
            raise BadInput("--dtype, --weights, --combine and --dequantise go with --base; a recipe has model.dtype")
        plan, origin, data = _of_recipe(given, out, data)
    else:
        plan, origin = _of_folders(given, base, out or verify_only, dtype, _numbers(weights), how)
    from dataclasses import asdict, replace

    plan, origin = replace(plan, dequantise=dequantise, as_nf4=as_nf4), replace(origin, licence=licence)
    checks = Checks(probes, answers, data)
    with _bars() as bar:
        telling = Telling(bar("MB merged"), bar("MB read for the proof"), bar("MB of the plain base"))
        if verify_only is None:
            proof = run_merge(plan, checks, origin, telling)
        else:
            proof = verify(plan, verify_only, checks, telling)
    folder = verify_only or plan.out
    told, line = {"folder": str(folder), **asdict(proof)}, f"{folder}: {proof.line}"
    if push:
        from vlm.handover.push import push as upload

        told["address"] = upload(folder, push)
        line += f"; pushed to {told['address']}"
    show(told, as_json, line)


def _of_recipe(given: list[str], out: Path | None, data: Path | None) -> "tuple[MergePlan, Origin, Path | None]":
    recipe, *overrides = given
    if (Path(recipe) / "adapter_config.json").exists() or (Path(recipe) / "checkpoints").is_dir():
        raise BadInput(f"{recipe}: an adapter or a run; name its base with --base")
    from launch.again import begun
    from launch.recipe import load
    from vlm.merge.run import Origin, of_recipe

    loaded = load(recipe, overrides)
    begun("merge", Path(loaded.run))
    plan, shards = of_recipe(loaded, out or Path(loaded.run) / "merged")
    return plan, Origin(Path(loaded.run), loaded.data.template), data or shards


def _of_folders(
    given: list[str], base: Path, out: Path | None, dtype: str, weights: list[float], how: "Combination | None"
) -> "tuple[MergePlan, Origin]":
    from vlm.merge.plan import MergePlan
    from vlm.merge.run import Origin
    from vlm.merge.runs import find_adapter, run_of, template_of

    if out is None:
        raise BadInput("--out: missing; name the folder to write")
    adapters = [find_adapter(Path(each)) for each in given]
    run = run_of(adapters[0])
    return MergePlan(base, adapters, out, dtype, weights, how), Origin(run, template_of(run))


def _combination(kind: str, density: float | None, sign: str, rank: int, seed: int) -> "Combination | None":
    if not kind:
        if density is not None or rank or seed or sign != "total":
            raise BadInput("--density, --sign, --rank and --seed go with --combine")
        return None
    from vlm.merge.combine import Combination

    return Combination(kind, density, "frequency" if sign == "frequency" else "total", rank, seed)


def _numbers(text: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",")] if text else []
    except ValueError:
        raise BadInput(f"--weights {text}: numbers with commas between them are wanted, such as 0.5,0.5") from None


@contextmanager
def _bars() -> "Iterator[Callable[[str], Tell]]":
    """One bar at a time: that which last heard of something."""
    from launch.progress import Progress

    with ExitStack() as stack:
        shown: dict[str, Progress] = {}

        def bar(unit: str) -> "Tell":
            def tell(done: int, total: int | None) -> None:
                if unit not in shown:
                    stack.close()
                    shown.clear()
                    shown[unit] = stack.enter_context(Progress(unit))
                shown[unit].of(done, total)

            return tell

        yield bar
