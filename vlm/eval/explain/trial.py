"""Another way to ask, tried: what it gave, beside the evaluation that it is compared with."""

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import BadInput, plain
from shards.files import read_json, sha256_file, write_json
from vlm.eval.folder import ANSWERS

FOLDER = "try"
_FILE = "trial.json"
_SETTING = 400
KEYS = ("instruction", "constrain", "max_new_tokens", "temperature", "top_p", "votes", "beams", "quantize")


@dataclass(frozen=True)
class Trial:
    """What `setting` gave against the evaluation, on `n` questions.

    Scores are 0 to 1; `gain` and its interval over images are in points; `fixed` questions became right, `broken` ones
    wrong; `p_value` is McNemar's. `stale` says that the evaluation has been made anew since.
    """

    setting: str
    n: int
    before: float
    after: float
    gain: float
    interval: tuple[float, float] | None
    fixed: int
    broken: int
    p_value: float
    stale: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_setting(setting: str) -> str:
    """A setting that changes how questions are asked; BadInput for any other."""
    key, mark, _ = setting.partition("=")
    if not mark or key not in {f"eval.{name}" for name in KEYS}:
        raise BadInput(f"--try {setting!r:.80}: write eval.KEY=VALUE, KEY being one of {', '.join(KEYS)}")
    return setting


def trial_name(name: str, setting: str) -> str:
    """Name, and so the folder, of the trial of a setting of evaluation `name`."""
    key = check_setting(setting).partition("=")[0].removeprefix("eval.")
    return f"{name}/{FOLDER}/{key}-{hashlib.sha256(setting.encode()).hexdigest()[:8]}"


def write_trial(trial: Trial, folder: Path, other: Path) -> None:
    """Beside its answers in `other`, bound to those of the evaluation in `folder`."""
    write_json(other / _FILE, {**trial.to_json(), "answers": sha256_file(folder / ANSWERS)})


def read_trials(folder: Path) -> tuple[Trial, ...]:
    """Those below an evaluation's folder, best first."""
    paths = sorted(folder.glob(f"{FOLDER}/*/{_FILE}"))
    now = sha256_file(folder / ANSWERS) if paths else ""
    found = [_read(path, now) for path in paths]
    return tuple(sorted(found, key=lambda trial: (trial.stale, -trial.gain, trial.setting)))


def _read(path: Path, now: str) -> Trial:
    try:
        fields = dict(read_json(path))
        stale = fields.pop("answers") != now
        around = fields["interval"]
        around = (float(around[0]), float(around[1])) if around else None
        # printed in one line
        setting = plain(" ".join(fields["setting"].split()), _SETTING)
        found = Trial(**{**fields, "setting": setting, "interval": around, "stale": stale})
        # what is sorted and printed
        numbers = (found.n, found.before, found.after, found.gain, found.fixed, found.broken, found.p_value)
        if not all(map(math.isfinite, numbers)):
            raise ValueError
        return found
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        raise BadInput(f"{path}: not a trial; remove its folder and run `vlm explain` again") from None
