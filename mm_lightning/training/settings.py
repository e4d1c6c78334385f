"""Numbers of a config that Lightning would take and stumble over, or train wrongly with, later."""

from __future__ import annotations

from jsonargparse import Namespace

from mm_lightning.errors import UserError


def check_settings(config: Namespace) -> None:
    """Whether a training command can do what its config says.

    Raises:
        UserError: it cannot; with the key.
    """
    trainer = config.trainer
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            "trainer.accumulate_grad_batches follows from data.global_batch_size and data.micro_batch_size: "
            "set these and leave it out"
        )
    if not 0 <= config.seed_everything < 1 << 32:
        raise UserError(f"seed_everything must be at least 0 and below 2^32, got {config.seed_everything}")
    for name in ("val_check_interval", "log_every_n_steps"):
        value = getattr(trainer, name)
        if isinstance(value, int | float) and value <= 0:
            raise UserError(f"trainer.{name} must be at least 1, got {value}")
    if (trainer.gradient_clip_val or 0) < 0:  # which would turn gradients round
        raise UserError(f"trainer.gradient_clip_val must be above 0, or null for none, got {trainer.gradient_clip_val}")
