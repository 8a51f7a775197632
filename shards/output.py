"""A dataset folder that is being written."""

import importlib.metadata
import platform
import re
from collections.abc import Collection
from pathlib import Path

from shards.errors import BadInput
from shards.files import UNFINISHED, claim_output, read_json
from shards.info import DATASET_FILE

_OURS = re.compile(
    r".+-\d{6}\.(tar|index\.json)|(rejected|duplicates)\.jsonl|quality\.(json|html)|"
    r"\.progress\.sqlite(-journal|-wal|-shm)?|\.translate-.+|\..+\.tmp|" + re.escape(UNFINISHED)
)


def claim_dataset(out: Path, name: str) -> bool:
    """`claim_output` for a dataset; another complete dataset there is not overwritten either (BadInput)."""
    if (out / DATASET_FILE).is_file():
        found = read_json(out / DATASET_FILE)
        if not isinstance(found, dict) or found.get("name") != name:
            holds = found.get("name") if isinstance(found, dict) else found
            raise BadInput(f"output folder {out} holds the dataset {holds!r:.200}; choose another --out")
    return claim_output(out, DATASET_FILE)


def clear_output(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove the files of earlier, unfinished work from a claimed folder, except the names in `keep`."""
    # The mark that the folder is ours goes last.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == UNFINISHED):
        if path.name not in keep and _OURS.fullmatch(path.name) and not path.is_dir():
            path.unlink()


def versions() -> dict[str, str]:
    """Versions that a dataset records."""
    try:
        own = importlib.metadata.version("ruvlm")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {"ruvlm": own, "python": platform.python_version()}
