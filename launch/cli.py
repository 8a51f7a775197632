"""The `vlm` command. Nothing heavy is imported before a command is known, so that help answers at once."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.eval_cli import compare, evaluate, flips, score, submit
from launch.explain_cli import explain
from launch.fence import guard
from launch.handover_cli import handover_app
from launch.judge_cli import judge_app
from launch.merge_cli import merge
from launch.options import GivenOnce, Json, Number, Out, Overrides, RecipeName, quiet, show
from launch.scores import NamesTasks
from launch.shards_cli import shards_app
from shards.errors import BadInput, ServerFault, plain
from vlm.stop import Fault, Requeue, room_on_disk
from vlm.world import is_first

# what an error's line has at most: names and texts of hostile files stand in it
_LONGEST = 2000

if TYPE_CHECKING:
    from shards.translate.config import TranslateConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Teach a vision-language model another language: shards, training, evaluation, merge.\n\nExample: vlm demo",
)
app.add_typer(shards_app, name="shards")
app.add_typer(judge_app, name="judge")
app.add_typer(handover_app, name="handover")


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad input, 75 please requeue."""
    try:
        app(arguments, prog_name="vlm")
    except SystemExit as ended:  # typer's way to return: usage errors are 2, an interrupt is 130
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BadInput as error:
        print(f"vlm: {plain(str(error), _LONGEST)}", file=sys.stderr)
        return 2
    except (ServerFault, Fault) as error:
        print(f"vlm: {plain(str(error), _LONGEST)}", file=sys.stderr)
        return 1
    except Requeue:
        if is_first():
            print("vlm: stopped on request, all is saved; the same command goes on from there", file=sys.stderr)
        return 75
    return 0


def main() -> None:
    """Entry point of the console script and of every rank."""
    guard()
    sys.exit(run(sys.argv[1:]))


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    train_base: Annotated[
        bool, typer.Option(help="Train the English base anew instead of taking the kept one.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images of each split.")] = None,
    overrides: Overrides = None,
) -> None:
    """The whole pipeline on easy-VQA, on the CPU.

    Example: vlm demo --out runs/demo
    """
    from launch.demo import Demo, run_demo

    run_demo(Demo(out, limit, tuple(overrides or [])), train_base, run)


