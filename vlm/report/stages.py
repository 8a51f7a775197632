"""How the stages of a pipeline ended, for its report."""

from collections.abc import Sequence
from dataclasses import dataclass

DONE, STANDS, FAILED, LEFT_OUT, OPEN = "done", "stands", "failed", "left out", "not over"


@dataclass(frozen=True)
class StageEnd:
    """`state` is one of the words above, `what` says it in words, `log` are the last lines of a failed stage."""

    stage: str
    state: str
    what: str = ""
    log: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """One line."""
        return f"{self.stage}: {self.state}{f', {self.what}' if self.what else ''}"


def failed(stages: Sequence[StageEnd]) -> bool:
    """Whether one of them failed."""
    return any(each.state == FAILED for each in stages)
