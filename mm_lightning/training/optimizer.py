"""AdamW, and its learning-rate schedule: linear warm-up and cosine (Appendix C of the v2 paper)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy

from mm_lightning.errors import UserError
from mm_lightning.networks import Network
from mm_lightning.training.lightning_internals import allow_clipping


def build_adamw(
    network: Network, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Build AdamW with weight decay on matrices only."""
    matrices, others = network.weight_decay_groups()
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), fused=True)
    allow_clipping(optimizer)
    return optimizer


def check_moments(trainer: Trainer) -> None:
    """Check that AdamW's moments are not in float16.

    Raises:
        UserError: they are.
    """
    if trainer.precision == "16-true" and not isinstance(trainer.strategy, DeepSpeedStrategy):
        raise UserError(
            "trainer.precision 16-true keeps AdamW's moments in float16, which ends at 6e-8, and diverges: use "
            "bf16-true, bf16-mixed or 16-mixed"
        )


def warmup_cosine(step: int, warmup: int, steps: Callable[[], float], final: float) -> float:
    """Return the learning rate of a step, counted from 0, as a fraction of the peak.

    Args:
        step: the step.
        warmup: steps of linear warm-up from 0.
        steps: returns the number of all steps; called for steps after the first one at the peak.
        final: where the cosine ends.
    """
    if step <= warmup:
        return min((step + 1) / max(warmup, 1), 1.0)
    last = max(steps() - warmup - 1, 1)
    return final + (1 - final) * (1 + math.cos(math.pi * min((step - warmup) / last, 1))) / 2
