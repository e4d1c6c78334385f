"""Log the gradient norm before clipping."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.optim import Optimizer

from mm_lightning.console import say
from mm_lightning.training.lightning_internals import accumulating, log_interval
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.optimizers import Muon, optimizer_class_of


class GradientNorm(Callback):
    """Log `train/gradient_norm`, the L2 norm over all parameters and devices, at log steps.

    Not of Muon under ZeRO: DeepSpeed computes the norm of its orthogonalized updates.
    """

    _norm: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Log once that there is no norm of gradients, if so."""
        muon = optimizer_class_of(pl_module.optimizer) is Muon
        self._of_updates = muon and isinstance(trainer.strategy, DeepSpeedStrategy)
        if self._of_updates:
            say("GradientNorm: DeepSpeed has the norm of Muon's updates alone: train/gradient_norm is not logged")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LanguageModule, optimizer: Optimizer) -> None:
        """Compute the norm of the whole step from the gradients of the parameters."""
        due = (trainer.global_step + 1) % log_interval(trainer) == 0
        if due and not isinstance(trainer.strategy, DeepSpeedStrategy):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModule, *_: Any) -> None:
        """Log the norm; DeepSpeed, whose gradients are partitioned, computes it in its step."""
        step = trainer.global_step
        if step == 0 or step % log_interval(trainer) or accumulating(trainer):
            return
        if isinstance(trainer.strategy, DeepSpeedStrategy) and not self._of_updates:
            self._norm = trainer.strategy.deepspeed_engine.get_global_grad_norm()
        if self._norm is not None:
            pl_module.log_train({"train/gradient_norm": float(self._norm)})
        self._norm = None
