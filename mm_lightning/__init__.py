"""Memory Mosaics v2: language models built from associative memories."""

from mm_lightning.inference.registration import register_with_transformers

__version__ = "0.1.0"

register_with_transformers()
