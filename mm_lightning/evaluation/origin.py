"""The training behind a network, as its run folder records it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mm_lightning.checkpoint import read_metadata, step_of
from mm_lightning.checkpoint.trained_tokens import tokens_at
from mm_lightning.errors import UserError
from mm_lightning.side_files import known_config, read_lines


def origin(checkpoint: Path) -> dict[str, Any]:
    """Return the training behind a checkpoint.

    Returns:
        `run_folder`; `step`; `training_tokens` up to it, those before fine-tuning included; `fine_tuned_from`, the
        checkpoint that training began with. None where it is not known.
    """
    step, run = step_of(checkpoint), checkpoint.parent.parent
    training: dict[str, Any] = {"run_folder": None, "step": None if step < 0 else step}
    training |= {"training_tokens": None, "fine_tuned_from": None}
    if checkpoint.parent.name != "checkpoints" or not (run / "config.yaml").is_file():
        return training
    config = known_config(run / "config.yaml")
    base = (config.get("model") or {}).get("initial_weights")
    tokens = trained_tokens(checkpoint)
    training |= {"run_folder": str(run), "fine_tuned_from": base}
    if tokens is not None:
        before = origin(Path(base))["training_tokens"] if base else 0
        training["training_tokens"] = None if before is None else before + tokens
    return training


def trained_tokens(checkpoint: Path) -> int | None:
    """Return the tokens of a checkpoint's training: its own count or, of earlier versions, as its run logged them."""
    if checkpoint.exists():
        with contextlib.suppress(UserError):
            if (counted := read_metadata(checkpoint).get("tokens")) is not None:
                return counted
    if (step := step_of(checkpoint)) < 0:
        return None
    lines = read_lines(checkpoint.parent.parent / "metrics.jsonl", "step")
    tokens = tokens_at(step, {line["step"]: line["train/tokens"] for line in lines if line.get("train/tokens")})
    return None if tokens is None else round(tokens)
