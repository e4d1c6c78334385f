"""Evaluation tasks, and the code that asks networks about them."""
