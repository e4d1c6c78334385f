"""How a network was trained, as far as its run folder says: what results are held against."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.training.checkpoint import read_about, step_of
from mm_lightning.training.trained_tokens import tokens_at
from mm_lightning.yaml_text import read_yaml


def origin(checkpoint: Path) -> dict[str, Any]:
    """The training behind a checkpoint.

    Returns:
        `run_folder`; `step`; `training_tokens` up to it, those before fine-tuning included; `fine_tuned_from`, the
        checkpoint that training began with. None where it is not known.
    """
    step, run = step_of(checkpoint), checkpoint.parent.parent
    found: dict[str, Any] = {"run_folder": None, "step": None if step < 0 else step}
    found |= {"training_tokens": None, "fine_tuned_from": None}
    if checkpoint.parent.name != "checkpoints" or not (run / "config.yaml").is_file():
        return found
    config = read_yaml(run / "config.yaml") or {}
    base = (config.get("model") or {}).get("initial_weights")
    tokens = trained_tokens(checkpoint)
    found |= {"run_folder": str(run), "fine_tuned_from": base}
    if tokens is not None:
        before = origin(Path(base))["training_tokens"] if base else 0
        found["training_tokens"] = None if before is None else before + tokens
    return found


def trained_tokens(checkpoint: Path) -> int | None:
    """Return the tokens of a checkpoint's training: its own count or, of earlier versions, as its run logged them."""
    if checkpoint.exists():
        with contextlib.suppress(UserError):
            if (counted := read_about(checkpoint).get("tokens")) is not None:
                return counted
    step, metrics = step_of(checkpoint), checkpoint.parent.parent / "metrics.jsonl"
    if step < 0 or not metrics.is_file():
        return None
    counts = {}
    for text in metrics.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # the last line of a killed run
            line = json.loads(text)
            if line.get("train/tokens") and line.get("step"):
                counts[line["step"]] = line["train/tokens"]
    tokens = tokens_at(step, counts)
    return None if tokens is None else round(tokens)
