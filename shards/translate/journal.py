"""Which shards of an unfinished translation stand already."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.files import parse_json, sha256_file, sync_folder
from shards.info import FileInfo, ShardInfo

JOURNAL = ".progress.jsonl"


@dataclass(frozen=True)
class ShardResult:
    """One source shard, translated: its output (None when every sample was rejected) and what was rejected."""

    source: str
    shard: ShardInfo | None
    rejected: tuple[dict[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        shard = None if self.shard is None else self.shard.to_json()
        return {"source": self.source, "shard": shard, "rejected": list(self.rejected)}


class Journal:
    """Append-only file of results; lines of other work (source, engine or limit changed) do not count."""

    def __init__(self, folder: Path, work: str) -> None:
        """`work` is the digest of all that decides the output."""
        self.folder, self.work = folder, work
        self.path = folder / JOURNAL

    def load(self) -> dict[str, ShardResult]:
        """Source shard → result, of the lines whose files stand with the recorded sizes and digests."""
        if not self.path.exists():
            return {}
        results = (self._parse(line) for line in self.path.read_bytes().split(b"\n"))
        return {result.source: result for result in results if result is not None and self._stands(result)}

    def _parse(self, line: bytes) -> ShardResult | None:
        try:
            obj = parse_json(line, str(self.path))
            if not isinstance(obj, dict) or obj.get("work") != self.work:
                return None
            shard = None if obj["shard"] is None else ShardInfo.from_json(obj["shard"], str(self.path))
            return ShardResult(obj["source"], shard, tuple(obj["rejected"]))
        except (BadInput, KeyError, TypeError):  # a line torn by a kill: its shard is done again
            return None

    def _stands(self, result: ShardResult) -> bool:
        return result.shard is None or all(self._whole(file) for file in (result.shard.tar, result.shard.index))

    def _whole(self, file: FileInfo) -> bool:
        path = self.folder / file.file
        return path.is_file() and path.stat().st_size == file.bytes and sha256_file(path) == file.sha256

    def append(self, result: ShardResult) -> None:
        """Record a result whose files stand."""
        line = json.dumps({"work": self.work, **result.to_json()}, ensure_ascii=False)
        with open(self.path, "ab") as handle:
            # The newline comes first: it ends a line that a kill may have torn.
            handle.write(b"\n" + line.encode("utf-8"))
            handle.flush()
            os.fsync(handle.fileno())
        sync_folder(self.folder)
