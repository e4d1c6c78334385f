"""Benchmarks and whole experiments made of many runs."""
