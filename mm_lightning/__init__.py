"""Memory Mosaics v2: language models built from associative memories."""

__version__ = "0.2.0"
