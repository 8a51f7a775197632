"""Packages that an installation may lack, and the extra that brings them."""

from importlib.util import find_spec

from shards.errors import BadInput


def install(extra: str) -> str:
    """The command that installs what an extra of setup.py holds."""
    return f'pip install "ruvlm[{extra}]"'


def require(package: str, extra: str, what: str) -> None:
    """BadInput where `package`, which `what` needs and `extra` brings, cannot be imported."""
    if find_spec(package) is None:
        raise BadInput(f"{what} needs {package}, which is not installed: {install(extra)}")
