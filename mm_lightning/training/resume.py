"""What Lightning leaves undone when a run goes on from a checkpoint."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def fit_progress(checkpoint: dict[str, Any], accumulate: int) -> bool:
    """Counts the batches of a checkpoint's loops as this run would have.

    Lightning counts batches of one process. With another number of processes a step of the same global batch is another
    number of them, and accumulation, validation and epochs would begin in the middle of a step.

    Args:
        checkpoint: as Lightning loads it; changed in place.
        accumulate: batches of one process in an optimisation step of this run.

    Returns:
        Whether it was saved after a step whose validation, if one was due, had yet to begin.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    total, steps = progress["total"], checkpoint["global_step"]
    unfinished = total["processed"] - total["completed"]  # 1 in the hook at the end of a batch
    before = total["ready"]
    for counts in (total, progress["current"]) if before else ():
        counts["ready"] = counts["started"] = counts["processed"] = counts["ready"] * steps * accumulate // before
        counts["completed"] = counts["processed"] - unfinished
    return unfinished > 0


def validate_if_due(trainer: Trainer) -> None:
    """Runs the validation that was due right after the checkpoint was saved, which Lightning skips."""
    loop = trainer.fit_loop.epoch_loop
    every = trainer.val_check_interval
    if not (trainer.enable_validation and isinstance(every, int) and loop.total_batch_idx >= 0):
        return
    if (loop.total_batch_idx + 1) % every:
        return
    loop.val_loop.restarting = False
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
