"""Generating text with a trained network."""
