"""Lines that tell how a command proceeds."""

from __future__ import annotations

import sys

from mm_lightning import signals
from mm_lightning.redaction import redact
from mm_lightning.terminal import display


def is_first_process() -> bool:
    """Return whether this is the first of the processes of its job, by Lightning's count where Lightning is loaded."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    rank = getattr(getattr(lightning, "rank_zero_only", None), "rank", None)
    return (signals.rank() if rank is None else rank) == 0


def say(message: str, stderr: bool = False) -> None:
    """Print one line, on the first process only; secrets in it are redacted."""
    if is_first_process():
        display(redact(message), file=sys.stderr if stderr else sys.stdout, flush=True)


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds: 3725 s -> 1:02:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
