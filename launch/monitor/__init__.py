"""Runs seen from outside, by their files alone: what `vlm status` and `vlm monitor` show."""
