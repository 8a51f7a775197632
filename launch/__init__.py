"""The `vlm` command and the stages as jobs."""
