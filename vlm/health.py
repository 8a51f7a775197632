"""What can go wrong in a training without ending it: numbers that are not finite, loss spikes, slow ranks."""

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, median_low, pstdev

SPIKE_SIGMAS = 6.0
SLOW = 0.75
_WINDOW, _FEWEST = 100, 20
_WINDOWS = 3


class Spikes:
    """Tells a loss far above those of the last 100 steps."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_WINDOW)

    def sigmas(self, loss: float) -> float | None:
        """How many standard deviations `loss` lies above the mean where that is more than 6; takes it in."""
        found = None
        if len(self._recent) >= _FEWEST:
            mean, deviation = fmean(self._recent), pstdev(self._recent)
            # a loss that stands still to the last bits is no measure of what is far
            above = (loss - mean) / max(deviation, 1e-3 * abs(mean), 1e-9)
            found = above if above > SPIKE_SIGMAS else None
        self._recent.append(loss)
        return found


class Stragglers:
    """Names ranks below 0.75 of the median speed in three windows of steps one after the other."""

    def __init__(self, ranks: int) -> None:
        self._slow = [0] * ranks

    def window(self, seconds_per_token: Sequence[float]) -> list[tuple[int, float]]:
        """`(rank, speed as a share of the median rank's)` of those found now, from each rank's own computing time."""
        typical = median_low(seconds_per_token)
        speeds = [typical / own if own > 0 else 1.0 for own in seconds_per_token]
        self._slow = [count + 1 if speed < SLOW else 0 for count, speed in zip(self._slow, speeds, strict=True)]
        return [(rank, speeds[rank]) for rank, count in enumerate(self._slow) if count and count % _WINDOWS == 0]


def finite(value: float) -> float | None:
    """For JSON, which knows neither NaN nor infinities."""
    return value if math.isfinite(value) else None
