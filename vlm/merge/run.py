"""`vlm merge`: stream the base's weights through the adapter's changes, prove the result, put it in its place."""

import ctypes
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import BadInput
from shards.files import MANIFEST, read_json, verify_manifest, write_atomic, write_json
from vlm.data.template import load_template
from vlm.merge.adapter import CONFIG
from vlm.merge.bases.dequantise import Original
from vlm.merge.card import Card
from vlm.merge.companions import CARD, Facts, companions
from vlm.merge.compare import compare_tensors
from vlm.merge.layout import Layout
from vlm.merge.output import BASE, CHANGES, MODEL, RECORD, check_place, put, workshop, write_weights
from vlm.merge.plan import MergePlan
from vlm.merge.probes import Probe, Vocabulary, drawn, of_set
from vlm.merge.proof import Differs, Expected, Limits, Proof
from vlm.merge.remembered import Remembered
from vlm.merge.stream import Copied, Source
from vlm.merge.streamed import StreamedModel
from vlm.stop import room_on_disk

if TYPE_CHECKING:
    from vlm.config import Recipe

Tell = Callable[[int, int | None], None]
_MEGABYTE = 10**6
# M_MMAP_THRESHOLD of malloc.h
_MMAP_THRESHOLD = -3


def _silent(done: int, total: int | None) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Checks:
    """What the merged model is asked: `probes`, of which the first `answers` are answered too, from the shards `data`
    or, without them, drawn tokens. `answers` None: all of a set's, none of drawn ones, which have no answer."""

    probes: int = 4
    answers: int | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.probes < 1 or (self.answers or 0) < 0:
            raise BadInput(f"--probes {self.probes}, --answers {self.answers}: at least one probe is wanted")

    @property
    def limits(self) -> Limits:
        """Of the answers."""
        return Limits((self.probes if self.data else 0) if self.answers is None else self.answers)

    def of(self, base: Path) -> Callable[[StreamedModel], list[Probe]]:
        """The probes, once the model's configuration is known. What is wrong with `data` is found at once."""
        if self.data is not None:
            found = of_set(self.probes, self.data, base)
            return lambda model: found
        return lambda model: drawn(self.probes, Vocabulary.of(base, model.config), model.config)


@dataclass(frozen=True)
class Telling:
    """Who hears of megabytes done: of all that are written, and of those read for the proof, whose number is open; of
    those of a plain base that is made first."""

    written: Tell = _silent
    proven: Tell = _silent
    dequantised: Tell = _silent


NOBODY = Telling()


@dataclass(frozen=True)
class Origin:
    """The run that an adapter is of, the chat template that it was trained with ("": the base's own), and the merged
    model's licence ("": the base's own)."""

    run: Path | None = None
    template: str = ""
    licence: str = ""


NOWHERE = Origin()


def merge(plan: MergePlan, checks: Checks, origin: Origin = NOWHERE, telling: Telling = NOBODY) -> Proof:
    """Write the merged model of `plan` and return the proof, which stands in merge.json beside the digests.

    BadInput for what does not fit or is damaged, Differs (a RuntimeError) where base + adapter and the merged model
    differ, Fault where the disk is full: `plan.out` is then as it was. After a full disk or a kill the same call goes
    on.
    """
    _return_freed_memory()
    # before the digests of large files
    check_place(plan.out, plan.read)
    original, layout, source = _checked(plan)
    # what is wrong with these is better found before hours of work
    card = Card.of(
        plan.base, origin.run, plan.adapters, licence=origin.licence or (original.licence if original else "")
    )
    if origin.template:
        load_template(origin.template)
    probes = checks.of(plan.base) if original is None else None
    with workshop(plan.out, plan.inputs(layout, original), plan.read) as folder, room_on_disk(folder):
        if original:
            layout, source = _made_plain(plan, original, folder / BASE, telling)
        source = _kept(plan, layout, source, folder / CHANGES)
        read = _counted(telling.proven, None)
        expected = Expected.of(layout, source, probes or checks.of(layout.folder), checks.limits, read)
        written = _write(plan, layout, source, folder, telling.written)
        companions(layout.folder, folder / MODEL, Facts(origin.template))
        try:
            proof = expected.compare(Layout.read(folder / MODEL), read)
        except Differs:
            # what was written cannot be trusted, also by the next one
            shutil.rmtree(folder)
            raise
        _record(plan, original, written, proof, folder / MODEL)
        write_atomic(folder / MODEL / CARD, replace(card, proof=proof.line).text())
        put(folder, plan.out, written)
    return proof


