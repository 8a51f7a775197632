"""`vlm demo`: the whole pipeline on easy-VQA, stage by stage."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from launch.fence import launcher
from launch.recipe import load
from launch.stages import Command, Stage, StageFailed, run_stages
from shards.errors import BadInput
from shards.files import UNFINISHED, read_json, verify_manifest, write_json
from shards.info import DATASET_FILE
from shards.verify import verify

RECIPE = "demo"
READER = "easy-vqa"
DEFAULT = Path("runs/demo")
PARTS = 2


@dataclass(frozen=True)
class Demo:
    """`out`: run directory; `limit`: images of each split, None for all; `overrides`: keys of the recipe to change."""

    out: Path
    limit: int | None
    overrides: tuple[str, ...]

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def models(self) -> Path:
        return self.out / "models"

    def arguments(self, recipe: str, *more: str) -> list[str]:
        """A demo recipe's name, its paths moved from runs/demo to `out`, the user's overrides, and `more`."""
        found = load(recipe)
        paths = {"run": found.run, "model.base": found.model.base, "data.train": found.data.train}
        # quoted, for YAML would read a folder named 2024_01_05 as a number
        moved = [f"{key}={json.dumps(str(self.out / Path(path).relative_to(DEFAULT)))}" for key, path in paths.items()]
        shared = [o for o in self.overrides if recipe == RECIPE or o.startswith("engine.")]
        return [recipe, *moved, *shared, *more]


def run_demo(demo: Demo, train_base: bool, command: Command) -> None:
    """Run what is missing of the demo and print the report's table."""
    recipe = load(*_split(demo.arguments(RECIPE)))
    out = demo.out
    if out.exists() and any(out.iterdir()) and not (out / "jobs").is_dir():
        raise BadInput(f"output folder {out} holds something else; choose another --out")
    with launcher(out):
        _bind(demo, train_base)
        try:
            run_stages(stages(demo, train_base), recipe.cluster, out / "jobs", command, _say)
        except StageFailed as failure:
            print(f"vlm demo: {failure}; mend the cause and start again: finished stages are kept", file=sys.stderr)
            raise typer.Exit(failure.code) from None
    _print_table(out)


def _bind(demo: Demo, train_base: bool) -> None:
    """BadInput when the folder was begun with other data or another base: finished stages would stand for them."""
    path, wanted = demo.out / "demo.json", {"limit": demo.limit, "train_base": train_base}
    if path.exists() and (found := read_json(path)) != wanted:
        raise BadInput(f"{demo.out}: was begun {_options(path, found)}; begin likewise, or choose another --out")
    write_json(path, wanted)


def _options(path: Path, begun: Any) -> str:
    """The options of an earlier start."""
    if not isinstance(begun, dict):
        raise BadInput(f"{path}: not what `vlm demo` wrote; choose another --out")
    limit = f"with --limit {begun.get('limit')}" if begun.get("limit") else "without --limit"
    return f"{limit}, {'with' if begun.get('train_base') else 'without'} --train-base"


def stages(demo: Demo, train_base: bool) -> list[Stage]:
    """The demo's stages in order."""
    return [
        *_data_stages(demo, train_base),
        *_model_stages(demo),
        *(_base_training_stages(demo) if train_base else [_kept_base_stage(demo)]),
        _train_stage("train", demo.arguments(RECIPE)),
        *_evaluation_stages(demo),
        _merge_stage(demo),
        # quick, and it must speak of the results as they are now
        Stage("report", [["report", str(demo.out)]], lambda: False),
    ]


def _data_stages(demo: Demo, train_base: bool) -> list[Stage]:
    limit = ["--limit", str(demo.limit)] if demo.limit else []
    build = ["shards", "build", *limit, "--reader"]
    commands = {f"en-{split}": [*build, READER, "--split", split] for split in ("train", "test")}
    if train_base:
        commands |= {"en-balanced": [*build, READER, "--balance"], "captions": [*build, f"{READER}-captions"]}
    memory = f"memory={load(RECIPE).translate.memory}"
    commands |= {f"ru-{split}": ["translate", str(demo.data / f"en-{split}"), memory] for split in ("train", "test")}
    return [_dataset_stage(name, command, demo.data / name) for name, command in commands.items()]


