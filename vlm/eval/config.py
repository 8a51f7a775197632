"""Section `eval` of a recipe."""

from dataclasses import dataclass

from shards.errors import BadInput


@dataclass(kw_only=True)
class EvalConfig:
    """What is asked of which model."""

    name: str = "eval"
    """Folder of the results under RUN/eval."""
    task: str = "exact"
    """Task: how answers are parsed and scored."""
    data: str = ""
    """Folder of the shards with the questions."""
    adapter: str = ""
    """Adapter folder; `latest` takes the run's newest verified checkpoint, empty evaluates the base alone."""
    protocol: str = "direct"
    """direct, or backtranslate: answers go back to the source language and are scored there."""
    answers: str = ""
    """With backtranslate: name of the finished direct evaluation whose answers are translated back."""
    instruction: str = ""
    """Response-format prompt, put on a line of its own after each question."""
    max_new_tokens: int = 16
    """Longest answer, in tokens."""
    batch_size: int = 256
    """Questions answered together."""
    limit: int = 0
    """Only the first so many samples; 0 takes all."""

    def __post_init__(self) -> None:
        if self.protocol not in ("direct", "backtranslate"):
            raise BadInput(f"eval.protocol: {self.protocol!r} is not one of direct, backtranslate")
        if min(self.max_new_tokens, self.batch_size) < 1 or self.limit < 0:
            raise BadInput("eval.max_new_tokens and eval.batch_size must be at least 1, eval.limit at least 0")
