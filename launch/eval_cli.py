"""`vlm eval`, and what is done with answers: `vlm score`, `compare`, `submit`, `flips`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import Json, Overrides, RecipeName, quiet, show
from launch.scores import comparison_lines, print_metrics, score_line
from shards.errors import BadInput
from shards.info import DATASET_FILE, read_info
from vlm.stop import room_on_disk

if TYPE_CHECKING:
    from vlm.eval.config import EvalConfig
    from vlm.eval.run import Result

Questions = Annotated[Path | None, typer.Option(help="Official file of questions, where it is apart.")]


def evaluate(
    recipe: RecipeName,
    overrides: Overrides = None,
    part: Annotated[str, typer.Option(help="Answer part i of n only, such as 0/8.")] = "0/1",
    as_json: Json = False,
) -> None:
    """Answer the questions of a recipe's evaluation and score them once all parts are there.

    What is answered stays: the same command goes on from there, also with another number of parts. A stop signal ends
    it with code 75 after the questions at hand.

    Example: vlm eval demo eval.name=ru eval.data=runs/demo/data/ru-test eval.adapter=latest --part 0/2
    """
    # before the long imports: a stop that comes meanwhile is obeyed before the first question
    from launch.ranks import listen

    listen()
    quiet()
    from launch.again import begun
    from launch.progress import Progress
    from launch.recipe import load

    loaded = load(recipe, overrides or [])
    begun("eval", Path(loaded.run))
    from vlm.eval.folder import folder_of
    from vlm.eval.parts import Part
    from vlm.eval.run import evaluate as run_evaluation

    _warn(loaded.eval)
    folder = folder_of(loaded.run, loaded.eval.name)
    with room_on_disk(folder), Progress("samples") as progress:
        result = run_evaluation(loaded, Part.parse(part), progress.of)
    if result is None:
        line = f"part {part} done; whoever comes last makes the result"
        if loaded.eval.protocol == "backtranslate":
            line = f"part {part}: nothing to do, part 0 translates all answers"
        show({"part": part, "whole": False}, as_json, line)
        return
    summary = {
        "name": result.name,
        "score": result.score,
        "n": result.n,
        "empty": result.empty,
        "scorer": result.scorer,
    }
    if result.empty:
        print(f"vlm: {result.name}: {result.empty} of {result.n} answers are empty", file=sys.stderr)
    show(summary, as_json, _line(result))


def _warn(config: "EvalConfig") -> None:
    from vlm.eval.looks import other_source

    # what is wrong with the folder the evaluation says
    if (Path(config.data) / DATASET_FILE).is_file() and (
        other := other_source(config.task, read_info(Path(config.data)))
    ):
        print(f"vlm: eval.task={config.task}, but {config.data} was read as {other}; is it meant?", file=sys.stderr)


def _line(result: "Result") -> str:
    from vlm.eval.tasks import find_task

    if result.score is not None:
        return score_line(result.name, result.score, result.n, result.scorer, result.interval)
    task = find_task(result.task)
    if task.judged:
        return f"{result.name}: {result.n} answers; a judge rates them: `vlm judge review`, see docs/judge.md"
    how = "`vlm submit` writes the official file" if task.submit else f"task {task.name} has no official file to submit"
    return f"{result.name}: {result.n} answers; right ones are not public: {how}"


def score(
    task: Annotated[str, typer.Argument(metavar="TASK", help="One of those below.")],
    files: Annotated[list[Path] | None, typer.Argument(metavar="PREDICTIONS", help="Files of answers.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Official file with the answers, or a folder of shards.")] = None,
    predictions: Annotated[list[Path] | None, typer.Option(help="PREDICTIONS, as an option.")] = None,
    questions: Questions = None,
    scorer: Annotated[
        str | None, typer.Option(help="A name, or several with commas; the task's default where left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score prediction files, whoever made them. docs/evaluation.md tells what the files hold.

    Example: vlm score exact runs/demo/eval/ru-adapter/predictions.jsonl --truth runs/demo/data/ru-test
    """
    from dataclasses import asdict

    from vlm.eval.interval import interval
    from vlm.eval.score import one_file, read_predictions, read_truth, scorer_names
    from vlm.eval.score import score as score_answers
    from vlm.eval.tasks import find_task

    found = find_task(task)
    there, given = one_file(found, truth, [*(files or []), *(predictions or [])])
    if scorer is not None and not scorer.strip():
        raise BadInput(f"--scorer: empty; {task} has {', '.join(found.scorers)}")
    names = scorer_names(found, scorer or "")
    items, answers = read_truth(found, there, questions), read_predictions(found, given)
    results = {}
    # all of them before the first is printed: one that cannot score ends the command
    for outcome in [score_answers(found, items, answers, name, given) for name in names]:
        around = interval(outcome)
        results[outcome.scorer] = {
            "task": task, "score": outcome.score, "n": outcome.n, "metrics": outcome.metrics,
            "scorer": outcome.scorer, "interval": asdict(around) if around else None,
        }  # fmt: skip
        if not as_json:
            print(score_line(task, outcome.score, outcome.n, outcome.scorer, around))
            print_metrics(outcome.metrics)
    if as_json:
        first, *more = results
        others = {"scorers": {name: results[name] for name in more}} if more else {}
        show({**results[first], **others}, as_json, "")


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="RUN/eval/NAME, or with --task a file of answers.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The same of the other run.")],
    task: Annotated[str, typer.Option(help="Task of two files of answers.")] = "",
    truth: Annotated[
        Path | None, typer.Option(help="Official file with the answers, or where the shards lie now.")
    ] = None,
    questions: Questions = None,
    scorer: Annotated[str, typer.Option(help="Scorer; by default what both were scored with.")] = "",
    as_json: Json = False,
) -> None:
    """Compare two runs on the same questions: McNemar's exact test, and an interval of the scores' difference.

    Example: vlm compare runs/demo/eval/en-base runs/demo/eval/ru-adapter-back

    \b
    More:
      vlm compare a.json b.json --task vqav2 --truth v2_mscoco_val2014_annotations.json
    """
    from vlm.eval.compare import compare_files, compare_folders
    from vlm.eval.score import read_truth
    from vlm.eval.tasks import find_task

    if not task and (file := next((path for path in (a, b) if os.path.isfile(path)), None)):
        raise BadInput(f"--task: missing; {file} is a file, whose answers are compared with --task and --truth")
    if not task:
        found = compare_folders(a, b, truth, scorer)
    elif truth is None:
        raise BadInput("--truth: missing; two files of answers are compared by their official file, or shards")
    else:
        chosen = find_task(task)
        found = compare_files(chosen, (a, b), read_truth(chosen, truth, questions), scorer)
    show(found.to_json(), as_json, comparison_lines(found))


