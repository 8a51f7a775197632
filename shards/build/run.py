"""Rows of a reader to a dataset folder of tar shards."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import PIL

from shards.ahead import cores, in_order
from shards.build.assembly import Assembly, Limits, TooManyRejected
from shards.build.encoding import Encoding
from shards.build.journal import Journal
from shards.build.origin import portable, sources, stamps
from shards.build.prepare import TokenLimit, prepare
from shards.build.settings import BuildSettings
from shards.errors import BadInput
from shards.files import UNFINISHED, release_output, write_json, write_json_lines
from shards.info import DATASET_FILE, DatasetInfo, FileInfo, check_name, file_info
from shards.output import check_dataset, claim_dataset, clear_output, room_to_write, sole_writer, versions
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.tokens import TokenCounter

REJECTED_FILE = "rejected.jsonl"
DUPLICATES_FILE = "duplicates.jsonl"


def build(
    reader: Reader,
    options: ReaderOptions,
    out: Path,
    name: str | None = None,
    samples_per_shard: int = 500,
    progress: Callable[[int], None] | None = None,
    settings: BuildSettings | None = None,
) -> DatasetInfo:
    """Write the reader's samples in folder `out`; two builds of one source are byte-identical.

    `name` is the stem of the shards, READER-SPLIT if not given. `progress` gets the number of samples done.
    An interrupted build goes on after its last whole shard. BadInput leaves nothing behind, unless whole shards stand:
    they stay, `.unfinished` and with rejected.jsonl, for a build that goes on.
    """
    settings = settings or BuildSettings()
    name = check_name(name or f"{reader.name}-{options.split}", "--name")
    limits = Limits(samples_per_shard, settings.bytes_per_shard, settings.max_rejected)
    tokens = _token_limit(settings)
    check_dataset(out, name)
    rows = _rows(reader, options)
    work = partial(prepare, encoding=settings.encoding, decode=settings.decode, limit=tokens)
    info = _description(reader, options, name, settings.encoding, tokens)
    created = not out.exists()
    with sole_writer(out), room_to_write(out):
        claim_dataset(out, name)
        journal = Journal(out, _work(info, options, out, limits, settings))
        with closing(journal), _left_by_bad_input(out, created, journal, options):
            clear_output(out, keep={UNFINISHED, *journal.files})
            # Rows that a standing shard holds, or that were rejected before it was full, are not made again.
            left = islice(rows, journal.tally.rows, None)
            with (
                Assembly(journal, out, name, limits) as assembly,
                closing(in_order(left, work, settings.workers or cores())) as prepared,
            ):
                for part in prepared:
                    assembly.take(part)
                    if progress:
                        progress(journal.tally.samples)
                assembly.finish()
            return _finish(out, info, journal, options)


def _rows(reader: Reader, options: ReaderOptions) -> Iterator[Draft]:
    """The rows to take. The first is read now, before the output is touched: most mistakes in the input show then."""
    drafts = islice(reader.drafts(options), options.limit)
    first = next(drafts, None)
    if first is None:
        raise BadInput(f"reader {reader.name} found no samples; check --input, --split and --limit")
    return chain([first], drafts)


def _token_limit(settings: BuildSettings) -> TokenLimit | None:
    if settings.tokenizer is None or settings.max_tokens is None:
        return None
    return TokenLimit(TokenCounter(settings.tokenizer), settings.max_tokens)


def _description(
    reader: Reader, options: ReaderOptions, name: str, encoding: Encoding, tokens: TokenLimit | None
) -> DatasetInfo:
    """What is known of the dataset before it is written."""
    written_anew = {} if encoding.keeps else {"encoding": asdict(encoding)}
    limited = {} if tokens is None else {"tokenizer": tokens.counter.name, "max_tokens": tokens.most}
    return DatasetInfo(
        name=name,
        lang="mul",
        split=options.split,
        source=reader.source,
        licence=reader.licence,
        samples=0,
        questions=0,
        images=0,
        shards=(),
        reader={"name": reader.name, **options.to_json(), **written_anew, **limited},
        versions=versions() | ({"pillow": PIL.__version__} if written_anew else {}),
    )


def _work(info: DatasetInfo, options: ReaderOptions, out: Path, limits: Limits, settings: BuildSettings) -> str:
    """Digest of all that decides which bytes are written."""
    read = sources(options) + ([settings.tokenizer] if settings.tokenizer else [])
    decisive = [info.to_json(), stamps(read, out), limits.samples, limits.bytes, settings.decode]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _finish(out: Path, info: DatasetInfo, journal: Journal, options: ReaderOptions) -> DatasetInfo:
    """Write what describes the whole, dataset.json last; all of it follows from the journal."""
    tally = journal.tally
    files = []
    if tally.rejected:
        files.append(_write_rejected(out, journal, options))
    if tally.duplicates:
        write_json_lines(out / DUPLICATES_FILE, journal.duplicates())
        files.append(file_info(out / DUPLICATES_FILE))
    info = replace(
        info,
        lang=tally.languages[0] if len(tally.languages) == 1 else "mul",
        samples=tally.samples,
        questions=tally.questions,
        images=tally.images,
        rejected=tally.rejected,
        duplicates=tally.duplicates,
        shards=tuple(journal.shards),
        files=tuple(files),
    )
    write_json(out / DATASET_FILE, info.to_json())
    journal.discard()
    release_output(out)
    return info


def _write_rejected(out: Path, journal: Journal, options: ReaderOptions) -> FileInfo:
    lines = ({name: portable(text, options) for name, text in line.items()} for line in journal.rejected())
    write_json_lines(out / REJECTED_FILE, lines)
    return file_info(out / REJECTED_FILE)


@contextmanager
def _left_by_bad_input(out: Path, created: bool, journal: Journal, options: ReaderOptions) -> Iterator[None]:
    """After BadInput nothing is left, or whole shards for a build that goes on."""
    try:
        with room_to_write(out):
            yield
    except BadInput as error:
        if not journal.shards:
            _withdraw(out, created, journal)
            raise
        raise _interrupted(error, out, journal, options) from error


def _withdraw(out: Path, created: bool, journal: Journal) -> None:
    """Leave the folder as it was found."""
    journal.discard()
    clear_output(out)
    if created:
        with suppress(OSError):  # somebody else put something there meanwhile
            out.rmdir()


def _interrupted(error: BadInput, out: Path, journal: Journal, options: ReaderOptions) -> BadInput:
    """The error that says what stays for a build that goes on."""
    kept = f"{error}; whole shards kept in {out}: {len(journal.shards)}"
    if journal.tally.rejected:
        with suppress(OSError, sqlite3.Error):  # on a full disk, what led here matters more
            _write_rejected(out, journal, options)
    if isinstance(error, TooManyRejected):
        kept += f"; look into {REJECTED_FILE} there, and build again with a larger --max-rejected to go on after them"
    return BadInput(kept, error.kind)
