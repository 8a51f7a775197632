"""The model card: README.md of a folder that is handed over, with the front matter that a hub reads.

What stands in a run or in a dataset is other people's text: the front matter is written as YAML, and in the text every
sign that Markdown or HTML would take for its own is escaped. Paths of this machine are not told.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shards.errors import BadInput, plain
from shards.files import read_json
from shards.info import DATASET_FILE, DatasetInfo, read_info
from vlm.eval.folder import RESULT, EvaluationFolder
from vlm.merge.runs import recipe_of

# owner/name
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~<>&$])")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_MOST = 2**20
_ADAPTERS = ("r", "lora_alpha", "use_rslora", "use_dora", "modules_to_save")

_SEEING = """content = [{"type": "image", "url": "photo.jpg"}, {"type": "text", "text": "What is this?"}]
print(ask(text=[{"role": "user", "content": content}], max_new_tokens=32))"""
_READING = """print(ask([{"role": "user", "content": "What is a zebra?"}], max_new_tokens=32))"""
_USE = """## Use

```python
from transformers import pipeline

ask = pipeline("{}", model="FOLDER_OR_NAME")
{}
```

`transformers serve FOLDER_OR_NAME` and `vllm serve FOLDER_OR_NAME` answer OpenAI's chat completions.
"""

_TILED = """
## Images in tiles

An image is given as LLaVA-1.5-HD does: the whole made square, then up to {} tiles of its full resolution, each an
image of its own for `LlavaForConditionalGeneration`. `LLaVADataProcessor` of ruvlm makes them, and its tensors go
into plain transformers as they are:

    inputs = LLaVADataProcessor(folder)("What is this?", ["photo.jpg"])
    model.generate(**inputs)

