"""Whether the data keep up with the steps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# the first steps wait for what nobody could prepare before; fewer than these say little
_WARM, _JUDGED = 5, 25
_USUAL_WAIT = 0.01


class Waits:
    """The share of a loop's time that it waits for its next item, after the first few."""

    def __init__(self) -> None:
        self.items, self.waited, self.begun, self.said = 0, 0.0, 0.0, False

    def during(self, get: Callable[[], T]) -> T:
        """What `get` returns, its time counted as waiting."""
        before = time.perf_counter()
        item = get()
        self.items += 1
        if self.items == _WARM:
            self.begun = time.perf_counter()
        elif self.items > _WARM:
            self.waited += time.perf_counter() - before
        return item

    @property
    def share(self) -> float:
        return self.waited / max(1e-9, time.perf_counter() - self.begun)

    def slow(self) -> bool:
        """True once, when enough items were waited for too long."""
        late = not self.said and self.items >= _WARM + _JUDGED and self.share > _USUAL_WAIT
        self.said = self.said or late
        return late
