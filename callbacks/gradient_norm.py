"""The norm of the gradient before clipping."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.optim import Optimizer

from mm_lightning.training.lightning_internals import accumulating


class GradientNorm(Callback):
    """Logs `train/gradient_norm`, the L2 norm over all parameters and devices, at log steps."""

    def __init__(self) -> None:
        self._norm: Tensor | None = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measures the whole step's gradient where it lies in the parameters."""
        due = (trainer.global_step + 1) % trainer.log_every_n_steps == 0
        if due and not isinstance(trainer.strategy, DeepSpeedStrategy):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs it; DeepSpeed, whose gradients are partitioned, knows the norm after its step."""
        step = trainer.global_step
        if step == 0 or step % trainer.log_every_n_steps or accumulating(trainer):
            return
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            self._norm = trainer.strategy.deepspeed_engine.get_global_grad_norm()
        if self._norm is not None:
            pl_module.log_train({"train/gradient_norm": float(self._norm)})
        self._norm = None
