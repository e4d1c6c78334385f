"""Text to tokens to litdata shards to batches of packed documents."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_lightning.data.batch import Batch
    from mm_lightning.data.datamodule import TextDataModule
    from mm_lightning.data.facts import FactsConfig
    from mm_lightning.data.manifest import Manifest
    from mm_lightning.data.prepare_config import PrepareConfig
    from mm_lightning.data.regbench import RegBenchConfig
    from mm_lightning.data.tokenizer import Tokenizer, load_tokenizer
    from mm_lightning.data.tokenizer_training import train_tokenizer

__all__ = [
    "Batch",
    "FactsConfig",
    "Manifest",
    "PrepareConfig",
    "RegBenchConfig",
    "TextDataModule",
    "Tokenizer",
    "load_tokenizer",
    "train_tokenizer",
]

_MODULES = {
    "Batch": "batch",
    "FactsConfig": "facts",
    "Manifest": "manifest",
    "PrepareConfig": "prepare_config",
    "RegBenchConfig": "regbench",
    "TextDataModule": "datamodule",
    "Tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
    "train_tokenizer": "tokenizer_training",
}


def __getattr__(name: str) -> Any:
    """Import on first use: preparing text needs no torch, and its worker processes start without it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
