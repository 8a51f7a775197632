"""What a rank gets for one optimizer step."""

from dataclasses import dataclass

from vlm.data.batch import MicroBatch


@dataclass(frozen=True)
class Skipped:
    """A sample left out: its `(epoch, key)` as in the step's samples, why (in words and as a BadInput's kind), and what
    the step lost with it."""

    sample: tuple[int, str]
    reason: str
    tokens: int
    supervised: int
    kind: str = "schema"


@dataclass(frozen=True)
class Step:
    """One rank's share of an optimizer step. `samples`, `tokens` and `supervised` are of the *global* batch.

    `skipped` are this rank's until `Skips.agree` has made them, and what they take from the counts, everybody's.
    """

    index: int
    micro_batches: list[MicroBatch]
    samples: list[tuple[int, str]]
    tokens: int
    supervised: int
    skipped: tuple[Skipped, ...] = ()
