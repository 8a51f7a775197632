"""Score prediction files that come from anywhere."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.dataset import ShardDataset
from shards.errors import BadInput
from vlm.eval.tasks import Task


def read_predictions(paths: Sequence[Path]) -> dict[str, str]:
    """`question_id` → `prediction` of JSONL files; BadInput names file and line of rubbish or of a second answer."""
    found: dict[str, str] = {}
    for path in paths:
        try:
            lines = path.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: cannot be read ({error})") from None
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                row = json.loads(line)
                identity, prediction = row["question_id"], row["prediction"]
            except (ValueError, KeyError, TypeError):
                raise BadInput(f"{path}:{number}: wanted an object with question_id and prediction") from None
            if not isinstance(identity, str) or not isinstance(prediction, str):
                raise BadInput(f"{path}:{number}: question_id and prediction must be texts")
            if identity in found:
                raise BadInput(f"{path}:{number}: question {identity} is answered twice")
            found[identity] = prediction
    return found


def score_files(task: Task, dataset: ShardDataset, predictions: dict[str, str]) -> dict[str, Any]:
    """`{"task", "score" (0 to 1), "n", "scorer"}`; BadInput unless exactly the dataset's questions are answered."""
    truth = {q.question_id: q for sample in dataset for q in sample.questions}
    odd = sorted(truth.keys() ^ predictions.keys())
    if odd:
        where = "has no prediction" if odd[0] in truth else "is not in the data"
        raise BadInput(f"predictions: question {odd[0]} {where} ({len(odd)} such in all)")
    if unknown := next((i for i, q in truth.items() if not q.answers), None):
        raise BadInput(f"{dataset.folder}: no answer to question {unknown}: it cannot be scored")
    points = [task.correct(predictions[i], q.answers) for i, q in truth.items()]
    return {"task": task.name, "score": sum(points) / len(points), "n": len(points), "scorer": task.scorer}