@app.command()
def translate(
    source: Annotated[str, typer.Argument(metavar="IN|RECIPE", help="Dataset folder, or with --set a recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Keys such as engine=memory+hf, or of the recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write.")] = None,
    number: Number = None,
    part: Annotated[
        str | None, typer.Option(help="Translate part i of n, as in 0/8; whoever comes last makes the whole.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Translate a dataset's dialogues and questions into new shards, with proof of quality.

    Resumable and cached. OUT/quality.html shows what was checked. With --set the dataset is entry i of a recipe's list
    `shards`, and the keys are the recipe's.

    Example: vlm translate data/en-train --out data/ru-train memory=easy_vqa.en-ru
    """
    quiet()
    from launch.progress import Progress
    from shards.info import read_info
    from shards.translate.plan import make_plan
    from shards.translate.run import translate_dataset, translate_part
    from vlm.eval.parts import Part
    from vlm.translation import MAKERS

    there, here, config = _translation(source, out, number, overrides or [])
    plan = make_plan(config, MAKERS)
    total = read_info(there).samples
    with Progress("samples") as progress:
        at = partial(progress.of, total=total)
        info = (
            translate_part(there, here, plan, Part.parse(part).pair, at)
            if part
            else translate_dataset(there, here, plan, at)
        )
    if info is None:
        show({"part": part, "whole": False}, as_json, f"part {part} done; the dataset is made when all parts are there")
        return
    counts = {"name": info.name, "lang": info.lang, "samples": info.samples, "rejected": info.rejected}
    show(counts, as_json, f"{here}: {info.samples} samples, {info.rejected} rejected; see {here / 'quality.html'}")


def _translation(
    source: str, out: Path | None, number: int | None, overrides: list[str]
) -> "tuple[Path, Path, TranslateConfig]":
    """Folder to translate, folder to write, and how."""
    if number is not None:
        from launch.recipe import load, raw_set

        if out:
            raise BadInput("--out, --set: give one of them; the recipe names the folder of a set's translation")
        recipe = load(source, overrides)
        chosen = raw_set(recipe, number)
        if not chosen.translated:
            raise BadInput(f"--set {number}: {chosen.out} has no translation; name its folder as `translated`")
        return Path(chosen.out), Path(chosen.translated), recipe.translate
    from shards.translate.config import TranslateConfig
    from vlm.config import load_section

    if out is None:
        raise BadInput("--out: missing; name the folder to write, or with --set i an entry of a recipe's `shards`")
    return Path(source), out, load_section(TranslateConfig, overrides)


@app.command()
def assemble(
    vision: Annotated[str, typer.Option(help="CLIP or SigLIP tower: a folder or a name of the hub.")],
    language: Annotated[str, typer.Option(help="Causal language model: a folder, a .gguf file or a name of the hub.")],
    out: Out,
    template: Annotated[str, typer.Option(help="Chat template: a name or a YAML file.")] = "mistral-instruct",
    new_tokens: Annotated[int, typer.Option(help="Most tokens to add for the new language.")] = 0,
    new_language: Annotated[Path | None, typer.Option(help="Dataset folder the new tokens are learned on.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16 of what is written; the language model's if not given.")
    ] = "",
    projector: Annotated[str, typer.Option(help="mlp (LLaVA 1.5's two layers) or linear.")] = "mlp",
    projector_weights: Annotated[
        Path | None, typer.Option(help="Trained weights, such as LLaVA's mm_projector.bin or safetensors.")
    ] = None,
    reinit_projector: Annotated[
        bool, typer.Option("--reinit-projector", help="Start anew where those weights have another shape.")
    ] = False,
    tiles: Annotated[int, typer.Option(help="Give large images as up to so many tiles and the whole; 0: whole.")] = 0,
    feature_layer: Annotated[int, typer.Option(help="Layer of the tower whose patches are taken.")] = -2,
    seed: Annotated[int, typer.Option(help="Seeds the new weights.")] = 0,
) -> None:
    """Join a vision tower and a language model into a LLaVA model.

    Example: vlm assemble --vision clip-vit-l-336 --language saiga-mistral-7b --template saiga --out models/llava-saiga
    """
    quiet()
    from shards.texts import dataset_texts
    from vlm.model.assemble import assemble as join

    if bool(new_tokens) != bool(new_language):
        raise BadInput("--new-tokens and --new-language go together: how many tokens, and the text they are learned on")
    texts = dataset_texts(new_language) if new_language else []
    made = join(
        vision, language, out, template=template, new_language_texts=texts, new_tokens=new_tokens,
        feature_layer=feature_layer, seed=seed, dtype=dtype, projector=projector, projector_weights=projector_weights,
        reinit_projector=reinit_projector, tiles=tiles,
    )  # fmt: skip
    print(f"{out}: {made.image_tokens} image tokens, {len(made.new_token_ids)} new tokens, template {made.template}")


@app.command()
def train(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train a recipe, from its newest verified checkpoint if there is one.

    What cannot work ends with code 2 before a GPU is taken. A stop signal (SIGTERM, SIGUSR1, SIGUSR2) saves and ends
    with code 75: the same command goes on from there. docs/training.md tells every key.

    Example: vlm train demo optim.epochs=1

    \b
    More:
      vlm train mine.yaml engine.ranks=8                    this machine's GPUs
      torchrun --nproc-per-node 8 --no-python vlm train mine.yaml
      srun vlm train mine.yaml                              a task a GPU, in a Slurm job
      vlm launch train mine.yaml --cluster slurm            queue it
    """
    # before the long imports: a stop that comes meanwhile is obeyed at the first micro-batch
    from launch.ranks import checked, in_world, listen, start_ranks

    listen()
    quiet()
    from launch.again import begun
    from launch.recipe import load

    loaded = load(recipe, overrides or [])
    from vlm.train import check
    from vlm.train import train as run_training

    if loaded.engine.ranks > 1 and not in_world():
        check(loaded)
        as_given = ["train", recipe, *(overrides or []), *(["--json"] if as_json else [])]
        raise typer.Exit(start_ranks(loaded.engine.ranks, as_given))
    folder = run_training(loaded, checked(), partial(begun, "train", Path(loaded.run)))
    if is_first():
        show({"run": loaded.run, "checkpoint": str(folder)}, as_json, f"done: {folder}")


app.command("eval")(evaluate)
app.command(cls=NamesTasks)(score)
app.command("compare", cls=NamesTasks)(compare)
app.command(cls=GivenOnce)(submit)
app.command()(flips)
app.command()(explain)
app.command(cls=GivenOnce)(merge)


@app.command()
def export(recipe: RecipeName, out: Out, overrides: Overrides = None, as_json: Json = False) -> None:
    """Write the model that a projector or full training ended with.

    Example: vlm export demo_questions --out models/base
    """
    quiet()
    from launch.recipe import load

    loaded = load(recipe, overrides or [])
    from vlm.export import export as run_export

    run_export(loaded, out)
    show({"folder": str(out)}, as_json, f"{out}: written")


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN")], as_json: Json = False) -> None:
    """Write benchmark_results.json, error_analysis.json, project_report.txt and report.html of a run.

    Example: vlm report runs/demo
    """
    from launch.outcome import ends
    from vlm.report import write_report
    from vlm.report.stages import FAILED

    stages = ends(run_folder)
    with room_on_disk(run_folder):
        paths = write_report(run_folder, stages)
    why = [each.sentence for each in stages if each.state == FAILED]
    content = {"html": str(paths.page), "text": str(paths.project_report), "failed": why}
    show(content, as_json, "\n".join([*why, f"report: {paths.page}"]))


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="RUN|DIR", help="A run, or a folder of runs.")],
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Draw again every 2 s until Ctrl-C.")] = False,
    textfile: Annotated[
        Path | None, typer.Option(help="Metrics file of `vlm monitor --textfile`: say when it is no longer written.")
    ] = None,
) -> None:
    """Show how the runs at or below a folder stand, and what is wrong with them (docs/operations.md).

    Example: vlm status runs --watch
    """
    from launch.status import status as show

    show(folder, as_json, watch, textfile)


