"""What Lightning leaves undone when a run goes on from a checkpoint."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from mm_lightning.errors import UserError


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


OPTIONS = {
    "fingerprint": "data.path of fingerprint",
    "context_length": "data.context_length",
    "global_batch_size": "data.global_batch_size",
    "seed": "seed_everything",
}
"""What decides which tokens a step gets, and the options that say it."""


def decides_the_data(data: LightningDataModule) -> dict[str, Any]:
    """The values of what decides which tokens a step gets, as checkpoints keep them."""
    shares = [f"{s.share} x " if s.share < 1 else "" for s in data.sets]
    prints = " + ".join(share + s.manifest.fingerprint[:12] for share, s in zip(shares, data.sets, strict=True))
    return {name: prints if name == "fingerprint" else getattr(data, name) for name in OPTIONS}


def changes(about: dict[str, Any], data: LightningDataModule) -> str | None:
    """What is said of a resumed run that cannot go on as if nothing had happened; None where it can.

    Args:
        about: what the checkpoint says of itself.
        data: of this run.

    Raises:
        UserError: the tokens mean something else than what the network has learned.
    """
    was, now = about["tokenizer"], data.tokenizer
    if was and was["sha256"] != now.sha256:
        raise UserError(
            f"the checkpoint was trained with the tokenizer {was['name']} ({was['sha256'][:8]}), {data.path} was "
            f"prepared with {now.name} ({now.sha256[:8]}): resume with data of the first, or begin anew with the "
            f"checkpoint's weights: --model.initial_weights"
        )
    wanted = decides_the_data(data)
    before = about.get("data") or wanted  # earlier versions kept nothing
    told = [f"{OPTIONS[n]} {x} instead of {before[n]}" for n, x in wanted.items() if before.get(n, x) != x]
    if not told:
        return None
    return (
        f"WARNING: resuming with {', '.join(told)}: weights, optimiser and step go on, but the data come in another "
        f"order from here, so that this epoch may repeat or miss some of them"
    )


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
