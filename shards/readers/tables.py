"""Rows of Parquet and Arrow files, a batch at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import BadInput
from shards.files import check_plain_file
from shards.images import MAX_IMAGE_BYTES
from shards.sample import MAX_JSON_BYTES

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

Row = Callable[[], Any]
"returns a row, or raises BadInput if that row alone cannot be read"

_BATCH = 64
_BLOCK = 1 << 20
# no row that a sample could be made of is larger
_MAX_ROW = MAX_IMAGE_BYTES + MAX_JSON_BYTES
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Row]]:
    """(place, row) of a Parquet file, or of all `*.parquet` below a folder in the order of their names.

    `columns` are read if the file has them, all others are passed over.
    """
    for file in files_of(path, "*.parquet"):
        with _open_parquet(file) as table:
            _check_row_groups(table.metadata, file)
            names = table.schema_arrow.names
            wanted = names if columns is None else [name for name in columns if name in names]
            batches = table.iter_batches(batch_size=_BATCH, columns=wanted, use_threads=False)
            yield from _batch_rows(batches, file)


def parquet_columns(path: Path) -> list[str]:
    """Names of the columns of a Parquet file."""
    with _open_parquet(path) as table:
        return list(table.schema_arrow.names)


def arrow_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) of an Arrow stream file, which Hugging Face `datasets` saves."""
    with _open_arrow(path) as (source, stream):
        yield from _batch_rows((part for batch in stream for part in _parts(batch)), path)
        if source.tell() != source.size():
            raise BadInput(f"{path}: something follows the end of the Arrow stream")


def arrow_columns(path: Path) -> list[str]:
    """Names of the columns of an Arrow stream file."""
    with _open_arrow(path) as (_, stream):
        return list(stream.schema.names)


def files_of(path: Path, pattern: str) -> list[Path]:
    """`path` itself, or the files below that folder that match, in order; BadInput when there are none."""
    found = sorted(path.rglob(pattern)) if path.is_dir() else [path]
    if not found or not found[0].exists():
        raise BadInput(f"{path}: no {pattern} there; check --input")
    return found


def _check_row_groups(metadata: Any, file: Path) -> None:
    """BadInput for a small file that would unpack to cells larger than any sample."""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        if group.total_byte_size > (group.num_rows + 1) * _MAX_ROW:
            raise BadInput(f"{file}: row group {i} unpacks to {group.total_byte_size} bytes for {group.num_rows} rows")


def _parts(batch: "pyarrow.RecordBatch") -> Iterator["pyarrow.RecordBatch"]:
    # offsets in a file are not to be trusted: unchecked ones read memory that is not the file's
    batch.validate(full=True)
    return (batch.slice(start, _BATCH) for start in range(0, batch.num_rows, _BATCH))


def _batch_rows(batches: Iterator["pyarrow.RecordBatch"], file: Path) -> Iterator[tuple[str, Row]]:
    number = 0
    for batch in batches:
        for i in range(batch.num_rows):
            number += 1
            yield f"{file}: row {number}", partial(_batch_row, batch, i)


def _batch_row(batch: "pyarrow.RecordBatch", i: int) -> Any:
    import pyarrow

    try:
        return batch.slice(i, 1).to_pylist()[0]
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise BadInput(f"the row cannot be read ({_one_line(error)})") from error


@contextmanager
def _open_parquet(path: Path) -> Iterator["pyarrow.parquet.ParquetFile"]:
    import pyarrow.parquet

    # with pre_buffer, its default, all that has been read stays in memory
    how = {"pre_buffer": False, "buffer_size": _BLOCK}
    with _arrow_errors(path, "Parquet file"), pyarrow.parquet.ParquetFile(path, **how) as table:
        yield table


@contextmanager
def _open_arrow(path: Path) -> Iterator[tuple["pyarrow.MemoryMappedFile", "pyarrow.RecordBatchStreamReader"]]:
    import pyarrow

    with _arrow_errors(path, "Arrow stream"), pyarrow.memory_map(str(path)) as source:
        end = source.size() - len(_ARROW_END)
        if end < 0 or source.read_at(len(_ARROW_END), end) != _ARROW_END:
            raise BadInput(f"{path}: not a whole Arrow stream; copy or save it again")
        with pyarrow.ipc.open_stream(source) as stream:
            yield source, stream


@contextmanager
def _arrow_errors(path: Path, what: str) -> Iterator[None]:
    import pyarrow

    check_plain_file(path)
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{path}: not a readable {what} ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
