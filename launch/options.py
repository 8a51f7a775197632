"""Options that several commands share."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="key=value", help="Keys of the recipe to change.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Number = Annotated[int | None, typer.Option("--set", min=0, help="Entry i of the recipe's list `shards`, from 0.")]


def show(data: dict[str, Any], as_json: bool, text: str) -> None:
    """Print a result for a machine or for a person."""
    print(json.dumps(data, ensure_ascii=False) if as_json else text, flush=True)