The processor in this folder, transformers' own, gives the whole image alone, at the tower's resolution. To give it
tiles, cut them yourself and write one `<image>` for each, without anything between them.
"""


@dataclass(frozen=True)
class Card:
    """What a card tells. `base_models` are names, `licence` one of the hub's words; `proof` is the merge's own line."""

    title: str
    base_models: Sequence[str]
    licence: str = ""
    languages: Sequence[str] = ()
    data: Sequence[DatasetInfo] = ()
    evaluations: Sequence[EvaluationFolder] = ()
    method: Sequence[str] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    proof: str = ""
    tiles: int = 0
    library: str = "transformers"
    sees: bool = True

    @classmethod
    def of(
        cls,
        base: Path,
        run: Path | None = None,
        adapters: Sequence[Path] = (),
        proof: str = "",
        licence: str = "",
        base_names: Sequence[str] = (),
        library: str = "transformers",
    ) -> "Card":
        """Gather it from the base's folder, from a run's recipe, its data and RUN/eval, and from adapters' folders.

        What a run has not, or no longer, is left out. `base_names` stand for the names of the base's parts.
        """
        recipe = recipe_of(run) if run else {}
        assembly = _object(base / "assembly.json")
        evaluations = _evaluations(run) if run else []
        data = _data(recipe)
        names = [name for part in ("language", "vision") if isinstance(name := assembly.get(part), str)]
        return cls(
            title=name if isinstance(name := recipe.get("name"), str) and name else base.name,
            base_models=list(base_names) or names or [base.name],
            licence=licence or _licence_of(base),
            languages=sorted({each.lang for each in data} | {each.lang for each in evaluations}),
            data=data,
            evaluations=evaluations,
            method=[_method(folder) for folder in adapters],
            recipe={key: _told(recipe[key]) for key in ("adapter", "optim", "seed") if key in recipe},
            proof=proof,
            tiles=tiles if isinstance(tiles := assembly.get("tiles"), int) else 0,
            library=library,
            sees=_object(base / "config.json").get("model_type") == "llava",
        )

    def text(self) -> str:
        """README.md."""
        parts = [f"---\n{self._front_matter()}---\n\n# {escaped(self.title)}\n", self._bases(), self._training()]
        parts += [self._scores(), self._limits()]
        if self.library == "transformers":
            parts.append(_USE.format(self._task, _SEEING if self.sees else _READING))
        parts += [_TILED.format(self.tiles)] if self.tiles else []
        return "\n".join(part for part in parts if part)

    def _front_matter(self) -> str:
        hub = [name for name in self.base_models if HUB_NAME.fullmatch(name)]
        licence = self.licence.lower()
        told: dict[str, Any] = {
            "library_name": self.library,
            "pipeline_tag": self._task,
            "base_model": hub[0] if len(hub) == 1 else hub,
            "license": licence if _LICENCE.fullmatch(licence) else "other" if licence else "",
            "language": [tag for tag in self.languages if tag.isascii() and tag.isalnum()],
            "datasets": [each.name for each in self.data],
            "tags": [*(("llava", "vision-language") if self.sees else ()), "ruvlm"],
            "model-index": self._index(),
        }
        told = {key: value for key, value in told.items() if value}
        return yaml.safe_dump(told, allow_unicode=True, sort_keys=False, width=10**6)

    @property
    def _task(self) -> str:
        return "image-text-to-text" if self.sees else "text-generation"

    def _index(self) -> list[dict[str, Any]]:
        """The hub's form of scores. It has no place for an interval but a metric's arguments and its name."""
        results = []
        for each in self._scored():
            low, high, level, _ = _interval(each) or (None, None, None, None)
            within = f" ({level:.0%} interval {low:.4f} to {high:.4f})" if level else ""
            protocol = str(each.result.get("protocol", "direct"))
            by = "" if protocol == "direct" else f", {protocol}"
            metric = {"type": each.scorer, "name": each.scorer + by + within, "value": each.result["score"]}
            if level:
                metric["args"] = {"interval": {"level": level, "low": low, "high": high}}
            name = str(each.result["dataset"].get("name") or each.task_name)
            results.append(
                {
                    "task": {"type": "visual-question-answering", "name": each.task_name},
                    "dataset": {"name": name, "type": name, "split": str(each.result.get("split") or "test")},
                    "metrics": [metric],
                }
            )
        return [{"name": self.title, "results": results}] if results else []

    def _scored(self) -> list[EvaluationFolder]:
        """Of the trained model alone, and by figures that a hub can show."""
        return [
            each
            for each in self.evaluations
            if type(each.result.get("score")) in (int, float) and each.result.get("model") in ("adapter", "merged")
        ]

    def _bases(self) -> str:
        lines = [f"- {escaped(name)}" for name in self.base_models]
        licence = escaped(self.licence) or "not told; see the base models' own"
        return "## Base models\n\n" + "\n".join([*lines, "", f"Licence: {licence}."]) + "\n"

    def _training(self) -> str:
        lines = ["## Training\n"] if self.data or self.method or self.recipe or self.proof else []
        if self.data:
            lines += ["| data | language | samples | source | licence |", "|---|---|---|---|---|"]
            lines += [
                f"| {escaped(each.name)} | {escaped(each.lang)} | {each.samples} | {escaped(each.source)} | "
                f"{escaped(each.licence)} |"
                for each in self.data
            ]
            lines.append("")
        lines += [f"Adapter: {escaped(line)}.\n" for line in self.method]
        if self.recipe:
            told = yaml.safe_dump(dict(self.recipe), allow_unicode=True, sort_keys=False)
            # an indented block ends where a line is not indented: nothing in it can
            lines += ["Recipe:\n", *(f"    {plain(line)}" for line in told.splitlines()), ""]
        if self.proof:
            lines.append(f"Merged against base and adapter: {escaped(self.proof)}.\n")
        return "\n".join(lines)

    def _scores(self) -> str:
        rows = []
        for each in self.evaluations:
            score, found = each.result.get("score"), _interval(each)
            if type(score) not in (int, float):
                continue
            within = f"{found[0]:.4f} to {found[1]:.4f} ({found[2]:.0%}, {found[3]} images)" if found else ""
            told = (each.folder.name, each.task_name, each.lang, str(each.result.get("model")), each.scorer)
            cells = [escaped(cell) for cell in told]
            rows.append(f"| {' | '.join(cells)} | {score:.4f} | {within} | {escaped(str(each.result.get('n', '')))} |")
        if not rows:
            return ""
        head = ["## Scores\n", "| name | task | language | model | scorer | score | interval | n |", "|---" * 8 + "|"]
        return "\n".join([*head, *rows]) + "\n"

    def _limits(self) -> str:
        tongues = ", ".join(escaped(tag) for tag in self.languages) or "unknown languages"
        told = [f"- Trained and measured in: {tongues}. Other languages are those of the base models."]
        if not self._scored():
            told.append("- Not measured: no evaluation of this model was there when it was handed over.")
        told.append("- Answers may be wrong, also where they sound sure, and carry on the biases of data and bases.")
        return "## Limits\n\n" + "\n".join(told) + "\n"


def escaped(text: str) -> str:
    """One line of Markdown that shows `text` itself."""
    line = _SPECIAL.sub(r"\\\1", plain(" ".join(text.split()), 300))
    # bare addresses become links, and mentions letters, by themselves
    return line.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;").replace("@", "&#64;")


def _interval(evaluation: EvaluationFolder) -> tuple[float, float, float, int] | None:
    """Low, high, level and number of images; None where the result has none."""
    told = evaluation.result.get("interval")
    values: list[Any] = [told.get(key) for key in ("low", "high", "level", "images")] if isinstance(told, dict) else []
    if not values or not all(type(value) in (int, float) for value in values):
        return None
    low, high, level, images = values
    return float(low), float(high), float(level), int(images)


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path, _MOST) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _evaluations(run: Path) -> list[EvaluationFolder]:
    return [EvaluationFolder.of(path.parent) for path in sorted((run / "eval").glob(f"*/{RESULT}"))]


def _data(recipe: Mapping[str, Any]) -> list[DatasetInfo]:
    told = recipe.get("data")
    section: Mapping[str, Any] = told if isinstance(told, dict) else {}
    mix = section.get("mix")
    entries = mix if isinstance(mix, list) else []
    paths = [section.get("train"), *(entry.get("path") for entry in entries if isinstance(entry, dict))]
    found = []
    for path in (Path(path) for path in paths if path and isinstance(path, str)):
        # the run tells what it was; the data may be gone by now
        if (path / DATASET_FILE).exists():
            found.append(read_info(path))
    return found


def _told(section: Any) -> Any:
    """Without the keys that have no value."""
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if value is not None and value != []}


def _method(adapter: Path) -> str:
    config = read_json(adapter / "adapter_config.json", _MOST)
    if not isinstance(config, dict):
        raise BadInput(f"{adapter / 'adapter_config.json'}: no object")
    told = [f"{name} {config[name]}" for name in _ADAPTERS if config.get(name)]
    return ", ".join([str(config.get("peft_type")), *told])


def _licence_of(base: Path) -> str:
    """That of the base's own card, or the name of its licence file."""
    path = base / "README.md"
    if path.is_file():
        with open(path, "rb") as handle:
            head = handle.read(64 * 1024).decode("utf-8", "replace")
        if head.startswith("---\n"):
            try:
                told = yaml.safe_load(head[4:].partition("\n---")[0])
            except (RecursionError, ValueError, yaml.YAMLError):
                told = None
            if isinstance(told, dict) and isinstance(told.get("license"), str):
                return str(told["license"])
    return next((f"see {file.name}" for file in sorted(base.glob("LICEN[CS]E*"))), "")
