"""Parts of an evaluation: answered sample by sample into a journal, written whole at the end.

Joined only when complete.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.files import read_json, write_atomic, write_json


@dataclass(frozen=True)
class Row:
    """One answered question."""

    question_id: str
    key: str
    question: str
    prediction: str
    answers: list[str]
    type: str | None


@dataclass(frozen=True)
class Part:
    """Part `index` of `of`: a contiguous share of the samples, so an image is never split."""

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """`i/n` with 0 ≤ i < n."""
        left, _, right = text.partition("/")
        if not (left.isdigit() and right.isdigit() and int(left) < int(right)):
            raise BadInput(f"--part {text}: write i/n with i from 0 to n-1, such as 0/2")
        return cls(int(left), int(right))

    @property
    def pair(self) -> tuple[int, int]:
        """(index, of)."""
        return self.index, self.of

    def samples(self, total: int) -> range:
        """Indices of this part's samples."""
        return range(total * self.index // self.of, total * (self.index + 1) // self.of)

    @property
    def name(self) -> str:
        return f"part-{self.index:05d}-of-{self.of:05d}.jsonl"


def claim_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Bind an evaluation folder to what is evaluated; BadInput when it holds answers of something else."""
    path = folder / "settings.json"
    if path.exists():
        found = read_json(path)
        odd = sorted(k for k in found.keys() | settings.keys() if found.get(k) != settings.get(k))
        if odd:
            raise BadInput(
                f"{folder}: holds answers for another {odd[0]}; choose another eval.name or remove the folder"
            )
        return
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


class Journal:
    """Answers of one part so far, a line a sample. A torn last line (a killed process) is dropped."""

    def __init__(self, folder: Path, part: Part) -> None:
        self.final = folder / "parts" / part.name
        self.path = self.final.with_suffix(".journal")
        self.done: dict[str, list[Row]] = {}
        if self.path.exists():
            self._recover()

    def _recover(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            write_atomic(self.path, whole)
        for line in whole.split(b"\n")[:-1]:
            entry = json.loads(line)
            self.done[entry["key"]] = [Row(**row) for row in entry["rows"]]

    @property
    def finished(self) -> bool:
        return self.final.exists()

    def add(self, answered: list[tuple[str, list[Row]]]) -> None:
        """Append samples that have been answered."""
        with open(self.path, "a", encoding="utf-8") as handle:
            for key, rows in answered:
                self.done[key] = rows
                entry = {"key": key, "rows": [asdict(r) for r in rows]}
                handle.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def finish(self, keys: list[str]) -> None:
        """Write the part's file in dataset order and drop the journal."""
        rows = [row for key in keys for row in self.done[key]]
        write_atomic(self.final, rows_text(rows))
        self.path.unlink(missing_ok=True)


def rows_text(rows: list[Row]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rows)


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a part or of predictions.jsonl, BadInput naming file and line for rubbish."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    names = set(Row.__dataclass_fields__)
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            fields = json.loads(line)
            yield Row(**{name: value for name, value in fields.items() if name in names})
        except (ValueError, TypeError, AttributeError) as error:
            raise BadInput(f"{path}:{number}: not an answer row ({error})") from None


def collect(folder: Path, expected: dict[str, str]) -> list[Row]:
    """All rows of the finished parts in dataset order. `expected` maps question_id → sample key.

    Raises BadInput naming what is missing: parts are joined only when every question has its answer, once.
    """
    rows: dict[str, Row] = {}
    files = sorted((folder / "parts").glob("part-?????-of-?????.jsonl"))
    for path in files:
        for row in read_rows(path):
            if row.question_id in rows:
                raise BadInput(
                    f"{path}: question {row.question_id} is answered twice; remove parts of another --part n"
                )
            if row.question_id not in expected:
                raise BadInput(f"{path}: question {row.question_id} is not in eval.data")
            rows[row.question_id] = row
    missing = [q for q in expected if q not in rows]
    if missing:
        raise BadInput(
            f"{folder}: {len(missing)} of {len(expected)} questions have no answer yet, first {missing[0]}; "
            f"run the missing --part (found {', '.join(p.stem for p in files) or 'no part'})"
        )
    return [rows[q] for q in expected]