def submit(
    folder: Annotated[Path, typer.Argument(metavar="RUN/eval/NAME", help="An evaluation.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    truth: Annotated[Path | None, typer.Option(help="Where the questions' shards lie now, if they moved.")] = None,
    as_json: Json = False,
) -> None:
    """Write an evaluation's answers as the official submission file of its task.

    Example: vlm submit runs/mine/eval/test-dev --out results.json
    """
    from vlm.eval.folder import submission

    with room_on_disk(out):
        number = submission(folder, out, truth)
    show({"file": str(out), "n": number}, as_json, f"{out}: {number} answers")


def flips(
    recipe: RecipeName,
    overrides: Overrides = None,
    questions: Annotated[int, typer.Option(min=1, help="Ask at least so many, about images all over the set.")] = 200,
    beside: Annotated[
        bool, typer.Option("--beside", help="Alone, the adapter stays beside the base: count what merging it changes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Count answers that speed changes: batch 1 in plain transformers against what `vlm eval` does.

    Takes the keys of `vlm eval`, and writes RUN/eval/NAME/flips.json.

    Example: vlm flips demo eval.data=runs/demo/data/ru-test eval.adapter=latest
    """
    quiet()
    from dataclasses import asdict

    from launch.progress import Progress
    from launch.recipe import load

    loaded = load(recipe, overrides or [])
    from vlm.eval.flips import flips as count
    from vlm.eval.folder import folder_of

    with room_on_disk(folder_of(loaded.run, loaded.eval.name)), Progress("samples") as progress:
        found = count(loaded, questions, beside, progress.of)
    show(asdict(found), as_json, "\n".join(found.lines()))
