"""Text to tokens to litdata shards to batches of packed documents."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_lightning.data.batch import Batch
    from mm_lightning.data.datamodule import TextDataModule
    from mm_lightning.data.manifest import Manifest
    from mm_lightning.data.prepare import PrepareConfig
    from mm_lightning.data.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Batch", "Manifest", "PrepareConfig", "TextDataModule", "Tokenizer", "load_tokenizer"]

_MODULES = {
    "Batch": "batch",
    "Manifest": "manifest",
    "PrepareConfig": "prepare",
    "TextDataModule": "datamodule",
    "Tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for, so that a tokenizer does not bring Lightning with it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
