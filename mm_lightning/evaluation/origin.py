"""How a network was trained, as far as its run folder says: what results are held against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mm_lightning.training.checkpoint import step_of
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
    tokens = _tokens_of_step(run / "metrics.jsonl")
    found |= {"run_folder": str(run), "fine_tuned_from": base}
    if tokens is not None and step >= 0:
        before = origin(Path(base))["training_tokens"] if base else 0
        found["training_tokens"] = None if before is None else before + round(tokens * step)
    return found


def _tokens_of_step(metrics: Path) -> float | None:
    """Tokens of one optimisation step, from the last line that has them."""
    if not metrics.is_file():
        return None
    for text in reversed(metrics.read_text(encoding="utf-8").splitlines()):
        try:
            line = json.loads(text)
        except ValueError:  # the last line of a killed run
            continue
        if line.get("train/tokens") and line.get("step"):
            return line["train/tokens"] / line["step"]
    return None
