"""Measurements of speed and memory, each beside what limits it; results stand in `benchmarks/results/`."""