def verify(plan: MergePlan, merged: Path, checks: Checks, telling: Telling = NOBODY) -> Proof:
    """Prove a folder from elsewhere to be what `plan` would write; nothing is written. Raises as `merge`."""
    if (merged / CONFIG).exists():
        raise BadInput(f"{merged}: holds {CONFIG}, which transformers would add to the weights; remove the adapter")
    if (merged / MANIFEST).exists() and (problems := verify_manifest(merged)):
        raise BadInput(f"{merged}: damaged: {problems[0]}")
    found = Layout.read(merged)
    if "quantization_config" in found.config:
        raise BadInput(f"{found.folder / 'config.json'}: has a quantization_config, and plain weights; remove it")
    _return_freed_memory()
    original, layout, source = _checked(plan)
    with tempfile.TemporaryDirectory(prefix="vlm-merge-") as name, room_on_disk(folder := Path(name)):
        if original:
            layout, source = _made_plain(plan, original, folder / BASE, telling)
        source = _kept(plan, layout, source, folder / CHANGES)
        read = _counted(telling.proven, None)
        expected = Expected.of(layout, source, checks.of(layout.folder), checks.limits, read)
        try:
            compare_tensors(expected.weights, found, read)
            return expected.compare(found, read)
        except Differs as error:
            adapters = " and ".join(map(str, plan.adapters))
            raise Differs(f"{merged} is not {plan.base} with {adapters}: {error}") from error


def _made_plain(plan: MergePlan, original: Original, base: Path, telling: Telling) -> tuple[Layout, Source]:
    """The plain base, written where it does not lie there yet, and the changes of it."""
    original.write(base, _counted(telling.dequantised, original.model.bytes // _MEGABYTE))
    layout = Layout.read(base)
    return layout, plan.source(layout)


def _kept(plan: MergePlan, layout: Layout, source: Source, folder: Path) -> Source:
    """The changes as they are used: remembered in `folder` where they take long, over NF4 where that is asked for."""
    return plan.over_nf4(layout, Remembered(source, folder) if plan.takes_long else source)


def _return_freed_memory() -> None:
    """Have glibc give blocks of a MiB back as they are freed.

    It learns to keep larger and larger ones, and blocks of many sizes come and go here: hundreds of MiB would be held.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_MMAP_THRESHOLD, 1 << 20)


def _checked(plan: MergePlan) -> tuple[Original | None, Layout, Source]:
    """The base's layout and the changes, once all that can be told beforehand fits together; where the base has to be
    made plain, the layout of what it will be."""
    original = plan.original()
    if original is None and not (plan.base / "config.json").is_file():
        raise BadInput(f"--base {plan.base}: no model folder; give the base that the adapter was trained on")
    plan.check_seals()
    layout = original.layout if original else Layout.read(plan.base)
    return original, layout, plan.source(layout)


def _write(plan: MergePlan, layout: Layout, source: Source, folder: Path, tell: Tell) -> dict[str, Copied]:
    total = sum(file.path.stat().st_size for file in layout.files) // _MEGABYTE
    return write_weights(layout, source, plan.torch_dtype, folder, _counted(tell, total))


def _counted(tell: Tell, total: int | None) -> Callable[[int], None]:
    done = 0

    def heard(count: int) -> None:
        nonlocal done
        done += count
        tell(done // _MEGABYTE, total)

    return heard


def _record(plan: MergePlan, original: Original | None, written: dict[str, Copied], proof: Proof, model: Path) -> None:
    from vlm.eval.adapter import adapter_digest

    told = {
        "base": original.digest if original else _base_digest(plan.base, written),
        **({"dequantised": original.form} if original else {}),
        "adapters": [adapter_digest(adapter) for adapter in plan.adapters],
        "dtype": plan.dtype,
        "options": plan.options,
        **asdict(proof),
    }
    write_json(model / RECORD, told)


def _base_digest(base: Path, written: dict[str, Copied]) -> str:
    """`weights_digest`, without another reading of what was just read."""
    if (base / MANIFEST).exists() or (base / "assembly.json").exists():
        from vlm.model.parts import weights_digest

        return weights_digest(base)
    return hashlib.sha256("".join(written[name].read for name in sorted(written)).encode()).hexdigest()


def of_recipe(recipe: "Recipe", out: Path) -> tuple[MergePlan, Path | None]:
    """What a recipe means: `eval.adapter` into `model.base`, as `model.dtype`, and the shards to prove it on."""
    from vlm.eval.adapter import adapter_folder
    from vlm.model.load import base_folder

    base, adapter = base_folder(recipe.model), adapter_folder(recipe)
    if adapter is None:
        raise BadInput("eval.adapter: empty; name the adapter folder to merge, or `latest`")
    data = recipe.eval.data or recipe.data.train
    return MergePlan(base, [adapter], out, recipe.model.dtype), Path(data) if data else None


def standing(recipe: "Recipe", out: Path) -> bool:
    """Whether `out` is whole and was merged from the adapter and base that the recipe means now."""
    from vlm.eval.adapter import adapter_digest, adapter_folder
    from vlm.model.parts import weights_digest

    if not (out / MANIFEST).exists() or verify_manifest(out):
        return False
    told, adapter = read_json(out / RECORD), adapter_folder(recipe)
    if adapter is None or not isinstance(told, dict):
        return False
    meant = {
        "base": weights_digest(Path(recipe.model.base)),
        "adapters": [adapter_digest(adapter)],
        "dtype": recipe.model.dtype,
        "options": {},
    }
    return {key: told.get(key) for key in meant} == meant
