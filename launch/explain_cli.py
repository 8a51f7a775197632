"""`vlm explain`: why answers are wrong, what mending that gains at most, and what another way to ask gains in fact."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import Json, Overrides, RecipeName, quiet, show
from shards.errors import BadInput, plain
from vlm.stop import room_on_disk

if TYPE_CHECKING:
    from vlm.config import Recipe
    from vlm.eval.explain import BenchmarkOptimizer
    from vlm.eval.explain.trial import Trial

_TEXT = 160


def explain(
    recipe: RecipeName,
    overrides: Overrides = None,
    tries: Annotated[
        list[str] | None, typer.Option("--try", metavar="eval.KEY=VALUE", help="Ask again with this, and compare.")
    ] = None,
    measure_all: Annotated[
        bool, typer.Option("--measure", help="Try all that the recommendations say can be tried.")
    ] = False,
    truth: Annotated[Path | None, typer.Option(help="Where the questions' shards are now.")] = None,
    as_json: Json = False,
) -> None:
    """Explain a finished evaluation's wrong answers: causes, gains, settings to change.

    Takes the keys of `vlm eval`. With --try its questions are answered again below RUN/eval/NAME/try, where the same
    command goes on after a stop; `vlm report` shows what was measured.

    Example: vlm explain demo eval.name=ru-adapter eval.data=runs/demo/data/ru-test eval.adapter=latest --measure
    """
    # before the long imports: a stop that comes meanwhile is obeyed before the first question
    from launch.ranks import listen

    listen()
    quiet()
    from launch.recipe import load

    loaded = load(recipe, overrides or [])
    from vlm.eval.explain import BenchmarkOptimizer
    from vlm.eval.explain.trial import check_setting
    from vlm.eval.folder import folder_of

    wanted = [check_setting(setting) for setting in tries or []]
    found = BenchmarkOptimizer.of(folder_of(loaded.run, loaded.eval.name), truth)
    if found.evaluation.gone:
        raise BadInput(found.evaluation.gone)
    if measure_all:
        wanted = _all_tries(found, wanted)
    trials = [_measure(loaded, recipe, overrides or [], setting) for setting in wanted]
    said = found.to_json()
    if trials:
        said["trials"] = [trial.to_json() for trial in trials]
    show(said, as_json, "\n".join(_lines(found, trials)))


def _all_tries(found: "BenchmarkOptimizer", wanted: list[str]) -> list[str]:
    tries = list(dict.fromkeys([*wanted, *found.tries]))
    if not tries:
        raise BadInput("--measure: no recommendation can be tried; give --try eval.KEY=VALUE")
    return tries


def _measure(loaded: "Recipe", recipe: str, overrides: list[str], setting: str) -> "Trial":
    from launch.progress import Progress
    from launch.recipe import load
    from vlm.eval.explain.measure import measure
    from vlm.eval.explain.trial import trial_name
    from vlm.eval.folder import folder_of

    tried = load(recipe, [*overrides, setting, f"eval.name={trial_name(loaded.eval.name, setting)}"])
    with room_on_disk(folder_of(tried.run, tried.eval.name)), Progress("samples") as progress:
        return measure(loaded, tried, setting, progress.of)


def _lines(found: "BenchmarkOptimizer", trials: "list[Trial]") -> list[str]:
    from vlm.report.text import trial_sentence
    from vlm.report.wording import points

    rows, n = sum(found.counts.values()), len(found.evaluation.rows)
    lines = [f"{rows} wrong of {n} answers"]
    for name, number in sorted(found.counts.items(), key=lambda item: -item[1]):
        if number:
            lines.append(f"  {name:<22}{number:>7}  {points(found.at_most[name])} at most")
    for advice in found.recommendations:
        lines.append(f"{advice.cause}: {advice.advice}; {plain('; '.join(advice.settings), 2 * _TEXT)}")
    for each in found.rescored:
        around = f", {each.interval.text}" if each.interval else ""
        lines.append(f"scorer {each.scorer}: {each.score:.4f}, {points(each.gain)}{around}")
    lines += [f"scorer {name} cannot be had: {plain(why, 3 * _TEXT)}" for name, why in found.unscored.items()]
    lines += [f"measured: {plain(trial_sentence(trial), 3 * _TEXT)}" for trial in (trials or found.trials)]
    if found.tries and not trials:
        lines += ["to measure: --measure, or --try with one of", *(f"  {plain(each, _TEXT)}" for each in found.tries)]
    return lines
