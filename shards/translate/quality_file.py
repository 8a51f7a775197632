"""quality.json, read back."""

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from shards.errors import BadInput
from shards.files import read_json
from shards.translate.quality import FORMAT, Histogram, Quality

_REMEDY = "translate the dataset again"
# Beyond it, floats are no longer counts.
_LARGEST = 2**53


def read_quality(path: Path | str) -> Quality:
    """The Quality of a file; BadInput, naming file and field, when it is missing or not one of this format."""
    obj = read_json(path)
    if not isinstance(obj, dict) or obj.get("format") != FORMAT:
        raise BadInput(f"{path}: not a quality report of format {FORMAT}; {_REMEDY}")
    return cast(Quality, _parse(Quality, obj, f"{path}: "))


def _parse(kind: Any, value: Any, at: str) -> Any:
    """`value` as the annotation `kind` has it: a dataclass, a union with None, a list, a table, or a plain value."""
    if is_dataclass(kind):
        return _dataclass(kind, value, at)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        (other,) = (one for one in inner if one is not NoneType)
        return None if value is None else _parse(other, value, at)
    if origin is list and isinstance(value, list):
        return [_parse(inner[0], item, f"{at}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: _parse(inner[1], item, f"{at}.{name:.50}") for name, item in value.items()}
    if kind is str and isinstance(value, str):
        return value
    if kind is int and type(value) is int and 0 <= value <= _LARGEST:
        return value
    if kind is float and type(value) in (int, float) and abs(value) <= _LARGEST:
        return float(value)
    raise BadInput(f"{at} is not of its type; {_REMEDY}")


def _dataclass(kind: Any, value: Any, at: str) -> Any:
    if not isinstance(value, dict):
        raise BadInput(f"{at} should be an object; {_REMEDY}")
    hints = get_type_hints(kind)
    given = {}
    for field in fields(kind):
        if field.name in value:
            given[field.name] = _parse(hints[field.name], value[field.name], f"{at}.{field.name}".replace(": .", ": "))
        elif field.default is MISSING:
            raise BadInput(f"{at} has no {field.name!r}; {_REMEDY}")
    if kind is Histogram and (not given["edges"] or len(given["edges"]) != len(given.get("counts", ()))):
        raise BadInput(f"{at} is no histogram; {_REMEDY}")
    return kind(**given)
