"""What several commands share: options, how output is printed."""

import json
import os
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from shards.errors import BadInput

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="key=value", help="Keys of the recipe to change.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Licence = Annotated[str, typer.Option("--licence", help="Of what is written, as a hub calls it (apache-2.0).")]
Number = Annotated[int | None, typer.Option("--set", min=0, help="Entry i of the recipe's list `shards`, from 0.")]


class GivenOnce(TyperCommand):
    """A command that refuses an option that is given twice, of which the last would count without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = self.make_parser(ctx).parse_args(args=[*args])[2]
        for option in given:
            if option.param_type_name == "option" and not option.multiple and given.count(option) > 1:
                raise BadInput(f"{option.opts[0]}: given more than once")
        return super().parse_args(ctx, args)


def show(data: dict[str, Any], as_json: bool, text: str) -> None:
    """Print a result for a machine or for a person."""
    print(json.dumps(data, ensure_ascii=False) if as_json else text, flush=True)


def quiet() -> None:
    """Keep libraries' start-up chatter out of logs that people read; they look at this when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
