"""Which task a file belongs to, by the names of its fields: said when a file turns out to be no file of a task."""

import re
from pathlib import Path

from shards.errors import BadInput
from shards.files import read_json
from shards.info import DatasetInfo
from vlm.eval.files import head, table
from vlm.eval.tasks import TASKS, find_task
from vlm.eval.tasks.base import Task

_HEAD = 1 << 16
_JSON_NAME = re.compile(r'"([\w-]{1,40})"\s*:')


def other_task(task: Task, path: Path) -> str | None:
    """Name of the other task that a file is certainly of; None where it may be one of `task`, or of several."""
    try:
        if (known := _evaluated(path)) is not None:
            return None if known.signs == task.signs else known.name
        names = _names(path)
    except BadInput:
        return None
    found = [each for each in TASKS.values() if any(sign <= names for sign in each.signs)]
    certain = len({each.signs for each in found}) == 1 and found[0].signs != task.signs
    return found[0].name if certain else None


def other_source(name: str, info: DatasetInfo) -> str | None:
    """Task of the set that questions come from, as their reader says, where it is another one than `name`.

    None for tasks of any set, and for the same set in another language.
    """
    task, of = find_task(name), TASKS.get(str(info.reader.get("name")))
    return of.name if of and task.signs and of.signs != task.signs else None


def _evaluated(path: Path) -> Task | None:
    """The task that made the answers of `vlm eval`, as the result beside them says."""
    beside = path.with_name("result.json")
    if path.name != "predictions.jsonl" or not beside.is_file():
        return None
    found = read_json(beside)
    name = found.get("task") if isinstance(found, dict) else None
    return TASKS.get(name) if isinstance(name, str) else None


def _names(path: Path) -> frozenset[str]:
    if path.suffix in (".tsv", ".xlsx"):
        return frozenset(next((row for _, row in table(path)), {}))
    return frozenset(_JSON_NAME.findall(head(path, _HEAD).decode("utf-8", errors="replace")))
