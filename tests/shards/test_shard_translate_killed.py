"""Translations killed with SIGKILL at seeded moments, alone and in parts: nothing changes, next to nothing is lost."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from shards.sample import Sample
from shards.translate.config import QualityConfig
from shards.translate.plan import Plan
from shards.translate.run import translate_dataset, translate_part

MakeSample = Callable[..., Sample]
MakeDataset = Callable[..., Path]

MOMENTS = 20
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "fcntl.flock", "sqlite3.connect", "engine.translate"}
CYRILLIC = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувшжыз")


class Transliteration:
    """An engine that notes in a file what it was asked."""

    name, model, source_lang, target_lang, batch_size = "letters", "letters-1", "en", "ru", 2

    def __init__(self, log: Path) -> None:
        self.log = log

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        sys.audit("engine.translate")
        with open(self.log, "a", encoding="utf-8") as handle:
            handle.write("".join(f"{text}\n" for text in texts))
        sys.audit("engine.translate")
        return [None if "q" in text else text.lower().translate(CYRILLIC) for text in texts]

    @property
    def asked(self) -> Counter[str]:
        return Counter(self.log.read_text("utf-8").splitlines()) if self.log.exists() else Counter()


def plan(folder: Path) -> Plan:
    quality = QualityConfig(languages=False)
    return Plan([Transliteration(folder / "asked")], quality=quality, cache=folder / "cache", max_rejected=0.5)


def in_child(work: Callable[[], object], folder: Path, kill_at: int = 0) -> int:
    """Start a child that works and kills itself at I/O event `kill_at` (0: never) below `folder`; its process id."""
    child = os.fork()
    if child:
        return child
    count = 0

    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS and (event != "open" or str(arguments[0]).startswith(str(folder))):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(on_event)
        work()
        events = count
        (folder / "events").write_text(str(events))
        code = 0
    finally:
        os._exit(code)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def alone(source: Path, folder: Path, kill_at: int = 0) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    return wait(in_child(lambda: translate_dataset(source, folder / "out", plan(folder)), folder, kill_at))


def parts(source: Path, folder: Path, n: int, kill_at: int = 0) -> list[int]:
    """All n parts at the same time; the first kills itself at event `kill_at`."""
    folder.mkdir(parents=True, exist_ok=True)

    def part(i: int) -> Callable[[], object]:
        return lambda: translate_part(source, folder / "out", plan(folder), (i, n))

    return [wait(child) for child in [in_child(part(i), folder, 0 if i else kill_at) for i in range(n)]]


def drive(source: Path, folder: Path) -> None:
    """The driver: everything is imported once, each run is a fork."""
    assert alone(source, folder / "whole") == 0
    whole, asked = contents(folder / "whole" / "out"), Transliteration(folder / "whole" / "asked").asked
    events = int((folder / "whole" / "events").read_text())
    moments = random.Random(7)
    report = []
    for moment in sorted(moments.sample(range(1, events + 1), MOMENTS)):
        here = folder / f"alone-{moment}"
        codes = [alone(source, here, moment), alone(source, here)]
        report.append(_findings(here, whole, asked) | {"moment": moment, "codes": codes, "wanted": [-9, 0]})
    for n, again in ((2, 3), (3, 2), (2, 1)):
        here = folder / f"parts-{n}-{again}"
        codes = parts(source, here, n, moments.randrange(10, events // (3 * n)))
        complete = (here / "out" / "dataset.json").exists()
        found = {"early": complete, "codes": codes, "wanted": [-9] + [0] * (n - 1)}
        codes = parts(source, here, again)
        report.append(_findings(here, whole, None) | found | {"again": codes, "again_wanted": [0] * again})
    (folder / "report.json").write_text(json.dumps(report))


def _findings(folder: Path, whole: dict[str, bytes], asked: Counter[str] | None) -> dict[str, object]:
    out = contents(folder / "out") if (folder / "out").exists() else {}
    twice = Transliteration(folder / "asked").asked - asked if asked is not None else Counter()
    return {
        "different": sorted(name for name in out.keys() | whole.keys() if out.get(name) != whole.get(name)),
        "asked_again": twice.total(),
        "caches": len(list((folder / "cache").glob("*.sqlite"))),
    }


def test_killed_at_seeded_moments(make_sample: MakeSample, make_dataset: MakeDataset, tmp_path: Path) -> None:
    colors = ["red", "blue", "green", "black", "white", "pink", "brown", "grey", "gold", "aqua"]
    samples = [make_sample(i, f"is the {color} thing here?", color, with_image=i < 4) for i, color in enumerate(colors)]
    source = make_dataset(samples, "source")
    command = [sys.executable, __file__, str(source), str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs" / "report.json").read_text())
    assert len(report) == MOMENTS + 3
    for found in report:
        assert found["codes"] == found["wanted"], (found, done.stderr)
        assert found.get("again") == found.get("again_wanted"), (found, done.stderr)
        assert found["different"] == [], found
        assert found["asked_again"] <= Transliteration.batch_size, found
        assert not found.get("early")
        assert found["caches"] == 1, found


if __name__ == "__main__":
    (runs := Path(sys.argv[2])).mkdir()
    drive(Path(sys.argv[1]), runs)
