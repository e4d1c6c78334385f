"""Persistent knowledge: benchmarks of lm-evaluation-harness, with its own prompts and metrics."""
