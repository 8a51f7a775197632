"""Evaluation: tasks, generation, parts, scores."""
