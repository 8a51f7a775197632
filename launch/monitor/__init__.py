"""Runs seen from outside, by their files alone: what `vlm status` and `vlm monitor` show."""

from shards.extras import require


def require_extra() -> None:
    """BadInput unless what `vlm monitor` needs beside the rest is installed."""
    for name in ("starlette", "uvicorn", "prometheus_client", "markdown_it"):
        require(name, "monitor", "vlm monitor")