def _dataset_stage(name: str, command: list[str], out: Path) -> Stage:
    return Stage(name, [[*command, "--out", str(out)]], lambda: (out / DATASET_FILE).exists() and not verify(out))


def _model_stage(name: str, command: list[str], *outs: Path) -> Stage:
    return Stage(name, [command], lambda: all(map(_whole, outs)))


def _whole(folder: Path) -> bool:
    return (folder / "MANIFEST.json").exists() and not (folder / UNFINISHED).exists() and not verify_manifest(folder)


def _model_stages(demo: Demo) -> list[Stage]:
    models, data = demo.models, demo.data
    parts = ["demo-models", "--text", str(data / "en-train"), "--out", str(models)]
    join = ["assemble", "--vision", str(models / "vision"), "--language", str(models / "language")]
    tokens = ["--new-language", str(data / "ru-train"), "--new-tokens", "256"]
    return [
        _model_stage("models", parts, models / "vision", models / "language"),
        _model_stage("assemble", [*join, *tokens, "--out", str(models / "assembled")], models / "assembled"),
    ]


def _kept_base_stage(demo: Demo) -> Stage:
    base = demo.models / "base"
    command = ["demo-base", "--assembled", str(demo.models / "assembled"), "--out", str(base)]
    return _model_stage("base", command, base)


def _base_training_stages(demo: Demo) -> list[Stage]:
    models = demo.models
    tower = ["demo-tower", "--assembled", str(models / "assembled"), "--captions", str(demo.data / "captions")]
    folders = ["--run", str(demo.out / "base" / "tower"), "--out", str(models / "tower")]
    made = [_model_stage("base-tower", [*tower, *folders], models / "tower")]
    for step, out in (("projector", "projector"), ("questions", "questions"), ("balanced", "base")):
        arguments = demo.arguments(f"demo_{step}")
        made += [
            _train_stage(f"base-{step}", arguments),
            _model_stage(f"base-{step}-model", ["export", *arguments, "--out", str(models / out)], models / out),
        ]
    return made


def _train_stage(name: str, arguments: list[str]) -> Stage:
    def standing() -> bool:
        from vlm.inputs import finished

        return finished(load(*_split(arguments)))

    return Stage(name, [["train", *arguments]], standing)


def _evaluation_stages(demo: Demo) -> list[Stage]:
    english, russian = (f"eval.data={demo.data / name}" for name in ("en-test", "ru-test"))
    back = [
        "eval.protocol=backtranslate",
        "eval.answers=ru-adapter",
        "translate.source_lang=ru",
        "translate.target_lang=en",
    ]
    return [
        _evaluation(demo, "en-base", [english]),
        _evaluation(demo, "ru-base", [russian]),
        _evaluation(demo, "ru-adapter", [russian, "eval.adapter=latest"]),
        _evaluation(demo, "ru-adapter-back", [english, *back], parts=1),
    ]


def _evaluation(demo: Demo, name: str, settings: list[str], parts: int = PARTS) -> Stage:
    arguments = demo.arguments(RECIPE, f"eval.name={name}", *settings)

    def standing() -> bool:
        from vlm.eval.run import standing

        return standing(load(*_split(arguments)))

    return Stage(f"eval-{name}", [["eval", *arguments, "--part", f"{i}/{parts}"] for i in range(parts)], standing)


def _merge_stage(demo: Demo) -> Stage:
    merged = demo.out / "merged"
    arguments = demo.arguments(RECIPE, f"eval.data={demo.data / 'ru-test'}", "eval.adapter=latest")

    def standing() -> bool:
        from vlm.merge.run import standing

        return standing(load(*_split(arguments)), merged)

    return Stage("merge", [["merge", *arguments, "--out", str(merged)]], standing)


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    return arguments[0], arguments[1:]


def _say(line: str) -> None:
    print(line, flush=True)


def _print_table(out: Path) -> None:
    rows = read_json(out / "benchmark_results.json")["results"]
    print(f"\n{'model':10}{'language':10}{'protocol':16}{'n':>7}{'score':>9}")
    for row in rows:
        print(f"{row['model']:10}{row['lang']:10}{row['protocol']:16}{row['n']:>7}{row['score']:>9.4f}")
    print(f"\nreport: {os.path.relpath(out / 'report.html')}")
