"""dataset.json: what a dataset folder holds, written last."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.files import local_folder, read_json, sha256_file

DATASET_FILE = "dataset.json"
FORMAT = 2
MAX_DATASET_BYTES = 8 * 1024 * 1024

# Plain names only: a file named in dataset.json cannot lead out of its folder or be taken for a URL.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,159}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a dataset: name, size in bytes, digest."""

    file: str
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "bytes": self.bytes, "sha256": self.sha256}

    @classmethod
    def from_json(cls, obj: Any, at: str) -> "FileInfo":
        """Parse one file; BadInput, starting with `at`, when its name is no plain one or its digest no digest."""
        digest = _get(obj, "sha256", str, at)
        if not _SHA256.fullmatch(digest):
            raise BadInput(f"{at}: 'sha256' is no digest")
        return cls(check_name(_get(obj, "file", str, at), at), _count(obj, "bytes", at), digest)


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """A tar with its number of samples and its sidecar index."""

    tar: FileInfo
    samples: int
    index: FileInfo

    def to_json(self) -> dict[str, Any]:
        return {**self.tar.to_json(), "samples": self.samples, "index": self.index.to_json()}

    @classmethod
    def from_json(cls, obj: Any, at: str) -> "ShardInfo":
        """Parse one entry of `shards`; BadInput starts with `at`."""
        tar = FileInfo.from_json(obj, at)
        return cls(tar, _count(obj, "samples", at), FileInfo.from_json(_get(obj, "index", dict, at), f"{at}.index"))


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """dataset.json, typed; `translated_from` and `engine` are set for a translated dataset.

    `rejected` counts rows of the source that became no sample, `duplicates` questions about an image that were asked of
    it before. `files` are the others of the folder, such as rejected.jsonl.
    """

    name: str
    lang: str
    split: str
    source: str
    licence: str
    samples: int
    questions: int
    images: int
    shards: tuple[ShardInfo, ...]
    rejected: int = 0
    duplicates: int = 0
    files: tuple[FileInfo, ...] = ()
    reader: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    translated_from: dict[str, Any] | None = None
    engine: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The object stored, with a digest of its own: a change anywhere in it shows."""
        obj: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "lang": self.lang,
            "split": self.split,
            "source": self.source,
            "licence": self.licence,
            "samples": self.samples,
            "questions": self.questions,
            "images": self.images,
            "rejected": self.rejected,
            "duplicates": self.duplicates,
            "shards": [shard.to_json() for shard in self.shards],
            "files": [file.to_json() for file in self.files],
            "reader": self.reader,
            "versions": self.versions,
        }
        if self.translated_from is not None:
            obj |= {"translated_from": self.translated_from, "engine": self.engine}
        return obj | {"digest": _digest(obj)}

    @classmethod
    def from_json(cls, obj: Any, at: str) -> "DatasetInfo":
        """Parse dataset.json; BadInput, starting with `at`, also when it is not what `to_json` made."""
        if not isinstance(obj, dict) or obj.get("format") != FORMAT:
            raise BadInput(f"{at}: not a dataset of format {FORMAT}; build it again with `vlm shards build`")
        shards = tuple(
            ShardInfo.from_json(item, f"{at}: shards[{i}]") for i, item in enumerate(_get(obj, "shards", list, at))
        )
        samples = _count(obj, "samples", at)
        if samples != sum(shard.samples for shard in shards):
            raise BadInput(f"{at}: samples is {samples} and its shards add up to {sum(s.samples for s in shards)}")
        files = tuple(
            FileInfo.from_json(item, f"{at}: files[{i}]") for i, item in enumerate(_get(obj, "files", list, at))
        )
        translated_from = _get(obj, "translated_from", dict, at) if "translated_from" in obj else None
        info = cls(
            name=check_name(_get(obj, "name", str, at), at),
            lang=_get(obj, "lang", str, at),
            split=_get(obj, "split", str, at),
            source=_get(obj, "source", str, at),
            licence=_get(obj, "licence", str, at),
            samples=samples,
            questions=_count(obj, "questions", at),
            images=_count(obj, "images", at),
            shards=shards,
            rejected=_count(obj, "rejected", at),
            duplicates=_count(obj, "duplicates", at),
            files=files,
            reader=_get(obj, "reader", dict, at),
            versions=_get(obj, "versions", dict, at),
            translated_from=translated_from,
            engine=_get(obj, "engine", dict, at) if translated_from is not None else None,
        )
        if not info.is_what(obj):
            raise BadInput(f"{at}: differs from its digest; build the dataset again")
        return info

    def is_what(self, obj: dict[str, Any]) -> bool:
        """Whether `obj` is this very dataset's JSON, digest included."""
        try:
            return obj == self.to_json()
        except (ValueError, RecursionError):  # parsed, but nothing that could have been written
            return False


def read_info(folder: Path) -> DatasetInfo:
    """The DatasetInfo of a dataset folder; BadInput when there is none or it is garbage."""
    path = local_folder(folder) / DATASET_FILE
    if not path.is_file():
        raise BadInput(f"no {DATASET_FILE} in {folder}: build it with `vlm shards build`")
    return DatasetInfo.from_json(read_json(path, MAX_DATASET_BYTES), str(path))


def file_info(path: Path) -> FileInfo:
    """Name, size and digest of a file as it stands."""
    return FileInfo(path.name, path.stat().st_size, sha256_file(path))


def _digest(obj: dict[str, Any]) -> str:
    canonical = json.dumps(obj, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_name(name: str, at: str) -> str:
    """`name` itself if it is a plain file name; BadInput otherwise."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"{at}: the name {name!r:.200} is not plain; use letters, digits, '.', '_' and '-'")
    return name


def _get(obj: Any, name: str, kind: type, at: str) -> Any:
    value = obj.get(name) if isinstance(obj, dict) else None
    if not isinstance(value, kind):
        raise BadInput(f"{at}: {name!r} should be of type {kind.__name__}")
    return value


def _count(obj: Any, name: str, at: str) -> int:
    value = _get(obj, name, int, at)
    if isinstance(value, bool) or value < 0:
        raise BadInput(f"{at}: {name!r} should be a count")
    return int(value)
