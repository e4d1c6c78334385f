"""Inspect the reads of a trained network's memories."""
