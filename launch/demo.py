"""`vlm demo`: the whole pipeline on easy-VQA, stage by stage."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from launch.fence import launcher
from launch.recipe import PipelineRecipe, load
from launch.stages import Stage, StageFailed, run_stages
from shards.errors import BadInput
from shards.files import UNFINISHED, verify_manifest
from shards.info import DATASET_FILE
from shards.verify import verify

RECIPE = "demo"
READER = "easy-vqa"
MARKER = "recipe.yaml"


def run_demo(out: Path, train_base: bool, overrides: Sequence[str]) -> None:
    """Run what is missing of the demo in `out` and print the report's table."""
    recipe = load(RECIPE, _located(RECIPE, out, overrides))
    _claim(out)
    with launcher(out):
        try:
            run_stages(stages(out, recipe, train_base, overrides), recipe.cluster, out / "jobs", _say)
        except StageFailed as failure:
            print(f"vlm demo: {failure}; mend the cause and start again: finished stages are kept", file=sys.stderr)
            raise typer.Exit(failure.code) from None
    _print_table(out)


def _claim(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / "jobs").is_dir():
        raise BadInput(f"output folder {out} holds something else; choose another --out")
    (out / "jobs").mkdir(parents=True, exist_ok=True)


def stages(out: Path, recipe: PipelineRecipe, train_base: bool, overrides: Sequence[str]) -> list[Stage]:
    """The demo's stages in order."""
    return [
        *_data_stages(out, train_base),
        *_model_stages(out),
        *(_base_training_stages(out, overrides) if train_base else [_kept_base_stage(out)]),
        _train_stage("train", RECIPE, out, overrides),
        *_evaluation_stages(out, overrides),
        _merge_stage(out, overrides),
        _report_stage(out),
    ]


def _data_stages(out: Path, train_base: bool) -> list[Stage]:
    data = out / "data"
    build = ["shards", "build", "--reader", READER]
    english = {f"en-{split}": [*build, "--split", split] for split in ("train", "test")}
    if train_base:
        english["en-balanced"] = [*build, "--balance"]
        english["captions"] = ["shards", "build", "--reader", f"{READER}-captions"]
    memory = "memory=easy_vqa.en-ru"
    russian = {f"ru-{split}": ["translate", str(data / f"en-{split}"), memory] for split in ("train", "test")}
    return [
        *(_dataset_stage(name, command, data) for name, command in {**english, **russian}.items()),
    ]


def _dataset_stage(name: str, command: list[str], data: Path) -> Stage:
    out = data / name
    return Stage(name, [[*command, "--out", str(out)]], lambda: (out / DATASET_FILE).exists() and not verify(out))


def _model_stages(out: Path) -> list[Stage]:
    models, data = out / "models", out / "data"
    parts = Stage(
        "models",
        [["demo-models", "--text", str(data / "en-train"), "--out", str(models)]],
        lambda: _whole(models / "vision") and _whole(models / "language"),
    )
    join = ["assemble", "--vision", str(models / "vision"), "--language", str(models / "language")]
    tokens = ["--new-language", str(data / "ru-train"), "--new-tokens", "256"]
    assembled = models / "assembled"
    return [parts, Stage("assemble", [[*join, *tokens, "--out", str(assembled)]], lambda: _whole(assembled))]


def _kept_base_stage(out: Path) -> Stage:
    base = out / "models" / "base"
    command = ["demo-base", "--assembled", str(out / "models" / "assembled"), "--out", str(base)]
    return Stage("base", [command], lambda: _whole(base))


def _base_training_stages(out: Path, overrides: Sequence[str]) -> list[Stage]:
    models, base = out / "models", out / "base"
    tower = ["demo-tower", "--assembled", str(models / "assembled"), "--captions", str(out / "data" / "captions")]
    stages = [
        Stage(
            "base-tower",
            [[*tower, "--run", str(base / "tower"), "--out", str(models / "tower")]],
            lambda: _whole(models / "tower"),
        )
    ]
    for step, origin, made in (("projector", "tower", "projector"), ("questions", "projector", "base")):
        recipe, target = f"demo_{step}", models / made
        arguments = [recipe, *_located(recipe, out, _of_base(overrides))]
        adopt = ["demo-adopt", *arguments, "--origin", str(models / origin), "--out", str(target)]
        stages += [
            Stage(f"base-{step}", [["train", *arguments]], lambda target=target: _whole(target)),  # type: ignore[misc]
            Stage(f"base-{step}-adopt", [adopt], lambda target=target: _whole(target)),  # type: ignore[misc]
        ]
    return stages


