"""Silence warnings of Lightning that concern every run."""

from __future__ import annotations

import logging
import os
import warnings

SILENCED_MESSAGES = (
    r".*given buffer is not writable.*",
    r".*does not have many workers.*",
    r".*When saving the DeepSpeed Stage 3 checkpoint.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*WeightAveraging callback with a model that overrides the configure_model.*",
    r"\s*Unable to serialize instance.*",
    r".*number of training batches .* is smaller than the logging interval.*",
)


def silence_warnings() -> None:
    """Silence warnings and log lines of Lightning that every run would print."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    for message in SILENCED_MESSAGES:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("profilers", "callbacks.model_summary"):  # requested by the user
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)


def silence_profiler() -> None:
    """Silence the log of torch's profiler; call before its first use."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
