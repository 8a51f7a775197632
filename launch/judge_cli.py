"""`vlm judge`: a chat model as judge of answers."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import Json, Out, Overrides, show
from shards.errors import BadInput

if TYPE_CHECKING:
    from vlm.eval.judge.config import JudgeConfig
    from vlm.eval.judge.files import Summary

judge_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Let a chat model judge answers. docs/judge.md tells the keys, and what is reported.\n\n"
    "Example: vlm judge grade RUN/eval/NAME/predictions.jsonl --out grades url=http://localhost:8000/v1 model=judge",
)

Answers = Annotated[Path, typer.Argument(metavar="ANSWERS", help="File of a model's answers.")]
Truth = Annotated[
    Path | None, typer.Option(help="Questions and references: JSON lines, or a folder of shards; ANSWERS by default.")
]


@judge_app.command("review")
def review(
    answers: Answers,
    questions: Annotated[Path, typer.Option(help="LLaVA-Bench's questions.jsonl.")],
    context: Annotated[Path, typer.Option(help="Its context.jsonl; of COCO the file of captions and boxes.")],
    reference: Annotated[Path, typer.Option(help="The answers to compare with, such as answers_gpt4.jsonl.")],
    out: Out,
    overrides: Overrides = None,
    rules: Annotated[
        Path | None, typer.Option(help="LLaVA's rule.json, to judge by its wording instead of ours.")
    ] = None,
    as_json: Json = False,
) -> None:
    """LLaVA-Bench: rate a model's answers beside the reference's. `vlm score llava-bench` reads OUT/reviews.jsonl.

    Example: vlm judge review answers.jsonl --questions questions.jsonl --context context.jsonl
    --reference answers_gpt4.jsonl --out reviews url=http://localhost:8000/v1 model=judge swap=true
    """
    from launch.progress import Progress
    from vlm.eval.judge.files import make_folder, write_reviews
    from vlm.eval.judge.reviews import judge_reviews, read_questions
    from vlm.eval.judge.verdicts import Judge

    config = _config(overrides)
    asked = read_questions(questions, context, reference, answers, rules)
    with Judge(config) as judge, Progress("verdicts") as progress:
        make_folder(out)
        found = judge_reviews(judge, asked, progress.of)
    _finish(write_reviews(out, judge, found, rules), as_json)


@judge_app.command("grade")
def grade(answers: Answers, out: Out, overrides: Overrides = None, truth: Truth = None, as_json: Json = False) -> None:
    """Grade answers from 1 to 10 against their references.

    Example: vlm judge grade answers.jsonl --truth held_out.jsonl --out grades url=http://localhost:8000/v1 model=judge
    """
    from launch.progress import Progress
    from vlm.eval.judge.files import make_folder, write_grades
    from vlm.eval.judge.grades import judge_grades
    from vlm.eval.judge.held_out import read_held_out
    from vlm.eval.judge.verdicts import Judge

    config = _config(overrides)
    rows = read_held_out(answers, truth)
    with Judge(config) as judge, Progress("verdicts") as progress:
        make_folder(out)
        found = judge_grades(judge, rows, progress.of)
    _finish(write_grades(out, judge, found), as_json)


@judge_app.command("ragas")
def ragas(answers: Answers, out: Out, overrides: Overrides = None, truth: Truth = None, as_json: Json = False) -> None:
    """Score answers by metrics of the library ragas.

    Example: vlm judge ragas answers.jsonl --truth held_out.jsonl --out ragas url=http://localhost:8000/v1 model=judge
    """
    from launch.progress import Progress
    from vlm.eval.judge.files import make_folder, write_scores
    from vlm.eval.judge.held_out import read_held_out
    from vlm.eval.judge.ragas_scores import choose, makers, score_rows
    from vlm.eval.judge.verdicts import Judge

    config = _config(overrides)
    rows = read_held_out(answers, truth)
    names = choose(config, rows)
    with Judge(config) as judge, Progress("scores") as progress:
        make = makers(judge, names)
        make_folder(out)
        scores = score_rows(judge, rows, make, progress.of)
    summary = write_scores(out, judge, rows, scores)
    lines = [_metric_line(name, each) for name, each in summary.metrics.items()]
    show(summary.to_json(), as_json, "\n".join(lines))
    summary.check()


@judge_app.command("letters")
def letters(
    task: Annotated[str, typer.Argument(metavar="TASK", help="mmbench or mmbench-ru.")],
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="File of answers.")],
    overrides: Overrides = None,
    truth: Annotated[Path | None, typer.Option(help="Official table, or a folder of shards.")] = None,
    as_json: Json = False,
) -> None:
    """Score MMBench, and ask a judge which option is meant where no rule can tell.

    Example: vlm judge letters mmbench answers.xlsx url=http://localhost:8000/v1 model=judge
    """
    from dataclasses import replace

    from launch.progress import Progress
    from launch.scores import print_metrics, score_line
    from vlm.eval.interval import interval
    from vlm.eval.judge.letters import NAME, letter_scorer
    from vlm.eval.judge.verdicts import Judge
    from vlm.eval.score import one_file, read_predictions, read_truth, score
    from vlm.eval.tasks.mmbench import MMBENCH, MMBENCH_RU

    tasks = {each.name: each for each in (MMBENCH, MMBENCH_RU)}
    if task not in tasks:
        raise BadInput(f"task {task!r:.50}: a judge reads letters for {', '.join(tasks)}")
    config, found = _config(overrides), tasks[task]
    there, given = one_file(found, truth, [predictions])
    items, said = read_truth(found, there), read_predictions(found, given)
    with Judge(config) as judge, Progress("verdicts") as progress:
        judged = replace(found, scorers={NAME: letter_scorer(judge, progress.of)})
        outcome = score(judged, items, said)
    around = interval(outcome)
    content = {
        "task": task, "score": outcome.score, "n": outcome.n, "metrics": outcome.metrics, "scorer": NAME,
        "interval": asdict(around) if around else None, "judge": judge.name,
    }  # fmt: skip
    show(content, as_json, score_line(task, outcome.score, outcome.n, NAME, around))
    if not as_json:
        print_metrics(outcome.metrics)


def _config(overrides: list[str] | None) -> "JudgeConfig":
    from vlm.config import load_section
    from vlm.eval.judge.config import JudgeConfig

    return load_section(JudgeConfig, overrides or [])


def _finish(summary: "Summary", as_json: bool) -> None:
    """Print a summary; ServerFault where no verdict could be read."""
    from launch.scores import print_metrics, score_line

    found = summary.outcome
    if as_json or found:
        line = score_line(summary.kind, found.score, found.n, summary.judge["model"], summary.interval) if found else ""
        show(summary.to_json(), as_json, line)
    if not as_json:
        print_metrics({**(found.metrics if found else {}), **_plain(summary.counts)})
    summary.check()


def _plain(counts: dict[str, Any]) -> dict[str, Any]:
    """For people: agreement that was not asked for is left out."""
    agreement = {name: found for name, found in counts["agreement"].items() if found}
    return {**counts, "agreement": agreement} if agreement else {k: v for k, v in counts.items() if k != "agreement"}


def _metric_line(name: str, found: dict[str, Any]) -> str:
    why = ", ".join(f"{count} {reason}" for reason, count in found["why"].items())
    mean = "none" if found["mean"] is None else f"{found['mean']:.4f}"
    return f"{name}: {mean} on {found['n']} rows, {found['nan']} without a score{f' ({why})' if why else ''}"