def _of_base(overrides: Sequence[str]) -> list[str]:
    """Of the demo's overrides those that every training shares: where and how it runs, not how long."""
    return [o for o in overrides if o.split(".")[0] == "engine"]


def _train_stage(name: str, recipe: str, out: Path, overrides: Sequence[str]) -> Stage:
    # training itself finds out whether its last checkpoint stands, from the plan
    def standing() -> bool:
        from vlm.train import finished

        return finished(load(recipe, _located(recipe, out, overrides)))

    return Stage(name, [["train", recipe, *_located(recipe, out, overrides)]], standing)


PARTS = 2


def _evaluation_stages(out: Path, overrides: Sequence[str]) -> list[Stage]:
    return [
        _evaluation("en-base", out, overrides, ["eval.data=data/en-test"]),
        _evaluation("ru-base", out, overrides, ["eval.data=data/ru-test"]),
        _evaluation("ru-adapter", out, overrides, ["eval.data=data/ru-test", "eval.adapter=latest"]),
        _evaluation(
            "ru-adapter-back",
            out,
            overrides,
            [
                "eval.data=data/en-test",
                "eval.protocol=backtranslate",
                "eval.answers=ru-adapter",
                "translate.source_lang=ru",
                "translate.target_lang=en",
            ],
            parts=1,
        ),
    ]


def _evaluation(name: str, out: Path, overrides: Sequence[str], settings: list[str], parts: int = PARTS) -> Stage:
    settings = [s.replace("eval.data=data", f"eval.data={out / 'data'}") for s in settings]
    arguments = [*_located(RECIPE, out, overrides), f"eval.name={name}", *settings]

    def standing() -> bool:
        from vlm.eval.run import standing

        return standing(load(RECIPE, arguments))

    commands = [["eval", RECIPE, *arguments, "--part", f"{i}/{parts}"] for i in range(parts)]
    return Stage(f"eval-{name}", commands, standing)


def _merge_stage(out: Path, overrides: Sequence[str]) -> Stage:
    merged = out / "merged"
    settings = [f"eval.data={out / 'data' / 'ru-test'}", "eval.adapter=latest"]
    arguments = [RECIPE, *_located(RECIPE, out, overrides), *settings]

    def standing() -> bool:
        from vlm.merge import standing

        return standing(load(RECIPE, arguments[1:]), merged)

    return Stage("merge", [["merge", *arguments, "--out", str(merged)]], standing)


def _report_stage(out: Path) -> Stage:
    # quick, and it must speak of the results as they are now
    return Stage("report", [["report", str(out)]], lambda: False)


def _located(recipe: str, out: Path, overrides: Sequence[str]) -> list[str]:
    """A demo recipe's paths with the demo's own folder exchanged for `out`."""
    found = load(recipe)
    default = Path("runs/demo")
    paths = {"run": found.run, "model.base": found.model.base, "data.train": found.data.train}
    return [f"{key}={out / Path(path).relative_to(default)}" for key, path in paths.items()] + list(overrides)


def _whole(folder: Path) -> bool:
    return (folder / "MANIFEST.json").exists() and not (folder / UNFINISHED).exists() and not verify_manifest(folder)


def _say(line: str) -> None:
    print(line, flush=True)


def _print_table(out: Path) -> None:
    from shards.files import read_json

    rows = read_json(out / "benchmark_results.json")["results"]
    print(f"\n{'model':10}{'language':10}{'protocol':16}{'n':>7}{'score':>9}")
    for row in rows:
        print(f"{row['model']:10}{row['lang']:10}{row['protocol']:16}{row['n']:>7}{row['score']:>9.4f}")
    print(f"\nreport: {os.path.relpath(out / 'report.html')}")