@app.command()
def monitor(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; for another than loopback a token is asked for.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8087,
    textfile: Annotated[
        Path | None, typer.Option(help="Write the Prometheus metrics to this file, or a file a run into this folder.")
    ] = None,
    every: Annotated[float, typer.Option(help="With --textfile: write again after so many seconds; 0 once.")] = 0.0,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token, chmod 600; without it one is made and printed.")
    ] = None,
    logs: Annotated[
        list[Path] | None, typer.Option(help="Also show outputs of the runs' jobs that lie in this folder; repeatable.")
    ] = None,
) -> None:
    """Serve pages about the runs below a folder, and Prometheus metrics under /metrics.

    Example: vlm monitor runs --port 8087

    \b
    More:
      vlm monitor runs --logs logs                          jobs of `sbatch slurm/*.sh` write there
      vlm monitor runs --host 0.0.0.0 --token-file ~/.config/ruvlm-token
    """
    from launch.monitor import require_extra

    require_extra()
    if textfile:
        from launch.monitor.metrics import write_textfile

        write_textfile(folder, textfile, every)
    else:
        from launch.monitor.server import serve

        serve(folder, host, port, token_file, logs or [])


@app.command()
def estimate(
    recipe: RecipeName,
    overrides: Overrides = None,
    tflops: Annotated[
        float | None, typer.Option(help="TFLOP/s that one GPU sustains; 40 % of an A100's 312 by default.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="GiB of one GPU, for the largest micro-batch that fits; 80 by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a training will take before it is queued: parameters, FLOPs, memory per GPU by part, hours.

    Reads configs and a share of the data, no weights, and needs no GPU. The number of GPUs is cluster.nodes times
    cluster.gpus_per_node, else engine.ranks. What looks wrong with the data is said on the error output.

    Example: vlm estimate demo engine.ranks=8 --tflops 300

    \b
    More:
      vlm estimate mine.yaml cluster.nodes=2 cluster.gpus_per_node=8 --memory 24
      vlm estimate mine.yaml engine.deepspeed=zero3 model.checkpoint_blocks=1 --json
    """
    quiet()
    from launch.recipe import load

    loaded = load(recipe, overrides or [])
    from vlm.check import sampled_warnings
    from vlm.estimate import A100_TFLOPS, GPU_GIB
    from vlm.estimate import estimate as work_out

    gpus = loaded.cluster.nodes * loaded.cluster.gpus_per_node or loaded.engine.ranks
    found = work_out(loaded, gpus, A100_TFLOPS if tflops is None else tflops, GPU_GIB if memory is None else memory)
    for line in sampled_warnings(loaded):
        print(f"vlm: {line}", file=sys.stderr, flush=True)
    show(found.to_json(), as_json, "\n".join(found.lines()))


@app.command("launch")
def launch_jobs(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE",
            help="shards, translate, train, export, eval, merge, report, or pipeline: all that the recipe has.",
        ),
    ],
    recipe: RecipeName,
    overrides: Overrides = None,
    cluster: Annotated[str | None, typer.Option(help="slurm, local or debug, in place of cluster.kind.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the graph, the sbatch headers and the commands.")
    ] = False,
) -> None:
    """Run a stage of a recipe, or all of them one after the other, as jobs. docs/launch.md tells more.

    Example: vlm launch pipeline demo eval.data=runs/demo/data/ru-test --cluster slurm --dry-run
    """
    quiet()
    from launch.pipeline import launch

    launch(stage, recipe, overrides or [], cluster, dry_run, run)


@app.command("requeue", hidden=True, context_settings={"ignore_unknown_options": True})
def requeue(
    code: Annotated[int, typer.Argument(help="Exit code that the job's command ended with.")],
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE")] = None,
    overrides: Overrides = None,
    stage: Annotated[str, typer.Option(help="Stage of the pipeline.")] = "train",
) -> None:
    """At the end of a Slurm job: ask for another turn where that may help, and end with CODE.

    Example: vlm requeue 75 demo optim.epochs=1
    """
    from launch.again import again

    again(code, stage, recipe, overrides or [])
    raise typer.Exit(code)


@app.command("demo-models", hidden=True)
def demo_models(
    text: Annotated[Path, typer.Option(help="Dataset folder the tokenizer is trained on.")], out: Out, seed: int = 0
) -> None:
    """Write the demo's tiny vision tower and language model.

    Example: vlm demo-models --text runs/demo/data/en-train --out runs/demo/models
    """
    quiet()
    from shards.texts import dataset_texts
    from vlm.demo.models import write_language, write_vision

    write_vision(out / "vision", seed)
    write_language(out / "language", dataset_texts(text), seed)


@app.command("demo-tower", hidden=True)
def demo_tower(
    assembled: Annotated[Path, typer.Option(help="Assembled model.")],
    captions: Annotated[Path, typer.Option(help="Dataset folder with captions.")],
    run: Annotated[Path, typer.Option(help="Folder of the events.")],
    out: Out,
) -> None:
    """Train the demo's vision tower against captions.

    Example: vlm demo-tower --assembled A --captions C --run R --out OUT
    """
    quiet()
    from vlm.demo.base import tower_step
    from vlm.demo.contrastive import Settings

    tower_step(assembled, captions, out, run, Settings())


@app.command("demo-base", hidden=True)
def demo_base(assembled: Annotated[Path, typer.Option()], out: Out) -> None:
    """Install the kept English base.

    Example: vlm demo-base --assembled runs/demo/models/assembled --out runs/demo/models/base
    """
    quiet()
    from vlm.demo.base import install_kept

    install_kept(assembled, out)


@app.command("demo-keep", hidden=True)
def demo_keep(run_folder: Annotated[Path, typer.Argument(metavar="RUN")], out: Out) -> None:
    """Store a base trained by `vlm demo --train-base` in bfloat16 with its card.

    Example: vlm demo-keep runs/demo --out vlm/demo/english_base
    """
    quiet()
    from vlm.demo.base import keep

    keep(run_folder, out)


if __name__ == "__main__":
    main()
