"""Pairs of a TMX 1.4 file, read as a stream."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from shards.errors import BadInput

_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_MAX_BYTES = 256 * 1024 * 1024
_MAX_DEPTH = 64
_MAX_UNIT_ELEMENTS = 10_000
_MAX_SEGMENT_CHARS = 100_000


def tmx_pairs(path: Path, source: str, target: str) -> dict[str, str]:
    """Source text → target text of the units that have both languages; the first of several translations stands.

    Language codes are compared by their first part: `en` takes `en-US`. Inline tags give way to their text. BadInput,
    naming the file, on a file that is no TMX, is larger than 256 MiB, has a document type declaration or entities, or
    holds no such pair.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadInput(f"{path}: larger than {_MAX_BYTES} bytes; split it", "limit")
        with open(path, "rb") as handle:
            pairs: dict[str, str] = {}
            for unit in _units(handle, str(path)):
                texts = _texts(unit, str(path))
                if source in texts and target in texts:
                    pairs.setdefault(texts[source], texts[target])
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except DefusedXmlException as error:
        raise BadInput(f"{path}: has a document type or entities, which are refused; remove <!DOCTYPE>") from error
    except (ParseError, UnicodeError, LookupError, ValueError) as error:
        raise BadInput(f"{path}: not well-formed TMX ({error})") from error
    if not pairs:
        raise BadInput(f"{path}: no unit has a text in {source!r} and one in {target!r}")
    return pairs


def _units(handle: BinaryIO, where: str) -> Iterator[Element]:
    """Every <tu>, whole; the caller is done with it when it asks for the next."""
    parents: list[Element] = []
    elements = 0
    for event, element in iterparse(handle, ("start", "end"), forbid_dtd=True):
        if event == "start":
            if not parents and element.tag != "tmx":
                raise BadInput(f"{where}: its root is <{element.tag:.50}>, not <tmx>")
            parents.append(element)
            elements += 1
            if len(parents) > _MAX_DEPTH or elements > _MAX_UNIT_ELEMENTS:
                raise BadInput(f"{where}: elements nested deeper than {_MAX_DEPTH}, or too many in one unit", "limit")
            continue
        parents.pop()
        if element.tag == "tu":
            yield element
        if element.tag == "tu" or len(parents) < 3:
            elements = 0
            element.clear()
            if parents:
                parents[-1].remove(element)


def _texts(unit: Element, where: str) -> dict[str, str]:
    """Language → first text that is not empty."""
    texts: dict[str, str] = {}
    for variant in unit.iterfind("tuv"):
        language = (variant.get(_LANG) or variant.get("lang") or "").replace("_", "-").split("-")[0].lower()
        segment = variant.find("seg")
        text = "" if segment is None else "".join(segment.itertext()).strip()
        if len(text) > _MAX_SEGMENT_CHARS or "\0" in text:
            raise BadInput(f"{where}: a segment of {len(text)} characters; at most {_MAX_SEGMENT_CHARS}", "limit")
        if text:
            texts.setdefault(language, text)
    return texts
